# SPDX-License-Identifier: Apache-2.0
"""What only a device shows: graphs, compilation, memory, huge offsets, the sanitizer's verdict."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import fastvq
from benchmarks.gpu import processes
from benchmarks.gpu.running import Skip, Work
from benchmarks.gpu.setting import Setting, runs
from benchmarks.gpu.wrong import wrong_share
from benchmarks.measure import peak_device_bytes
from fastvq import priors, testing
from fastvq.ops import nearest, quantize, residual, statistics

# bytes that an op may take beyond its inputs: for each row, for each row's channels where the op
# returns some, and for each component of a code
ROW_BYTES, CODE_BYTES, FIXED_BYTES = 160, 64, 16 << 20
SANITIZER_SECONDS = 150
TOOLS = ("memcheck", "racecheck")


def works(setting: Setting) -> Iterator[Work]:
    for backend in setting.backends:
        if backend == "reference":
            # the specification waits for the device and works in chunks: promises are for the rest
            continue
        # native takes few channels only
        depth = 8 if backend == "native" else 48
        checks: dict[str, Callable[[Setting], object]] = {
            "compiles whole": partial(_compiles, depth=depth),
            "CUDA graph": partial(_graph, depth=depth),
            "no wait for the device": partial(_no_wait, depth=depth),
            "memory O(N + K)": _memory,
            "addresses beyond 2^31": _huge,
            "training step against the reference": _step,
        }
        for name, run in checks.items():
            yield Work(f"{backend}: {name}", partial(setting.on, backend, partial(run, setting)))
    yield Work("graphed sampling equals plain sampling", partial(_sampling, setting))


def sanitizer_works(setting: Setting) -> Iterator[Work]:
    """NVIDIA's sanitizer over small odd calls: minutes where the kernels are not yet compiled."""
    for tool in TOOLS:
        yield Work(f"compute-sanitizer {tool}", partial(_sanitizer, setting, tool))


def _all_ops(x: Tensor, codebook: Tensor) -> list[Tensor]:
    """One call of every op, with its gradients."""
    x = x.detach().requires_grad_()
    codebook = codebook.detach().requires_grad_()
    indices, distances = nearest(x, codebook)
    out = quantize(x, codebook, indices)
    loss = out.quantized.sum() + out.commitment_loss + out.codebook_loss
    found = [indices, distances, *out]
    if runs("residual", x.device.type):
        levels = residual(x, torch.stack([codebook.detach(), codebook.detach() / 3]))
        loss = loss + levels.commitment_losses.sum()
        found += levels
    found += torch.autograd.grad(loss, (x, codebook))
    found += statistics(x, indices, len(codebook), codebook=codebook)
    return [t.detach() for t in found]


def _compiles(setting: Setting, depth: int) -> None:
    x, codebook = _inputs(setting, 3000, 200, depth)

    def run(x: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        return tuple(nearest(x, c)) + tuple(quantize(x, c, nearest(x, c).indices))

    compiled = torch.compile(run, fullgraph=True)
    for n in (3000, 1777):
        for actual, wanted in zip(compiled(x[:n], codebook), run(x[:n], codebook), strict=True):
            assert torch.equal(actual, wanted), "the compiled answer differs"


def _graph(setting: Setting, depth: int) -> None:
    _needs_cuda(setting)
    x, codebook = _inputs(setting, 3000, 200, depth)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _all_ops(x, codebook)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _all_ops(x, codebook)
    for seed in (1, 2):
        fresh, codes = testing.gaussian(3000, 200, depth, seed=seed)
        x.copy_(fresh.to(x.device))
        codebook.copy_(codes.to(x.device))
        graph.replay()
        torch.cuda.synchronize()
        for actual, wanted in zip(captured, _all_ops(x, codebook), strict=True):
            assert torch.equal(actual, wanted), "the replayed answer differs"


def _no_wait(setting: Setting, depth: int) -> None:
    _needs_cuda(setting)
    x, codebook = _inputs(setting, 3000, 200, depth)
    _all_ops(x, codebook)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _all_ops(x, codebook)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _memory(setting: Setting) -> dict[str, float | None]:
    _needs_cuda(setting)
    n, k, d = 500_000, 8192, 64
    x, codebook = _inputs(setting, n, k, d)
    indices = nearest(x, codebook).indices
    output = n * d * x.element_size()
    allowed = ROW_BYTES * n + CODE_BYTES * k * d + FIXED_BYTES
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "nearest": (lambda: nearest(x, codebook), allowed),
        "quantize": (lambda: quantize(x, codebook, indices), allowed + output),
        # partial sums of pieces of 128 rows
        "statistics": (lambda: statistics(x, indices, k), allowed + output // 32),
        # the residual and the sum of codes
        "residual": (lambda: residual(x, codebook[None, :1024]), allowed + 4 * output),
    }
    figures: dict[str, float | None] = {}
    for name, (call, limit) in calls.items():
        call()
        extra = peak_device_bytes(call)
        figures[f"{name}_MiB"] = extra / 2**20
        assert extra <= limit, f"{name} takes {extra >> 20} MiB, {limit >> 20} would be O(N + K)"
    return figures


def _huge(setting: Setting) -> None:
    """N D beyond 2^31: the last rows are the ones that a 32-bit address would miss."""
    _needs_cuda(setting)
    n, k, d = (1 << 23) + 4097, 64, 257
    needed = 5 * n * d
    free = torch.cuda.mem_get_info()[0]
    if setting.quick or free < needed:
        raise Skip(f"needs {needed >> 30} GiB of device memory and no --quick")
    generator = torch.Generator(device=setting.device).manual_seed(0)
    x = torch.empty(n, d, dtype=torch.bfloat16, device=setting.device).normal_(generator=generator)
    codebook = torch.randn(k, d, device=setting.device, generator=generator).bfloat16()
    indices = nearest(x, codebook).indices
    for part in (slice(0, 200), slice(n - 200, n)):
        assert wrong_share(x[part], codebook, indices[part]) == 0, "wrong codes"
    out = quantize(x, codebook, indices).quantized
    assert torch.equal(out[-200:], codebook[indices[-200:]]), "quantize misses the last rows"
    counts, _ = statistics(x[-4096:], indices[-4096:], k)
    whole, _ = statistics(x, indices, k)
    assert whole.sum().item() == n, f"statistics counted {whole.sum().item()} of {n} rows"
    assert (counts <= whole).all()


def _step(setting: Setting) -> None:
    """A step of the module on this backend and on the specification: the same codes after it."""
    x, codebook = _inputs(setting, 60 if setting.quick else 6000, 40, 24)
    results = []
    for backend in (None, "reference"):
        quantizer = fastvq.VectorQuantizer(24, 40, start=fastvq.Given(codebook)).to(x.device)
        rows = x.detach().clone().requires_grad_()

        def step(quantizer=quantizer, rows=rows) -> None:
            for _ in range(2):
                quantized, _, loss = quantizer(rows)
                (quantized.sum() + loss).backward()

        if backend is None:
            step()
        else:
            with fastvq.use_backend(backend):
                step()
        results.append((quantizer.codebook.detach(), rows.grad))
    for mine, wanted in zip(*results, strict=True):
        testing.assert_within(mine, wanted.double(), 1e-5 * (wanted.double().abs() + 1))


def _sampling(setting: Setting) -> dict[str, float | None]:
    """A prior's cached steps replayed from a graph: the same codes, and how long either takes.

    The time of the graph is that of a whole call: capturing it is included.
    """
    _needs_cuda(setting)
    pixelcnn = priors.GatedPixelCNN(priors.GatedPixelCNNConfig(512, channels=64, layers=12))
    wavenet = priors.WaveNet(priors.WaveNetConfig(256))
    figures: dict[str, float | None] = {}
    for prior, shape in ((pixelcnn, (16, 16)), (wavenet, (1024 + 7,))):
        prior.to(setting.device).eval()
        uniforms = torch.rand(16, *shape, dtype=torch.float64, device=setting.device)
        # libraries prepare themselves in the first draw, which neither time is to hold
        priors.sample_from(prior, uniforms)
        drawn = []
        for name, graph in (("plain", False), ("graph", True)):
            torch.cuda.synchronize()
            start = time.perf_counter()
            drawn.append(priors.sample_from(prior, uniforms, graph=graph))
            torch.cuda.synchronize()
            figures[f"{type(prior).__name__}_{name}_ms"] = 1e3 * (time.perf_counter() - start)
        assert torch.equal(*drawn), f"{type(prior).__name__}: the graph draws other codes"
    return figures


def _sanitizer(setting: Setting, tool: str) -> None:
    """Small odd calls of every op under compute-sanitizer, in a process of its own."""
    _needs_cuda(setting)
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.access(program, os.X_OK):
        raise Skip("compute-sanitizer is not installed")
    command = [program, "--tool", tool, "--error-exitcode", "9"]
    command += [sys.executable, "-m", "benchmarks.gpu.small"]
    # one allocation a tensor, so that an access beyond one is beyond the other
    status, said = processes.run(command, SANITIZER_SECONDS, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    if status is None:
        raise Skip(f"not done within {SANITIZER_SECONDS} s")
    if "Device not supported" in said:
        raise Skip("compute-sanitizer does not work here: " + said[-300:])
    assert status == 0, f"exit status {status}: {said[-1500:]}"


def _inputs(setting: Setting, n: int, k: int, d: int) -> tuple[Tensor, Tensor]:
    x, codebook = testing.gaussian(n, k, d)
    return x.to(setting.device), codebook.to(setting.device)


def _needs_cuda(setting: Setting) -> None:
    if setting.device != "cuda":
        raise Skip("needs a GPU")
