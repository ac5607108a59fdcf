# SPDX-License-Identifier: Apache-2.0
"""What of the extension can be built here; everything declarative is in pyproject.toml.

``FASTVQ_EXTENSION=0`` builds no extension, ``FASTVQ_EXTENSION=require`` makes a missing one an
error. The kernels for the CPU, once tried, must compile. Those for CUDA are built where torch has
CUDA and nvcc is there, and are left out if they do not compile; ``FASTVQ_CUDA=0`` builds none,
``FASTVQ_CUDA=require`` builds them against any torch and makes every lack of them an error.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

from setuptools import Extension, setup

FLAGS = [
    "-O3",
    "-g0",
    "-std=c++20",
    "-fvisibility=hidden",
    "-fno-math-errno",
    # the oldest torch that the binary serves; torch itself names the oldest Python
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
]
CUDA = "fastvq._C_cuda"
# a binary of the first of a generation runs on all of it; the last is also kept as PTX, which
# those to come compile for themselves
ARCHITECTURES = (80, 90, 100, 120)


class Machine(NamedTuple):
    """What a build depends on; ``torch`` is ``torch.utils.cpp_extension``."""

    request: str
    cuda_request: str
    torch: Any
    torch_missing: str
    torch_cuda: str | None
    nvcc: str | None
    compiler: str
    compiler_found: bool
    python_headers: bool
    stable_abi: bool
    platform: str
    sources: list[str]
    cuda_sources: list[str]


def plan(machine: Machine) -> tuple[list[Extension], list[str]]:
    """The extensions to build, and one line for each that is not."""
    for name, value in (
        ("FASTVQ_EXTENSION", machine.request),
        ("FASTVQ_CUDA", machine.cuda_request),
    ):
        if value not in ("", "0", "require"):
            raise SystemExit(f"{name} must be 0 or require, got {value!r}")
    extensions, reasons = [], []
    missing = _missing_for_cpu(machine)
    missing_for_cuda = _missing_for_cuda(machine) if missing is None else "it needs fastvq._C"
    if missing is None:
        extensions.append(
            machine.torch.CppExtension(
                "fastvq._C",
                sources=machine.sources,
                extra_compile_args=FLAGS,
                py_limited_api=True,
            )
        )
    else:
        reasons.append(f"fastvq._C (kernels for the CPU) is not built: {missing}")
        _refuse("FASTVQ_EXTENSION", machine.request == "require", reasons[-1])
    if missing_for_cuda is None:
        extensions.append(_cuda_extension(machine))
    else:
        reasons.append(f"{CUDA} (kernels for NVIDIA GPUs) is not built: {missing_for_cuda}")
        _refuse(*_cuda_required(machine), reasons[-1])
    return extensions, reasons


def _refuse(variable: str, required: bool, reason: str) -> None:
    if required:
        raise SystemExit(f"{variable}=require: {reason}")


def _missing_for_cpu(machine: Machine) -> str | None:
    if machine.request == "0":
        return "FASTVQ_EXTENSION=0"
    if machine.platform == "win32":
        return "its sources are for GCC and Clang, not for MSVC"
    if not machine.stable_abi:
        return "a free-threaded Python has no stable ABI"
    if machine.torch is None:
        return machine.torch_missing
    if not machine.compiler_found:
        return f"no C++ compiler, {machine.compiler!r} was not found (CXX names another)"
    if not machine.python_headers:
        return "Python.h was not found (Debian, Ubuntu: apt install python3-dev)"
    return None


def _missing_for_cuda(machine: Machine) -> str | None:
    if machine.cuda_request == "0":
        return "FASTVQ_CUDA=0"
    if machine.torch_cuda is None and machine.cuda_request != "require":
        return "this torch is built without CUDA"
    if machine.nvcc is None:
        return "nvcc was not found on the PATH nor in CUDA_HOME"
    return None


def _cuda_required(machine: Machine) -> tuple[str, bool]:
    """The variable that makes a missing CUDA extension an error, and whether it does."""
    if machine.cuda_request:
        return "FASTVQ_CUDA", machine.cuda_request == "require"
    return "FASTVQ_EXTENSION", machine.request == "require" and machine.torch_cuda is not None


def _cuda_extension(machine: Machine) -> Extension:
    """``module.cpp``, to be linked with what nvcc makes of the other sources."""
    return machine.torch.CppExtension(
        CUDA,
        sources=[source for source in machine.cuda_sources if source.endswith(".cpp")],
        depends=[source for source in machine.cuda_sources if source.endswith(".cu")],
        extra_compile_args=FLAGS,
        extra_link_args=[
            # the runtime comes along, so that the toolkit need not be torch's; torch's own CUDA
            # library is reached through libtorch, which has it where torch has CUDA
            *("-lcudart_static", "-ldl", "-lrt", "-lpthread", "-Wl,--exclude-libs,ALL"),
            *("-Wl,--no-as-needed", "-ltorch"),
        ],
        py_limited_api=True,
        optional=not _cuda_required(machine)[1],
    )


def nvcc_command(
    nvcc: str, source: str, target: str, includes: list[str], architectures: tuple[int, ...]
) -> list[str]:
    """The command that compiles one CUDA source for some architectures, and PTX of the last."""
    codes = [(f"compute_{a}", f"sm_{a}") for a in architectures]
    codes.append((codes[-1][0], codes[-1][0]))
    return [
        *(nvcc, "-c", source, "-o", target, "-O3", "-std=c++20", "-DUSE_CUDA", "--threads=0"),
        *(flag for flag in FLAGS if flag.startswith("-D")),
        "-Xcompiler=-fPIC,-fvisibility=hidden",
        "-Icsrc",
        *(part for folder in includes for part in ("-isystem", folder)),
        *(f"-gencode=arch={virtual},code={real}" for virtual, real in codes),
    ]


def supported(nvcc: str) -> tuple[int, ...]:
    """The architectures of ARCHITECTURES that this nvcc knows."""
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    return tuple(a for a in ARCHITECTURES if f"sm_{a}" in known.stdout.split())


def library_folders(nvcc: str) -> list[str]:
    """Where this nvcc links from, as it says itself: it may be a script, or a distribution's."""
    told = subprocess.run(
        [nvcc, "--dryrun", "-c", "none.cu"], capture_output=True, text=True, check=True
    )
    return re.findall(r'-L([^"\s]+)', next(re.finditer("LIBRARIES=.*", told.stderr))[0])


def builder(machine: Machine) -> type:
    """torch's ``build_ext``, which here also runs nvcc; a failure of the CUDA part stays there."""

    class Build(machine.torch.BuildExtension):
        def build_extension(self, ext: Extension) -> None:
            if ext.name != CUDA:
                super().build_extension(ext)
                return
            try:
                ext.extra_objects = [self._compile_kernels(s, ext) for s in ext.depends]
                ext.library_dirs += library_folders(machine.nvcc)
                super().build_extension(ext)
            except (subprocess.CalledProcessError, RuntimeError) as error:
                if not ext.optional:
                    raise
                print(f"{CUDA} (kernels for NVIDIA GPUs) is not built: {error}", file=sys.stderr)

        def _compile_kernels(self, source: str, ext: Extension) -> str:
            target = Path(self.build_temp, source).with_suffix(".o")
            target.parent.mkdir(parents=True, exist_ok=True)
            known = supported(machine.nvcc)
            command = nvcc_command(machine.nvcc, source, str(target), ext.include_dirs, known)
            subprocess.run(command, check=True)
            return str(target)

    return Build


def look() -> Machine:
    """The machine and the environment that this build runs in."""
    request = os.environ.get("FASTVQ_EXTENSION", "")
    cpp_extension, torch_missing, torch_cuda = _torch() if request != "0" else (None, "", None)
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    return Machine(
        request=request,
        cuda_request=os.environ.get("FASTVQ_CUDA", ""),
        torch=cpp_extension,
        torch_missing=torch_missing,
        torch_cuda=torch_cuda,
        nvcc=find_nvcc(),
        compiler=compiler,
        compiler_found=shutil.which(shlex.split(compiler)[0]) is not None,
        python_headers=Path(sysconfig.get_path("include"), "Python.h").exists(),
        stable_abi=not sysconfig.get_config_var("Py_GIL_DISABLED"),
        platform=sys.platform,
        sources=sources(Path(__file__).parent),
        cuda_sources=cuda_sources(Path(__file__).parent),
    )


def sources(root: Path) -> list[str]:
    """The C++ files of the extension, as paths below ``root``."""
    kernels = sorted((root / "csrc" / "cpu").glob("*.cpp"))
    return ["csrc/registration.cpp", *(str(path.relative_to(root)) for path in kernels)]


def cuda_sources(root: Path) -> list[str]:
    """The files of the CUDA extension, as paths below ``root``."""
    folder = root / "csrc" / "cuda"
    files = [*sorted(folder.glob("*.cpp")), *sorted(folder.glob("*.cu"))]
    return [str(path.relative_to(root)) for path in files]


def find_nvcc() -> str | None:
    """The CUDA compiler: of CUDA_HOME, else of the PATH, else where NVIDIA installs it."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    named = [os.path.join(home, "bin") for home in homes if home]
    search = [*named, os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(search))


def _torch() -> tuple[Any, str, str | None]:
    """``torch.utils.cpp_extension``, why there is none, and the version of torch's CUDA."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        return None, f"torch cannot be imported by the build: {error}", None
    release = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if release < (2, 10):
        return None, f"it needs torch 2.10 or newer, got {torch.__version__}", None
    return cpp_extension, "", torch.version.cuda


def main() -> None:
    """Plans, says what is left out, and builds."""
    if {"egg_info", "dist_info", "sdist"} & set(sys.argv):
        setup()
        return
    machine = look()
    extensions, reasons = plan(machine)
    for reason in reasons:
        print(reason, file=sys.stderr)
    if not extensions:
        setup()
        return
    setup(
        ext_modules=extensions,
        cmdclass={"build_ext": builder(machine)},
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )


if __name__ == "__main__":
    main()
