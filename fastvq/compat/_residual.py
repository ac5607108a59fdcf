# SPDX-License-Identifier: Apache-2.0
"""All levels of a residual quantizer of another library in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fastvq import ops
from fastvq.compat._fast import Fast, Part


class FastResidual(Fast):
    """What residual quantizers share whose levels are codebooks of one shape, with nothing between.

    Derive, name the attribute that holds the levels and the class of their codebooks, and define
    the methods that are replaced. Each level is a module with ``codebook`` and nothing else.
    """

    levels_name = "layers"
    fast_codebook: type[Fast]

    @classmethod
    def unfit(cls, module: nn.Module) -> str | None:
        """Why the levels cannot be searched in one call."""
        for i, level in enumerate(getattr(module, cls.levels_name, ())):
            reason = cls._level_unfit(level, type(module).__module__)
            if reason is not None:
                return f"level {i}: {reason}"
        return super().unfit(module)

    @classmethod
    def _level_unfit(cls, level: nn.Module, library: str) -> str | None:
        codebook = getattr(level, "codebook", None)
        if dict(level.named_children()) != {"codebook": codebook}:
            return "does more than look up a codebook"
        assert isinstance(codebook, nn.Module)
        parts = (level,) if isinstance(codebook, Fast) else (level, codebook)
        for part in parts:
            if type(part).__module__ != library:
                return f"{type(part).__name__} is of an unknown class"
        for part in (level, codebook):
            for name in ("encode", "decode"):
                if name in vars(part):
                    return f"{name} is replaced on the instance"
        return (
            None if isinstance(codebook, cls.fast_codebook) else cls.fast_codebook.unfit(codebook)
        )

    def _peers_encode(self, x: Tensor, amount: float | None) -> Tensor:
        """What the peer's own loop over the levels answers, asked in its own way how many."""
        # the peer's class stands behind this one only where `accelerate` has joined the two
        codes: Tensor = super().encode(x, amount)  # type: ignore[misc]
        return codes

    @classmethod
    def parts(cls, module: nn.Module) -> list[Part]:
        """The quantizer and its codebooks, which answer where one call cannot."""
        levels = enumerate(getattr(module, cls.levels_name))
        books = [
            Part(f"{cls.levels_name}.{i}.codebook", level.codebook, cls.fast_codebook)
            for i, level in levels
        ]
        return [*super().parts(module), *books]


def stackable(codebooks: Iterable[Tensor]) -> bool:
    """Whether there are codebooks, and they are of one shape, dtype and device."""
    return len({(book.shape, book.dtype, book.device) for book in codebooks}) == 1


def encode(x: Tensor, codebooks: Tensor | Sequence[Tensor]) -> Tensor:
    """Indices ``[Q, B, T]`` of x ``[B, D, T]`` by Q codebooks ``[K, D]``, each after the other."""
    stacked = codebooks if isinstance(codebooks, Tensor) else torch.stack(list(codebooks))
    indices = ops.residual(x.detach().transpose(1, 2), stacked).indices  # [B, T, Q]
    return indices.permute(2, 0, 1).contiguous()
