# SPDX-License-Identifier: Apache-2.0
"""The build backend: setuptools, told which torch to compile against.

The extension needs the headers of a torch and is bound to none (stable ABI), so a torch that the
target environment holds is used where it lies. Only where there is none does the build ask for
one of its own, pinned, so that an isolated build never fetches a second torch.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import site
import subprocess
import sys
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

ROOT = Path(__file__).resolve().parent.parent
OLDEST_TORCH = (2, 10)


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    if os.environ.get("FASTVQ_EXTENSION") == "0" or _torch_folder() is not None:
        return []
    return [_pinned_torch()]


get_requires_for_build_editable = get_requires_for_build_wheel


def build_wheel(
    wheel_directory: str,
    config_settings: dict | None = None,
    metadata_directory: str | None = None,
) -> str:
    _reach_torch()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: dict | None = None,
    metadata_directory: str | None = None,
) -> str:
    _reach_torch()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def _reach_torch() -> None:
    folder = _torch_folder()
    if folder is not None and folder not in sys.path:
        # last, so that the build's own requirements win over the environment's
        sys.path.append(folder)


def _torch_folder() -> str | None:
    """The folder that holds a torch new enough: of this process, or of the target environment."""
    for folder in _folders():
        for found in importlib.metadata.distributions(name="torch", path=[folder]):
            release = tuple(int(part) for part in re.findall(r"\d+", found.version)[:2])
            if release >= OLDEST_TORCH:
                return folder
    return None


def _folders() -> list[str]:
    return [*sys.path, *site.getsitepackages(), *_folders_of_parent()]


def _folders_of_parent() -> list[str]:
    """The site folders of the Python that started this build, which is the installer's.

    Installers isolate a build by search path (then this interpreter is the target's) or in a
    fresh environment; of the latter, only the parent process still tells what it is for.
    """
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")[0].decode()
    except OSError:
        return []
    outside = [p for p in os.environ["PATH"].split(os.pathsep) if not p.startswith(sys.prefix)]
    python = shutil.which(command, path=os.pathsep.join(outside))
    if python is None or not Path(python).name.startswith("python"):
        return []
    script = "import site, sys; print(*sys.version_info[:2], *site.getsitepackages(), sep=chr(10))"
    answer = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    major_minor, folders = answer.stdout.splitlines()[:2], answer.stdout.splitlines()[2:]
    return folders if major_minor == [str(part) for part in sys.version_info[:2]] else []


def _pinned_torch() -> str:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(pin for pin in pins if pin.startswith("torch=="))
