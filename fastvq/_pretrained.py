# SPDX-License-Identifier: Apache-2.0
"""A trained module on disk: a folder of ``config.json`` and ``model.safetensors``.

Nothing in it is unpickled. Both files are written beside their final names and renamed, the config
last, so that a folder with a config is whole. Needs safetensors (the ``train`` extra).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastvq import _checks, _config, _files

C = TypeVar("C")

FORMAT_VERSION = 1
CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"


def save(folder: str | os.PathLike[str], module: nn.Module, config: Any) -> None:
    """Writes ``config`` (a dataclass) and the state of ``module`` into ``folder``."""
    folder = Path(folder)
    save_tensors(folder / WEIGHTS_NAME, module.state_dict())
    _files.write_json(
        folder / CONFIG_NAME,
        {
            "format_version": FORMAT_VERSION,
            "kind": type(module).__name__,
            "config": _config.to_dict(config),
        },
    )


def load_config(folder: str | os.PathLike[str], kind: str, config: type[C]) -> C:
    """Reads the config of a ``kind`` (a class name) saved in ``folder``.

    Raises:
        FileNotFoundError: the folder holds no config.
        ValueError: another kind or format version, or a key that ``config`` has not.
        TypeError: a value of another type than its field's.
    """
    path = Path(folder) / CONFIG_NAME
    document = _files.read_json(path)
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(f"{path}: format_version must be {FORMAT_VERSION}, got {version!r}")
    if document.get("kind") != kind:
        raise ValueError(f"{path}: kind must be {kind}, got {document.get('kind')!r}")
    return _config.from_dict(config, document.get("config", {}), where=str(path))


def load_weights(folder: str | os.PathLike[str], module: nn.Module) -> None:
    """Fills ``module`` with the tensors of ``folder``, strictly.

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: a tensor is missing, unknown, or of another shape or dtype; expected and got.
    """
    path = Path(folder) / WEIGHTS_NAME
    load_state(module, load_tensors(path), where=str(path))


def load_state(module: nn.Module, tensors: Mapping[str, Tensor], *, where: str) -> None:
    """``load_state_dict``, but nothing is changed unless names, shapes and dtypes all agree."""
    own = module.state_dict()
    absent = sorted(own.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - own.keys())
    if absent or unknown:
        raise ValueError(
            f"{where}: tensors do not fit {type(module).__name__}: "
            f"missing {absent or 'none'}, unknown {unknown or 'none'}"
        )
    for name, tensor in own.items():
        wanted, got = _described(tensor), _described(tensors[name])
        if wanted != got:
            raise ValueError(f"{where}: {name} must be {wanted}, got {got}")
    module.load_state_dict(dict(tensors))


def _described(tensor: Tensor) -> str:
    return f"{_checks.dtype_name(tensor)} {_checks.shape(tensor)}"


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the module's state, as 64 hex digits.

    Equal for equal weights on any device; what ties a file of codes to the model that made it.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        data = tensor.detach().cpu().contiguous()
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """One safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    # a copy of its own for each tensor: the format refuses memory that two names share
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with _files.replacing(path) as temporary:
        save_file(owned, temporary)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no safetensors file, or is cut short.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
