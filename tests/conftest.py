"""What every test shares: one seed, the backends, and outputs that nobody may leave unwritten."""

import os
from contextlib import contextmanager

import torch

# before any kernel module is imported: Triton decides at import whether to interpret
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import pytest

import fastvq
from fastvq import _native

if os.environ.get("TRITON_INTERPRET") == "1" and os.name != "nt":
    from triton.runtime import interpreter

    _prepared = set()

    def _call(function, *args, **kwargs):
        """A call by a kernel: half the time of the interpreter's own, which each time puts all of
        the language in place anew, though the launch has done so, and the first call for good."""
        module = function.fn.__globals__
        if id(module) not in _prepared:
            _prepared.add(id(module))
            interpreter._patch_lang(function.fn)
        return function.rewrite()(*args, **kwargs)

    interpreter.InterpretedFunction.__call__ = _call
    _types, _type_of = {}, interpreter._get_np_dtype

    def _remembered(dtype):
        """The numpy type of a block or scalar, for which each time all types are tabled anew."""
        name = dtype.scalar.name
        if name not in _types:
            _types[name] = _type_of(dtype)
        return _types[name]

    interpreter._get_np_dtype = _remembered

    from fastvq.ops.nearest import _triton as search

    _rescoring = search.rescore_tiling

    def _wide(*args):
        """More rows to a tile of the rescoring: one takes the interpreter as long as any."""
        tiling = _rescoring(*args)
        rows = 16 * tiling.constants["BLOCK_M"]
        return tiling._replace(constants=tiling.constants | {"BLOCK_M": rows})

    search.rescore_tiling = _wide

# a script of test_triton_aot.py, for processes of its own
collect_ignore = ["ops/compile_ahead.py"]
BACKENDS = ("reference", "native", "triton")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@contextmanager
def using(name: str):
    """Asks for a backend by name, which has to be there unless it cannot."""
    if name == "native" and _native.reason() is not None:
        if os.environ.get("FASTVQ_EXTENSION") == "0":
            pytest.skip("built without the extension, as FASTVQ_EXTENSION=0 asks")
        pytest.fail(f"the extension is missing: {_native.reason()}")
    if name == "triton" and os.name == "nt":
        pytest.skip("triton has no Windows build")
    with fastvq.use_backend(name):
        yield


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest):
    """Each implementation in turn."""
    with using(request.param):
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
