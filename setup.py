# SPDX-License-Identifier: Apache-2.0
"""What of the extension can be built here; everything declarative is in pyproject.toml.

``FASTVQ_EXTENSION=0`` builds no extension, ``FASTVQ_EXTENSION=require`` makes a missing one an
error. What is tried and does not compile stops the build.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
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


class Machine(NamedTuple):
    """What a build depends on; ``torch`` is ``torch.utils.cpp_extension``."""

    request: str
    torch: Any
    torch_missing: str
    compiler: str
    compiler_found: bool
    python_headers: bool
    stable_abi: bool
    platform: str
    sources: list[str]


def plan(machine: Machine) -> tuple[list[Extension], list[str]]:
    """The extensions to build, and one line for each that is not."""
    if machine.request not in ("", "0", "require"):
        raise SystemExit(f"FASTVQ_EXTENSION must be 0 or require, got {machine.request!r}")
    missing = _missing_for_cpu(machine)
    if missing is None:
        cpu = machine.torch.CppExtension(
            "fastvq._C",
            sources=machine.sources,
            extra_compile_args=FLAGS,
            py_limited_api=True,
        )
        return [cpu], []
    reason = f"fastvq._C (kernels for the CPU) is not built: {missing}"
    if machine.request == "require":
        raise SystemExit(f"FASTVQ_EXTENSION=require: {reason}")
    return [], [reason]


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


def look() -> Machine:
    """The machine and the environment that this build runs in."""
    request = os.environ.get("FASTVQ_EXTENSION", "")
    cpp_extension, torch_missing = _torch() if request != "0" else (None, "")
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    return Machine(
        request=request,
        torch=cpp_extension,
        torch_missing=torch_missing,
        compiler=compiler,
        compiler_found=shutil.which(shlex.split(compiler)[0]) is not None,
        python_headers=Path(sysconfig.get_path("include"), "Python.h").exists(),
        stable_abi=not sysconfig.get_config_var("Py_GIL_DISABLED"),
        platform=sys.platform,
        sources=sources(Path(__file__).parent),
    )


def sources(root: Path) -> list[str]:
    """The C++ files of the extension, as paths below ``root``."""
    kernels = sorted((root / "csrc" / "cpu").glob("*.cpp"))
    return ["csrc/registration.cpp", *(str(path.relative_to(root)) for path in kernels)]


def _torch() -> tuple[Any, str]:
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        return None, f"torch cannot be imported by the build: {error}"
    release = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if release < (2, 10):
        return None, f"it needs torch 2.10 or newer, got {torch.__version__}"
    return cpp_extension, ""


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
        cmdclass={"build_ext": machine.torch.BuildExtension},
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )


if __name__ == "__main__":
    main()
