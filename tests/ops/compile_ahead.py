"""Compiles the Triton kernels for a GPU that need not be there, just as the launchers launch them.

A program of its own, since Triton decides at import whether it interprets, and the other tests have
it interpret. ``python compile_ahead.py`` prints one JSON line for each kernel that CI compiles,
``python compile_ahead.py all`` every kernel of every case for every architecture.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import sass
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# bytes of shared memory that one program may use
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}
FLOAT, HALF, BRAIN, DOUBLE = torch.float32, torch.float16, torch.bfloat16, torch.float64
PTX_MATRIX = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)[\w.:]*")


# a kernel's name and its named arguments -> whether to compile it
Wanted = Callable[[str, dict[str, Any]], bool]


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


# a case for every row of the table of tilings: wide and narrow inputs of each width
ROWS = tuple(
    Case("nearest", 4096, 8192, channels, "euclidean", dtype, dtype)
    for channels in (8, 64, 128, 256, 512)
    for dtype in (FLOAT, BRAIN)
)
# and what the rows do not tell apart
CASES = (
    *ROWS,
    # other N, shared out and not, the same kernels
    *(Case("nearest", rows, 8192, 64) for rows in (8192, 1, 1001, 40001)),
    Case("nearest", 4096, 1024, 64, "cosine", BRAIN, BRAIN),
    Case("nearest", 4096, 512, 64, "euclidean", HALF, HALF, channels_first=True),
    Case("nearest", 4096, 1000, 100, "dot"),
    Case("nearest", 4096, 1024, 96, "cosine", BRAIN, FLOAT),
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
    Case("update", 1, 1, 3),
    Case("update", 4096, 1024, 64),
    Case("update", 8192, 1024, 64),
    Case("update", 4096, 1000, 1000, x=BRAIN),
    Case("update", 4096, 512, 64, x=HALF, channels_first=True),
    Case("entropy", 4096, 1024, 64),
    Case("entropy", 8192, 1024, 64),
    Case("entropy", 4096, 1024, 3, "dot", DOUBLE, DOUBLE),
)
# what CI has time for besides all of sm_90: the search, whose tilings differ
ELSEWHERE = {
    80: (*ROWS[0:1], *ROWS[2:5], *ROWS[6:7], *ROWS[8:9]),
    86: (*ROWS[6:7],),
    89: (*ROWS[6:7],),
    100: (*ROWS[2:5], *ROWS[8:9]),
}


def _all(name: str, options: dict[str, Any]) -> bool:
    return True


def _elsewhere(name: str, options: dict[str, Any]) -> bool:
    """The coarse pass alone."""
    return name == "search_kernel" and options["LIST"] < 0


class Driver:
    """Answers what Triton asks of a GPU's driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        # a device for each architecture: Triton keeps what it compiled by device
        return self.capability

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
    if case.op == "entropy":
        launch_entropy(case)
        return
    if case.op == "update":
        launch_update(case, x, codebook, indices)
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
    for gradient, to_codes in (("rotation", False), ("diveq", False), ("diveq", True)):
        quantize.directional_backward(x, torch.zeros(()), x, codebook, indices, gradient, to_codes)
    for residual in (codebook, None):
        statistics(x, indices, case.codes, residual)


def launch_entropy(case: Case) -> None:
    """Calls the streams of the softmax with all that each may be given, and with the least."""
    streams = import_module("fastvq.ops.entropy._triton")
    x = torch.zeros(1, case.rows, case.channels, dtype=case.x)
    codebook = torch.zeros(1, case.codes, case.channels, dtype=case.codebook)
    row, code = x[..., 0].contiguous(), codebook[..., 0].contiguous()
    indices = torch.zeros(1, case.rows, dtype=torch.int64)
    factors = torch.zeros(3, 1, case.rows, dtype=case.x)
    for chosen in (indices, None):
        streams.softmax_rows(x, codebook, code, chosen, case.metric, 2.0)
    for by_code, values in ((False, codebook), (True, x)):
        given = (x, codebook, code, row, row, factors)
        streams.softmax_sums(*given, code, None, None, values, by_code, case.metric, 2.0)
        streams.softmax_sums(*given, None, x, codebook, values, by_code, case.metric, 2.0)
        streams.softmax_sums(*given, None, None, None, None, by_code, case.metric, 2.0)
    keys = torch.zeros(2, 1, case.rows, dtype=torch.int64)
    streams.softmax_samples(x, codebook, code, keys, case.metric, 2.0)


def launch_update(
    case: Case, x: torch.Tensor, codebook: torch.Tensor, indices: torch.Tensor
) -> None:
    """Calls a codebook's step for all that it may be asked for."""
    update = import_module("fastvq.nn._triton_update").update
    sizes = torch.zeros(1, case.codes)
    rows = (x, indices, sizes.long(), 0.1)
    for moves, unit_norm, revived in product((True, False), (True, False), (rows, None)):
        options = {"decay": 0.9, "moves": moves, "unit_norm": unit_norm, "revived": revived}
        update(codebook, sizes, sizes, codebook, **options)


class Compiled(NamedTuple):
    """A kernel as a launcher asked for it."""

    name: str
    form: Any
    constants: dict[str, Any]  # what it was launched with by name


def compiled(case: Case, *, wanted: Wanted) -> Iterator[Compiled]:
    """The kernels that the launchers ask for, as far as they are wanted."""
    kernels: list[Compiled] = []
    run = JITFunction.run

    def compile_only(kernel: JITFunction, *args: Any, **options: Any) -> None:
        if wanted(kernel.__name__, options):
            form = run(kernel, *args, **{**options, "warmup": True})
            kernels.append(Compiled(kernel.__name__, form, options))

    JITFunction.run = compile_only
    try:
        launch(case)
    finally:
        JITFunction.run = run
    yield from kernels


def inspect(kernel: Compiled) -> dict[str, Any]:
    """Registers, stack, local and shared memory, products; of a search, its machine code too."""
    # to take the code apart takes longer than to compile it, and what spills has a stack
    searches = kernel.name == "search_kernel"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.form.asm["cubin"])
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", *["-sass"][:searches]]
        command.append(file.name)
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    resources = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    facts = {
        **resources,
        "shared": kernel.form.metadata.shared,
        "products": sorted(set(PTX_MATRIX.findall(kernel.form.asm["ptx"]))),
    }
    if searches:
        code = sass.instructions(text)
        facts["matrix"] = sorted({i.name for i in code if sass.MATRIX.fullmatch(i.name)})
        if kernel.constants["LIST"] < 0:
            facts["loop"] = _loop(kernel, text)._asdict()
    return facts


def _loop(kernel: Compiled, text: str) -> sass.Loop:
    c = kernel.constants
    elements = c["BLOCK_M"] * c["BLOCK_K"] / (32 * c["num_warps"])
    return sass.score_loop(text, elements, c["PADDED_D"] // c["BLOCK_D"])


def report(capability: int, cases: tuple[Case, ...], wanted: Wanted) -> None:
    """Prints a line for each kernel; one that was inspected before has no facts."""
    driver.set_active(Driver(capability))
    module = import_module("fastvq.ops.nearest._triton")
    device = module.Device(processors=132, shared=SHARED[capability], major=capability // 10)
    module._device = lambda _: device
    seen: set[str] = set()
    for case in cases:
        for kernel in compiled(case, wanted=wanted):
            facts = None if kernel.form.hash in seen else inspect(kernel)
            seen.add(kernel.form.hash)
            label = " ".join(str(part).removeprefix("torch.") for part in case)
            line = {"capability": capability, "kernel": kernel.name, "case": label}
            line |= {"rows": case.rows, "channels": case.channels, "facts": facts}
            print(json.dumps(line), flush=True)  # noqa: T201


def main(*, everything: bool) -> None:
    if everything:
        for capability in SHARED:
            report(capability, CASES, _all)
        return
    report(90, CASES, _all)
    for capability, cases in ELSEWHERE.items():
        report(capability, cases, _elsewhere)


if __name__ == "__main__":
    main(everything=sys.argv[1:] == ["all"])
