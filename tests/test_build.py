# SPDX-License-Identifier: Apache-2.0
"""What is built where, which torch it is built against, and what the built library leans on."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.dist import Distribution

ROOT = Path(__file__).resolve().parent.parent


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup = _load(ROOT / "setup.py")
backend = _load(ROOT / "build_backend" / "fastvq_build.py")

COMPLETE = setup.Machine(
    request="",
    cuda_request="",
    torch=SimpleNamespace(CppExtension=Extension, BuildExtension=build_ext),
    torch_missing="",
    torch_cuda="13.0",
    nvcc="/usr/local/cuda/bin/nvcc",
    compiler="g++",
    compiler_found=True,
    python_headers=True,
    stable_abi=True,
    platform="linux",
    sources=["csrc/registration.cpp", "csrc/cpu/nearest.cpp"],
    cuda_sources=["csrc/cuda/module.cpp", "csrc/cuda/nearest.cu"],
)

LACKING = {
    "switched off": ({"request": "0"}, "FASTVQ_EXTENSION=0"),
    "torch": ({"torch": None, "torch_missing": "no torch here"}, "no torch here"),
    "compiler": ({"compiler_found": False, "compiler": "g++-99"}, "'g++-99' was not found"),
    "headers": ({"python_headers": False}, "Python.h was not found"),
    "stable abi": ({"stable_abi": False}, "free-threaded"),
    "platform": ({"platform": "win32"}, "MSVC"),
}
LACKING_FOR_CUDA = {
    "switched off": ({"cuda_request": "0"}, "FASTVQ_CUDA=0"),
    "a torch with CUDA": ({"torch_cuda": None}, "this torch is built without CUDA"),
    "nvcc": ({"nvcc": None}, "nvcc was not found"),
}


def test_a_complete_machine_builds_the_extensions():
    (extension, cuda), reasons = setup.plan(COMPLETE)
    assert reasons == []
    assert extension.name == "fastvq._C"
    assert extension.sources == COMPLETE.sources
    assert extension.py_limited_api
    assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in extension.extra_compile_args
    # a binary is built on one machine and runs on many
    assert not any(flag.startswith("-march") for flag in extension.extra_compile_args)
    assert cuda.name == "fastvq._C_cuda"
    assert [*cuda.sources, *cuda.depends] == COMPLETE.cuda_sources
    assert cuda.py_limited_api
    assert cuda.optional


@pytest.mark.parametrize(("changed", "said"), LACKING.values(), ids=LACKING)
def test_what_is_lacking_is_said_in_one_line(changed, said):
    extensions, reasons = setup.plan(COMPLETE._replace(**changed))
    assert extensions == []
    reason, of_cuda = reasons
    assert reason.startswith("fastvq._C (kernels for the CPU) is not built: ")
    assert said in reason
    assert of_cuda.endswith("is not built: it needs fastvq._C")
    assert "\n" not in reason + of_cuda


@pytest.mark.parametrize(("changed", "said"), LACKING_FOR_CUDA.values(), ids=LACKING_FOR_CUDA)
def test_what_cuda_lacks_leaves_the_cpu_its_kernels(changed, said):
    (extension,), (reason,) = setup.plan(COMPLETE._replace(**changed))
    assert extension.name == "fastvq._C"
    assert reason.startswith("fastvq._C_cuda (kernels for NVIDIA GPUs) is not built: ")
    assert said in reason
    assert "\n" not in reason


@pytest.mark.parametrize("lacking", ["torch", "compiler", "headers", "stable abi", "platform"])
def test_require_turns_a_reason_into_an_error(lacking):
    changed, said = LACKING[lacking]
    with pytest.raises(SystemExit, match=re.escape(said)):
        setup.plan(COMPLETE._replace(request="require", **changed))


def test_require_is_content_with_a_complete_machine():
    extensions, reasons = setup.plan(COMPLETE._replace(request="require"))
    assert not any(extension.optional for extension in extensions)
    assert len(extensions) == 2
    assert reasons == []


def test_require_asks_no_cuda_of_a_torch_without_it():
    for nvcc in (None, "nvcc"):
        machine = COMPLETE._replace(request="require", torch_cuda=None, nvcc=nvcc)
        assert len(setup.plan(machine)[0]) == 1
    without = COMPLETE._replace(request="require", nvcc=None)
    with pytest.raises(SystemExit, match=r"FASTVQ_EXTENSION=require: .*nvcc was not found"):
        setup.plan(without)
    assert len(setup.plan(without._replace(cuda_request="0"))[0]) == 1


def test_cuda_can_be_required_of_any_torch():
    machine = COMPLETE._replace(cuda_request="require", torch_cuda=None)
    _, cuda = setup.plan(machine)[0]
    assert not cuda.optional
    with pytest.raises(SystemExit, match=r"FASTVQ_CUDA=require: .*nvcc was not found"):
        setup.plan(machine._replace(nvcc=None))


@pytest.mark.parametrize(
    ("field", "name"), [("request", "FASTVQ_EXTENSION"), ("cuda_request", "FASTVQ_CUDA")]
)
def test_an_unknown_request_is_refused(field, name):
    with pytest.raises(SystemExit, match=f"{name} must be 0 or require, got 'yes'"):
        setup.plan(COMPLETE._replace(**{field: "yes"}))


@pytest.fixture
def nvcc_that_fails(tmp_path) -> str:
    """Knows one architecture and compiles nothing."""
    script = tmp_path / "nvcc"
    script.write_text('#!/bin/sh\n[ "$1" = --list-gpu-code ] && echo sm_90 || exit 3\n')
    script.chmod(0o755)
    return str(script)


@pytest.mark.skipif(sys.platform == "win32", reason="the compiler is a shell script")
def test_cuda_that_does_not_compile_fails_alone(nvcc_that_fails, tmp_path, capfd):
    machine = COMPLETE._replace(nvcc=nvcc_that_fails)
    build = setup.builder(machine)(Distribution())
    build.build_temp = str(tmp_path)
    _, cuda = setup.plan(machine)[0]
    build.build_extension(cuda)
    assert "fastvq._C_cuda (kernels for NVIDIA GPUs) is not built: " in capfd.readouterr().err
    cuda.optional = False
    with pytest.raises(subprocess.CalledProcessError):
        build.build_extension(cuda)


def test_the_kernels_are_compiled_for_each_generation_and_for_those_to_come():
    command = setup.nvcc_command("nvcc", "a.cu", "a.o", ["/torch"], (80, 90))
    assert [flag for flag in command if flag.startswith("-gencode")] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in command


def test_the_sources_exist():
    sources = [ROOT / source for source in (*setup.sources(ROOT), *setup.cuda_sources(ROOT))]
    assert {source.parent.name for source in sources} == {"csrc", "cpu", "cuda"}
    assert all(source.is_file() for source in sources)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A site folder, the only one that the build backend sees."""
    monkeypatch.setattr(backend, "_folders", lambda: [str(tmp_path)])
    monkeypatch.delenv("FASTVQ_EXTENSION", raising=False)
    return tmp_path


def _install_torch(folder: Path, version: str) -> None:
    info = folder / f"torch-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "3.0.0a1"])
def test_an_installed_torch_is_used_and_no_other_asked_for(folder, monkeypatch, version):
    _install_torch(folder, version)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert backend.get_requires_for_build_editable() == []
    assert backend.get_requires_for_build_wheel() == []
    backend._reach_torch()
    assert sys.path[-1] == str(folder)


@pytest.mark.parametrize("version", [None, "1.13.1", "2.9.1"])
def test_without_a_usable_torch_the_pinned_one_is_asked_for(folder, version):
    if version is not None:
        _install_torch(folder, version)
    (requirement,) = backend.get_requires_for_build_wheel()
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", requirement)
    assert requirement in (ROOT / "constraints.txt").read_text().splitlines()


def test_no_extension_needs_no_torch(folder, monkeypatch):
    monkeypatch.setenv("FASTVQ_EXTENSION", "0")
    assert backend.get_requires_for_build_wheel() == []


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads /proc")
def test_the_environment_of_the_installer_is_found():
    # the child stands for an isolated build, this process for the installer that started it
    script = f"import sys; sys.path[:0] = {[str(ROOT / 'build_backend')]}; import fastvq_build as b"
    answer = subprocess.run(
        [sys.executable, "-c", f"{script}; print(*b._folders_of_parent(), sep=chr(10))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert sysconfig.get_path("purelib") in answer.stdout.splitlines()


@pytest.fixture(scope="module")
def library() -> Path:
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        for path in (ROOT / "fastvq").glob(f"_C{suffix}"):
            return path
    pytest.skip("the extension is not built in the source tree")


def test_the_library_serves_many_versions_of_python(library):
    assert ".abi3." in library.name


def test_the_library_leans_on_the_stable_interface_of_torch_alone(library):
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    table = subprocess.run(
        ["nm", "-D", "--undefined-only", "--demangle", library],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "aoti_torch_" in table or "torch_library_" in table  # nm did read the symbols
    # C++ symbols of libtorch change with its version; the shims are plain C
    unstable = [line for line in table.splitlines() if re.search(r"\b(at|c10|torch)::", line)]
    assert unstable == []
