# SPDX-License-Identifier: Apache-2.0
"""A quantizer of fastvq behind the interface and the checkpoints of another library."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastvq.compat.checkpoints import from_fastvq, to_fastvq


class Adapter(nn.Module):
    """Holds the quantizer; ``state_dict`` and ``load_state_dict`` speak the library's layout.

    Derive, name the layout as :func:`fastvq.compat.to_fastvq` does, and define the methods. Buffers
    of the adapter itself are saved and loaded by their own names.
    """

    layout: str
    quantizer: nn.Module

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.register_state_dict_post_hook(_write)
        self.register_load_state_dict_pre_hook(_read)


def _write(module: Any, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    for name in module.quantizer.state_dict():
        del state_dict[f"{prefix}quantizer.{name}"]
    state_dict.update(from_fastvq(module.layout, module.quantizer, prefix))


def _read(
    module: Any,
    state_dict: dict[str, Tensor],
    prefix: str,
    _metadata: object,
    _strict: bool,
    _missing: list[str],
    _unexpected: list[str],
    errors: list[str],
) -> None:
    own = {f"{prefix}{name}" for name, _ in module.named_buffers(recurse=False)}
    theirs = {name: tensor for name, tensor in state_dict.items() if name not in own}
    try:
        converted = to_fastvq(module.layout, theirs, prefix)
    except ValueError as error:
        errors.append(str(error))
        return
    for name in [name for name in theirs if name.startswith(prefix)]:
        del state_dict[name]
    for name, tensor in converted.state_dict.items():
        state_dict[f"{prefix}quantizer.{name}"] = tensor
