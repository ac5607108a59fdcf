"""What every test shares: one seed, the backends, and outputs that nobody may leave unwritten."""

import os

import torch

# before any kernel module is imported: Triton decides at import whether to interpret
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import pytest

import fastvq
from fastvq import _native

# a script of test_triton_aot.py, for processes of its own
collect_ignore = ["ops/compile_ahead.py"]
BACKENDS = ("reference", "native", "triton")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest):
    """Each implementation in turn, asked for by name."""
    if request.param == "native" and _native.reason() is not None:
        if os.environ.get("FASTVQ_EXTENSION") == "0":
            pytest.skip("built without the extension, as FASTVQ_EXTENSION=0 asks")
        pytest.fail(f"the extension is missing: {_native.reason()}")
    if request.param == "triton" and os.name == "nt":
        pytest.skip("triton has no Windows build")
    with fastvq.use_backend(request.param):
        yield request.param


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills what torch leaves unwritten with NaN or a huge number, so that reading it shows."""

    def poison(function):
        def filled(*args, **kwargs):
            tensor = function(*args, **kwargs)
            if tensor.is_floating_point():
                return tensor.fill_(torch.nan)
            return tensor.fill_(-77777) if tensor.dtype == torch.int64 else tensor

        return filled

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
