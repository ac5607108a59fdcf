# SPDX-License-Identifier: Apache-2.0
"""The table of quantizers that a config may name: what each is made of and what it can be told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from fastvq import _checks
from fastvq.nn import (
    BSQ,
    FSQ,
    IBQ,
    LFQ,
    GroupedResidualVQ,
    GumbelVQ,
    ProjectedResidualVQ,
    QINCo,
    Quantized,
    ResidualFSQ,
    ResidualLFQ,
    ResidualSimVQ,
    ResidualVQ,
    SimVQ,
    VectorQuantizer,
)

if TYPE_CHECKING:
    from fastvq.models.quantizers import QuantizerConfig

# vectors in, `Quantized` out; `encode` and `decode` are its halves
Quantizer = (
    VectorQuantizer
    | ResidualVQ
    | GroupedResidualVQ
    | ProjectedResidualVQ
    | QINCo
    | SimVQ
    | ResidualSimVQ
    | FSQ
    | ResidualFSQ
    | LFQ
    | ResidualLFQ
    | IBQ
    | GumbelVQ
)

# settings that a quantizer takes as they are, and its names for them
ARGUMENTS = {
    "projected_dim": "codebook_dim",
    "groups": "groups",
    "fsq_levels": "levels",
    "commitment_weight": "commitment_weight",
    "gradient": "gradient",
}
# all that are None unless given, and those that a quantizer which has them cannot do without
SETTINGS = ("codebook_dim", *ARGUMENTS, "learning", "decay")
NEEDED = ("groups", "fsq_levels")

Make = Callable[["QuantizerConfig", dict[str, Any]], Quantizer]


class Offer(NamedTuple):
    """A quantizer that a config may name.

    Attributes:
        make: the quantizer of a config, given the keyword arguments that `make_quantizer` found.
        settings: which of `SETTINGS` it has.
        least: codes of a position, at least.
        most: codes of a position, at most; ``None`` for any number.
    """

    make: Make
    settings: tuple[str, ...] = ()
    least: int = 1
    most: int | None = 1


class _Groups(GroupedResidualVQ):
    """With the codes of a position in one row, group after group: indices ``[..., G Q]``."""

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, levels: int | None = None
    ) -> Quantized:
        out = super().forward(x, mask, levels=levels)
        return out._replace(indices=out.indices.flatten(-2))

    def encode(self, x: Tensor, levels: int | None = None, beam: int = 1) -> Tensor:
        return super().encode(x, levels, beam).flatten(-2)

    def decode(self, indices: Tensor) -> Tensor:
        if indices.ndim == 0 or indices.shape[-1] % self.groups:
            raise ValueError(
                f"indices must be [..., G] with G a multiple of groups = {self.groups}, "
                f"got {_checks.shape(indices)}"
            )
        return super().decode(indices.unflatten(-1, (self.groups, -1)))


def _single(kind: Callable[..., Quantizer]) -> Make:
    return lambda config, options: kind(config.code_channels, config.codebook_size, **options)


def _row(kind: Callable[..., Quantizer]) -> Make:
    return lambda config, options: kind(
        config.code_channels, config.codebook_size, config.codebooks, **options
    )


def _heads(config: QuantizerConfig, options: dict[str, Any]) -> Quantizer:
    return _single(VectorQuantizer)(config, {"heads": config.codebooks, **options})


def _grouped(config: QuantizerConfig, options: dict[str, Any]) -> Quantizer:
    levels = config.codebooks // options["groups"]
    return _Groups(config.code_channels, config.codebook_size, levels, **options)


_COMMITTED = ("codebook_dim", "commitment_weight")
_LEARNED = (*_COMMITTED, "learning", "decay", "gradient")
OFFERS = {
    "vq": Offer(_heads, _LEARNED, most=None),
    "residual": Offer(_row(ResidualVQ), _LEARNED, 2, None),
    "grouped_residual": Offer(_grouped, (*_LEARNED, "groups"), 2, None),
    "projected_residual": Offer(
        _row(ProjectedResidualVQ), (*_LEARNED, "projected_dim"), 2, None
    ),
    "qinco": Offer(_row(QINCo), _COMMITTED, 2, None),
    "simvq": Offer(_single(SimVQ), (*_COMMITTED, "gradient")),
    "residual_simvq": Offer(_row(ResidualSimVQ), _COMMITTED, 2, None),
    "fsq": Offer(lambda config, options: FSQ(**options), ("fsq_levels",)),
    "residual_fsq": Offer(
        lambda config, options: ResidualFSQ(num_quantizers=config.codebooks, **options),
        ("fsq_levels",), 2, None,
    ),
    "lfq": Offer(
        lambda config, options: LFQ(config.codebook_size, **options), ("commitment_weight",)
    ),
    "residual_lfq": Offer(
        lambda config, options: ResidualLFQ(config.codebook_size, config.codebooks, **options),
        ("commitment_weight",), 2, None,
    ),
    "bsq": Offer(
        lambda config, options: BSQ(config.codebook_size, **options), ("commitment_weight",)
    ),
    "ibq": Offer(_single(IBQ), _COMMITTED),
    "gumbel": Offer(_single(GumbelVQ), ("codebook_dim",)),
}  # fmt: skip
