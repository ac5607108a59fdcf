"""The Triton kernels compiled ahead of time: what ships must fit the registers, use the matrix
units and spend no more on a score than the units leave time for; a machine without a GPU sees it.

``FASTVQ_COMPILE=all`` compiles every case for every architecture, which takes some minutes.
"""

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
MATRIX_INSTRUCTION = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
# bytes of shared memory that one program may use
SHARED = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}
# channels a score may have for each half-rate instruction, if the products are to hide them: the
# products that a multiprocessor forms in a clock over the 64 lanes of the other pipe
CHANNELS_PER_INSTRUCTION = {80: 16, 86: 8, 89: 8, 90: 32, 100: 64}
# (capability, D) where the budget is missed, and what is spent instead, so that it does not grow:
# narrow vectors leave no time; small groups of codes cost the loop less than they save afterwards;
# tensor memory hands a thread the scores of one row, and what belongs to a group has to be brought
# together
SPENT = {
    (80, 8): 1.7,
    (90, 8): 1.8,
    (90, 3): 1.8,
    (90, 64): 2.4,
    (100, 64): 2.3,
    (100, 128): 4.0,
}
EVERYTHING = os.environ.get("FASTVQ_COMPILE") == "all"
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def kernels() -> list[dict]:
    """What the worker says of every kernel."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(HERE.parents[1])
    command = [sys.executable, HERE / "compile_ahead.py", *(["all"] if EVERYTHING else [])]
    worker = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert worker.returncode == 0, worker.stderr[-3000:]
    return [json.loads(line) for line in worker.stdout.splitlines()]


@pytest.fixture
def inspected(kernels) -> list[dict]:
    """One entry for each different kernel."""
    return [kernel for kernel in kernels if kernel["facts"] is not None]


@pytest.fixture
def searches(inspected) -> list[dict]:
    return [kernel for kernel in inspected if kernel["kernel"] == "search_kernel"]


def test_every_kernel_is_compiled(kernels):
    sources = (HERE.parents[1] / "fastvq").rglob("_triton*.py")
    known = {
        name
        for source in sources
        for name in re.findall(r"^def (\w+_kernel)\(", source.read_text(), re.MULTILINE)
    }
    for capability in SHARED if EVERYTHING else (90,):
        assert known == {k["kernel"] for k in kernels if k["capability"] == capability}
    assert {k["capability"] for k in kernels} == set(SHARED)


def test_no_kernel_spills(inspected):
    def spills(facts: dict) -> bool:
        return facts["STACK"] > 0 or facts["LOCAL"] > 0

    assert [k for k in inspected if spills(k["facts"])] == []


def test_shared_memory_fits(inspected):
    assert [k for k in inspected if k["facts"]["shared"] > SHARED[k["capability"]]] == []


def test_searches_run_on_the_matrix_units(searches):
    assert {search["capability"] for search in searches} == set(SHARED)
    for search in searches:
        assert search["facts"]["matrix"] == [MATRIX_INSTRUCTION[search["capability"]]], search


def test_products_are_of_16_bit_operands(inspected):
    """Never TF32, which is what float32 operands become unless someone looks.

    The softmax over the codes has products of float64, for float64 inputs; the search never.
    """
    products = {(k["kernel"], product) for k in inspected for product in k["facts"]["products"]}
    assert products
    for kernel, product in products:
        assert "tf32" not in product
        exact = kernel not in ("search_kernel", "rescore_kernel") and ".f64" in product
        assert exact or re.search(r"\.f16|bf16|kind::f16", product), (kernel, product)


def test_another_number_of_rows_compiles_nothing(kernels):
    again = [k for k in kernels if k["rows"] in (8192, 1, 1001, 40001) and k["channels"] != 3]
    assert len(again) > 4 * 8
    assert [k for k in again if k["facts"] is not None] == []


def test_a_score_costs_no_more_than_its_products(searches, record_property):
    """Half-rate instructions for each score, counted in the loop over the codes."""
    lines, over = ["capability  D  half-rate of budget  every  waits  case"], []
    for search in searches:
        loop = search["facts"].get("loop")
        if loop is None:
            continue
        capability, channels = search["capability"], search["channels"]
        padded = 16 if channels <= 16 else -(-channels // 32) * 32
        budget = padded / CHANNELS_PER_INSTRUCTION[capability]
        spent = SPENT.get((capability, channels), budget)
        lines.append(
            f"sm_{capability:<7} {channels:>5}  {loop['half_rate']:5.2f} of {budget:5.2f}  "
            f"{loop['every']:6.2f}  {loop['waits']:>3}  {search['case']}"
        )
        if loop["half_rate"] > max(budget, spent):
            over.append(lines[-1])
        # lanes that speak to each other in the loop would cost more than all of this; on Blackwell
        # they do, for the reason above
        assert loop["shuffles"] == 0 or capability == 100, search
    print("\n".join(lines))  # noqa: T201
    record_property("epilogue", lines)
    assert len(lines) > 15
    # what is over is known for what CI compiles
    assert EVERYTHING or over == []
