"""The Triton kernels compiled ahead of time: what ships must fit the registers and use the matrix
units, and a machine without a GPU can see that it does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no build for this platform")

pytestmark = pytest.mark.slow

# the matrix instructions of each generation: warpgroup ones on Hopper, tensor-memory ones after
MATRIX_INSTRUCTION = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def kernels() -> dict[int, list[dict]]:
    """What the worker says of every kernel, for each compute capability."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(HERE.parents[1])
    workers = {
        capability: subprocess.Popen(
            [sys.executable, HERE / "compile_ahead.py", str(capability)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for capability in MATRIX_INSTRUCTION
    }  # fmt: skip
    found = {}
    for capability, worker in workers.items():
        output, errors = worker.communicate(timeout=500)
        assert worker.returncode == 0, errors[-3000:]
        found[capability] = [json.loads(line) for line in output.splitlines()]
    return found


@pytest.fixture(params=MATRIX_INSTRUCTION, ids=lambda capability: f"sm_{capability}")
def capability(request: pytest.FixtureRequest) -> int:
    return request.param


def inspected(kernels: list[dict]) -> list[dict]:
    """One entry for each different kernel."""
    return [kernel for kernel in kernels if kernel["facts"] is not None]


def test_every_kernel_is_compiled(kernels, capability):
    sources = (HERE.parents[1] / "fastvq" / "ops").glob("*/_triton*.py")
    known = {
        name
        for source in sources
        for name in re.findall(r"^def (\w+_kernel)\(", source.read_text(), re.MULTILINE)
    }
    assert known == {kernel["kernel"] for kernel in kernels[capability]}


def test_no_kernel_spills(kernels, capability):
    def spills(facts: dict) -> bool:
        return facts["STACK"] > 0 or facts["LOCAL"] > 0 or "STL" in facts["instructions"]

    assert [k for k in inspected(kernels[capability]) if spills(k["facts"])] == []


def test_searches_run_on_the_matrix_units(kernels, capability):
    searches = [k for k in inspected(kernels[capability]) if k["kernel"] == "search_kernel"]
    assert searches
    wanted = MATRIX_INSTRUCTION[capability]
    assert [k for k in searches if wanted not in k["facts"]["instructions"]] == []


def test_another_number_of_rows_compiles_nothing(kernels, capability):
    again = [k for k in kernels[capability] if k["rows"] == 8192]
    assert again
    assert inspected(again) == []
