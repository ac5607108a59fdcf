"""The CUDA part of the native backend: what nvcc makes of it, and what the table says of it.

``FASTVQ_COMPILE=all`` compiles for every architecture, which takes some minutes.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import fastvq
from fastvq import _backends, _native

ROOT = Path(__file__).parents[2]
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))

spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
setup = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup)
NVCC = setup.find_nvcc()
EVERYTHING = os.environ.get("FASTVQ_COMPILE") == "all"

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")

# loads the library as the package does, in a process of its own and as if torch had CUDA; a stub
# stands for the one function that only a torch with CUDA has
LOAD = """
import ctypes, pathlib, sys, torch
from fastvq import _native
stub, library = sys.argv[1:]
ctypes.CDLL(stub, mode=ctypes.RTLD_GLOBAL)
torch.version.cuda = "13.0"
places = _native._places
_native._places = lambda name: [pathlib.Path(library)] if name == "_C_cuda" else places(name)
assert _native.cuda_reason() is None, _native.cuda_reason()
for name in ("nearest", "quantize", "quantize_backward", "statistics", "residual"):
    print(name, torch._C._dispatch_has_kernel_for_dispatch_key(f"fastvq_native::{name}", "CUDA"))
"""


def compile_kernels(folder: Path, architectures: tuple[int, ...]) -> str:
    """What ptxas says of all kernels; the objects are left in the folder."""
    includes = [str(Path(torch.__file__).parent / "include")]

    def compile_one(source: Path) -> str:
        target = str(folder / f"{source.stem}.o")
        command = setup.nvcc_command(NVCC, str(source), target, includes, architectures)
        run = subprocess.run(
            [*command, "-Xptxas=-v"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr[-3000:]
        assert "warning" not in run.stderr, run.stderr[-3000:]
        return run.stderr

    with ThreadPoolExecutor() as pool:
        return "".join(pool.map(compile_one, KERNELS))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> tuple[Path, str]:
    """The folder of the objects, and what ptxas said."""
    folder = tmp_path_factory.mktemp("kernels")
    return folder, compile_kernels(folder, setup.supported(NVCC) if EVERYTHING else (90,))


@needs_nvcc
def test_no_kernel_spills(compiled):
    """Nor takes more than its share of a multiprocessor."""
    assert len(setup.supported(NVCC)) >= 2
    found = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers(?:[^\n]*?, (\d+) bytes smem)?",
        compiled[1],
        re.DOTALL,
    )
    assert len(found) == compiled[1].count("Compiling entry function")
    ours = [kernel for kernel in found if kernel[0].startswith("_ZN6fastvq")]
    declared = re.findall(r"__global__ .*?(\w+_kernel)\(", "".join(map(Path.read_text, KERNELS)))
    assert {name for name in declared if any(name in kernel[0] for kernel in ours)} == {*declared}
    for name, architecture, stack, stores, loads, registers, shared in ours:
        assert (stack, stores, loads) == ("0", "0", "0"), (name, architecture)
        # three blocks of the search to a multiprocessor, or more
        assert int(registers) <= 168, (name, architecture, registers)
        assert int(shared or 0) <= 33 << 10, (name, architecture, shared)


@needs_nvcc
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.skipif(_native.reason() is not None, reason="the schemas are in fastvq._C")
@pytest.mark.skipif(torch.version.cuda is not None, reason="a torch with CUDA needs no stub")
def test_the_library_loads_and_registers(compiled, tmp_path):
    machine = setup.look()._replace(cuda_request="require", cuda_sources=setup.cuda_sources(ROOT))
    (extension,) = (e for e in setup.plan(machine)[0] if e.name == setup.CUDA)
    library, stub = tmp_path / "_C_cuda.abi3.so", tmp_path / "stub.so"
    folders = [*extension.library_dirs, *setup.library_folders(NVCC)]
    subprocess.run(
        [
            "g++", "-shared", "-fPIC", *compiled[0].glob("*.o"),
            *(ROOT / source for source in extension.sources),
            "-I", sysconfig.get_path("include"), *extension.extra_compile_args, "-o", library,
            *(f"-L{folder}" for folder in folders),
            *(f"-l{name}" for name in extension.libraries), *extension.extra_link_args,
        ],
        check=True,
    )  # fmt: skip
    one = 'extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n'
    subprocess.run(
        ["g++", "-x", "c++", "-", "-shared", "-fPIC", "-o", stub], input=one, text=True, check=True
    )
    run = subprocess.run(
        [sys.executable, "-c", LOAD, stub, library],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    registered = dict(line.split() for line in run.stdout.splitlines())
    assert registered.pop("residual") == "False"
    assert set(registered.values()) == {"True"}


def test_the_table_knows_what_the_library_has():
    text = "".join(source.read_text() for source in KERNELS)
    assert set(re.findall(r'm\.impl\("(\w+)"', text)) == set(_backends._NATIVE_ON_CUDA)


def test_what_is_not_measured_is_not_taken_by_itself():
    for op in _backends._NATIVE_ON_CUDA:
        assert _backends._table[op, "native"].automatic == ("cpu",)


@pytest.fixture
def with_cuda(monkeypatch):
    """As if this torch had CUDA and the library were not there."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_native, "reason", lambda: None)
    monkeypatch.setattr(_native, "_places", lambda name: [])
    _native.cuda_reason.cache_clear()
    yield
    _native.cuda_reason.cache_clear()


@pytest.mark.usefixtures("with_cuda")
def test_a_library_that_was_not_built_says_what_it_takes():
    assert "it takes nvcc" in _native.cuda_reason()
    with (
        fastvq.use_backend("native"),
        pytest.raises(RuntimeError, match="cannot run nearest on device 'cuda': it was not built"),
    ):
        _backends.chosen("nearest", "cuda")


@pytest.mark.usefixtures("with_cuda")
def test_an_op_without_a_kernel_is_refused():
    with (
        fastvq.use_backend("native"),
        pytest.raises(RuntimeError, match="residual on device 'cuda': its kernels for cuda are"),
    ):
        _backends.chosen("residual", "cuda")


@pytest.mark.skipif(_native.reason() is not None, reason="the status is that of the library")
def test_backends_say_what_becomes_of_cuda():
    (native,) = (status for status in fastvq.backends() if status.name == "native")
    if torch.version.cuda is None:
        assert "for cuda: this torch is built without CUDA" in native.detail
    else:
        assert "for cuda: " in native.detail
