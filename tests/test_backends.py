"""The table of backends: what is chosen, what is refused, and in which words."""

import subprocess
import sys

import pytest
import torch

import fastvq
from fastvq import _backends

X, CODEBOOK = torch.randn(3, 4), torch.randn(5, 4)


def run(code, **environment):
    """A fresh process: stdout, or the last line of its traceback."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PATH": "", **environment},
        check=False,
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


SEARCH = "import torch, fastvq; fastvq.ops.nearest(torch.ones(1, 2), torch.eye(2)); print('ran')"


def test_the_choice_ends_with_the_block():
    before = _backends.chosen("nearest", "cpu")
    with fastvq.use_backend("reference"):
        assert _backends.chosen("nearest", "cpu") == "reference"
        with fastvq.use_backend("auto"):
            assert _backends.chosen("nearest", "cpu") == before
        assert _backends.chosen("nearest", "cpu") == "reference"
    assert _backends.chosen("nearest", "cpu") == before


def test_the_choice_ends_with_an_error():
    before = _backends.chosen("nearest", "cpu")
    with pytest.raises(ZeroDivisionError), fastvq.use_backend("reference"):
        1 / 0  # noqa: B018
    assert _backends.chosen("nearest", "cpu") == before


def test_unknown_name():
    with pytest.raises(ValueError, match="did you mean 'native'"), fastvq.use_backend("natve"):
        pass


def test_environment_chooses():
    code = SEARCH.replace("print('ran')", "print(fastvq._backends.chosen('nearest', 'cpu'))")
    assert run(code, FASTVQ_BACKEND="reference") == "reference"


def test_environment_with_unknown_name():
    text = run(SEARCH, FASTVQ_BACKEND="refrence")
    assert text.startswith("ValueError: FASTVQ_BACKEND must be one of")
    assert "did you mean 'reference'" in text


def test_explicit_backend_never_falls_back():
    text = run(SEARCH, FASTVQ_BACKEND="triton")
    assert "ran" not in text
    assert "backend 'triton' was asked for and cannot run nearest on device 'cpu'" in text


def test_automatic_choice_never_interprets():
    # the interpreter is for tests: a program must not become a thousand times slower by its use
    assert run(SEARCH, TRITON_INTERPRET="1") == "ran"
    assert _backends.chosen("nearest", "cpu") != "triton"


def test_a_backend_that_breaks_is_named_and_skipped(monkeypatch):
    def broken():
        raise OSError("no such symbol")

    row = _backends.Row(broken, lambda device: None, ("cpu",))
    monkeypatch.setitem(_backends._table, ("nearest", "native"), row)
    _backends._load.cache_clear()
    _backends._loads.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="'native' does not load.*no such symbol"):
            fastvq.ops.nearest(X, CODEBOOK)
        # once is enough
        fastvq.ops.nearest(X, CODEBOOK)
        with pytest.raises(OSError, match="no such symbol"), fastvq.use_backend("native"):
            fastvq.ops.nearest(X, CODEBOOK)
    finally:
        _backends._load.cache_clear()
        _backends._loads.cache_clear()


def test_backends_says_what_runs_and_why_the_rest_does_not():
    statuses = {status.name: status for status in fastvq.backends()}
    assert list(statuses) == ["native", "triton", "reference"]
    assert statuses["reference"].available
    for status in statuses.values():
        assert status.detail
    if not torch.cuda.is_available():
        assert statuses["triton"].detail == "no CUDA device is visible"


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_a_device_nobody_serves(device):
    for name in ("native", "triton"):
        assert _backends._table["nearest", name].unavailable(device)
    expected = pytest.raises(RuntimeError, match="float64") if device == "mps" else None
    if expected:
        with expected:
            _backends.chosen("nearest", device)
    else:
        assert _backends.chosen("nearest", device) == "reference"
