# SPDX-License-Identifier: Apache-2.0
"""``fastvq doctor``: what runs on this machine, and what is absent and why."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

import fastvq

# distribution -> what it is needed for
_OPTIONAL = {
    "triton": "the GPU kernels",
    "safetensors": "saving and loading models",
    "typer": "every command but this one",
    "tqdm": "training",
    "pillow": "reading images and drawing pictures",
    "matplotlib": "the curves of the demo",
    "scikit-learn": "digits",
    "scikit-image": "photos",
    "scipy": "reading of sound",
}


def diagnosis() -> str:
    """Versions, devices, backends and optional packages as lines of text."""
    cuda = torch.version.cuda or "none"
    lines = [
        f"fastvq {fastvq.__version__}, torch {torch.__version__} (CUDA {cuda}), "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        f"threads: {torch.get_num_threads()}",
        f"devices: {', '.join(['cpu', *_cuda_devices()])}",
        "",
        "backends",
        *(f"  {status}" for status in fastvq.backends()),
        "",
        "optional packages",
        *(f"  {_package(name, purpose)}" for name, purpose in _OPTIONAL.items()),
    ]
    return "\n".join(lines)


def _cuda_devices() -> list[str]:
    return [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]


def _package(name: str, purpose: str) -> str:
    try:
        return f"{name:<13} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        extra = "" if name == "triton" else ' (pip install "fastvq[train]")'
        return f"{name:<13} absent: needed for {purpose}{extra}"
