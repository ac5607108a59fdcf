"""Compiles the Triton kernels for a GPU that need not be there, just as the launchers launch them.

A program of its own, since Triton decides at import whether it interprets, and the other tests have
it interpret: ``python compile_ahead.py 90`` prints one JSON line for each kernel compiled.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# bytes of shared memory that one program may use
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
FLOAT, HALF, BRAIN, DOUBLE = torch.float32, torch.float16, torch.bfloat16, torch.float64


class Case(NamedTuple):
    """One call of each launcher of an op."""

    op: str
    rows: int
    codes: int
    channels: int
    metric: str = "euclidean"
    x: torch.dtype = FLOAT
    codebook: torch.dtype = FLOAT
    channels_first: bool = False


CASES = (
    Case("nearest", 4096, 1024, 8, "cosine"),
    Case("nearest", 4096, 1024, 64),
    Case("nearest", 8192, 1024, 64),  # another N, the same kernels
    Case("nearest", 4096, 1024, 64, "cosine", BRAIN, BRAIN),
    Case("nearest", 4096, 512, 64, "euclidean", HALF, HALF, channels_first=True),
    Case("nearest", 4096, 1000, 100, "dot"),
    Case("nearest", 4096, 1024, 128, "cosine", BRAIN, FLOAT),
    Case("nearest", 4096, 8192, 256),
    Case("nearest", 4096, 8192, 256, "dot", BRAIN, BRAIN),
    Case("nearest", 4096, 1024, 512, "cosine"),
    Case("nearest", 4096, 1024, 1000),
    Case("nearest", 1, 1, 3),
    Case("nearest", 4096, 1024, 64, "euclidean", DOUBLE, DOUBLE),
    Case("lookup", 1, 1, 3),
    Case("lookup", 4096, 1024, 64),
    Case("lookup", 8192, 1024, 64),
    Case("lookup", 4096, 1024, 1000, x=BRAIN),
    Case("lookup", 4096, 512, 64, x=BRAIN, codebook=BRAIN, channels_first=True),
    Case("lookup", 4096, 512, 64, x=BRAIN, codebook=DOUBLE),
    Case("residual", 4096, 64, 128),
    Case("residual", 8192, 64, 128),
    Case("residual", 256, 16, 64, x=BRAIN, codebook=DOUBLE),
)


class Driver:
    """Answers what Triton asks of a GPU's driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


def launch(case: Case) -> None:
    """Calls the launchers of an op on tensors that no kernel will ever touch."""
    nearest = import_module("fastvq.ops.nearest._triton").nearest
    quantize = import_module("fastvq.ops.quantize._triton")
    statistics = import_module("fastvq.ops.statistics._triton").statistics
    x = torch.zeros(1, case.rows, 1, case.channels, dtype=case.x)
    if case.channels_first:
        x = x.transpose(1, 3).contiguous().transpose(1, 3)
    codebook = torch.zeros(1, case.codes, case.channels, dtype=case.codebook)
    indices = torch.zeros(1, case.rows, 1, dtype=torch.int64)
    if case.op == "nearest":
        nearest(x, codebook, case.metric, "exact")
        return
    if case.op == "residual":
        # its search goes through the dispatcher, which runs it on the CPU
        residual = import_module("fastvq.ops.residual._triton")
        rows, codebooks = x.squeeze(2), codebook.expand(3, -1, -1)
        residual.residual(rows, codebooks, None)
        factors = torch.zeros(3, dtype=torch.promote_types(case.codebook, FLOAT))
        residual.residual_backward(rows, factors, rows, codebooks, indices.expand(-1, -1, 3))
        return
    quantize.quantize(x, codebook, indices)
    quantize.quantize_backward(x, torch.zeros(()), x, codebook, indices)
    for residual in (codebook, None):
        statistics(x, indices, case.codes, residual)


def compiled(case: Case) -> Iterator[tuple[str, Any]]:
    """The name and the compiled form of each kernel that the launchers ask for."""
    kernels: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(kernel: JITFunction, *args: Any, **options: Any) -> None:
        options["warmup"] = True
        kernels.append((kernel.__name__, run(kernel, *args, **options)))

    JITFunction.run = compile_only
    try:
        launch(case)
    finally:
        JITFunction.run = run
    yield from kernels


def inspect(cubin: bytes) -> dict[str, Any]:
    """Registers, stack and local memory of a kernel, and its matrix and spill instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", "-sass", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    instructions = re.findall(r"\b(HMMA|HGMMA|UTC\w*MMA|LDL|STL)\b", text)
    return {**found, "instructions": sorted(set(instructions))}


def main(capability: int, report: Callable[[str], None]) -> None:
    driver.set_active(Driver(capability))
    module = import_module("fastvq.ops.nearest._triton")
    device = module.Device(processors=132, shared=SHARED[capability], major=capability // 10)
    module._device = lambda _: device
    seen: set[str] = set()
    for case in CASES:
        for name, kernel in compiled(case):
            new = kernel.hash not in seen
            seen.add(kernel.hash)
            facts = inspect(kernel.asm["cubin"]) if new else None
            label = " ".join(str(part).removeprefix("torch.") for part in case)
            report(json.dumps({"kernel": name, "case": label, "rows": case.rows, "facts": facts}))


if __name__ == "__main__":
    main(int(sys.argv[1]), lambda line: print(line, flush=True))  # noqa: T201
