# SPDX-License-Identifier: Apache-2.0
"""The quantizers of the package by name, as models are configured with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fastvq import _checks
from fastvq.models._offers import ARGUMENTS, NEEDED, OFFERS, SETTINGS, Quantizer
from fastvq.nn import EMA, Gradient

LEARNING = ("ema", "gradient")
QUANTIZERS = tuple(OFFERS)
# those of which diveq moves the codes themselves
_MOVED_BY_DIVEQ = ("vq", "projected_residual")


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    r"""What turns vectors into codes. What a quantizer does not use must be left alone.

    The loss of a model is its reconstruction loss, averaged over the values of the data, plus
    :math:`\beta \lVert z - \operatorname{sg}[c] \rVert^2`, averaged over positions and channels. So
    :math:`\beta` is relative to the reconstruction loss as it is, and 0.25 suits a mean squared
    error of data that fills [0, 1]. Where a source divides the squared error by the variance v of
    the data, as the authors' code does, its 0.25 is ``commitment_weight=0.25 * v`` here. Where it
    sums the log-likelihood over the P values of an example and the commitment over the D channels
    of a code, as equation 3 of the paper does, its 0.25 is ``0.25 * D / P``. To Adam the common
    factor is nothing.

    Attributes:
        quantizer: ``"vq"`` (`VectorQuantizer`), ``"residual"`` (`ResidualVQ`),
            ``"grouped_residual"``, ``"projected_residual"``, ``"qinco"``, ``"simvq"``,
            ``"residual_simvq"``, ``"fsq"``, ``"residual_fsq"``, ``"lfq"``, ``"residual_lfq"``,
            ``"bsq"``, ``"ibq"`` or ``"gumbel"``. What the config does not set is as the class has
            it. `MultiScaleVQ` is none of them, for its codes are grids of many sizes, nor is
            `RandomProjectionQuantizer`, which has no vectors to decode.
        codebook_size: codes K, of each codebook; a power of two for ``lfq``, ``residual_lfq`` and
            ``bsq``, the product of its levels for ``fsq`` and ``residual_fsq``.
        codebooks: G, codes of a position: for ``vq`` the D channels are split into G parts, each
            with a codebook of its own (the paper's CIFAR-10 model has 10); for ``qinco`` and all
            that are residual the levels, at least 2, of all groups together; for others 1.
        codebook_dim: channels D that are quantized, a multiple of G for ``vq`` and of the groups
            for ``grouped_residual``; 16 unless given. ``fsq`` and ``residual_fsq`` have one for
            each of ``fsq_levels``, ``lfq``, ``residual_lfq`` and ``bsq`` one for each bit.
        projected_dim: channels in which each level of ``projected_residual`` searches, 8 unless
            given.
        groups: parts of the channels of ``grouped_residual``, each with G / groups levels. The
            indices are those of the first part, then those of the next.
        fsq_levels: levels of each channel of ``fsq``, of each quantizer of ``residual_fsq``.
        learning: how codebooks follow the encoder: ``"ema"`` (appendix A.1 of the paper) or
            ``"gradient"`` (its equation 3). Unless given, or told by ``decay``, it is ``"ema"``,
            and for ``projected_residual`` ``"gradient"``.
        decay: of the moving averages of ``"ema"``, 0.99 unless given.
        commitment_weight: :math:`\beta`; unless given 0.25, 0.02 for ``lfq``, ``residual_lfq``
            and ``bsq``, and 1 for ``ibq``.
        gradient: how the gradient of the output reaches the encoder: ``"straight_through"`` (the
            default) or ``"rotation"``, of ``vq``, ``simvq``, ``residual``, ``grouped_residual`` and
            ``projected_residual``; or ``"diveq"``, of ``vq`` and ``projected_residual`` where they
            learn by ``"gradient"``, and of ``simvq``.
    """

    quantizer: str = "vq"
    codebook_size: int = 64
    codebooks: int = 1
    codebook_dim: int | None = None
    projected_dim: int | None = None
    groups: int | None = None
    fsq_levels: tuple[int, ...] | None = None
    learning: str | None = None
    decay: float | None = None
    commitment_weight: float | None = None
    gradient: str | None = None

    def __post_init__(self) -> None:
        _checks.one_of("quantizer", self.quantizer, QUANTIZERS)
        for name in ("codebook_size", "codebooks"):
            _checks.positive(name, getattr(self, name))
        for name in ("codebook_dim", "projected_dim", "groups"):
            if getattr(self, name) is not None:
                _checks.positive(name, getattr(self, name))
        if self.learning is not None:
            _checks.one_of("learning", self.learning, LEARNING)
        if self.fsq_levels is not None:
            _check_fsq_levels(self.fsq_levels)
        self._check_settings()
        self._check_codes()
        # its own checks, without memory or random numbers
        with torch.device("meta"):
            make_quantizer(self)

    def _check_settings(self) -> None:
        taken = OFFERS[self.quantizer].settings
        for name in SETTINGS:
            value = getattr(self, name)
            if value is not None and name not in taken:
                raise ValueError(
                    f"{name} must be None for quantizer {self.quantizer!r}, got {value!r}"
                )
            if value is None and name in taken and name in NEEDED:
                raise ValueError(f"{name} must be given for quantizer {self.quantizer!r}, got None")
        if self.learning == "gradient" and self.decay is not None:
            raise ValueError(f"decay must be None for learning 'gradient', got {self.decay}")
        if self.gradient == "diveq" and self.quantizer in _MOVED_BY_DIVEQ:
            default = "ema" if self.quantizer == "vq" or self.decay is not None else "gradient"
            learning = self.learning or default
            if learning != "gradient":
                raise ValueError(
                    f"learning must be 'gradient' for gradient 'diveq', got {learning!r}"
                )

    def _check_codes(self) -> None:
        offer = OFFERS[self.quantizer]
        above = offer.most is not None and self.codebooks > offer.most
        if self.codebooks < offer.least or above:
            wanted = "1" if offer.most == 1 else f"at least {offer.least}"
            raise ValueError(
                f"codebooks must be {wanted} for quantizer {self.quantizer!r}, got {self.codebooks}"
            )
        if self.quantizer == "vq":
            _check_multiple("codebook_dim", self.code_channels, "codebooks", self.codebooks)
        if self.groups is not None:
            _check_multiple("codebook_dim", self.code_channels, "groups", self.groups)
            _check_multiple("codebooks", self.codebooks, "groups", self.groups)
        if self.fsq_levels is not None and self.codebook_size != math.prod(self.fsq_levels):
            raise ValueError(
                f"codebook_size must be {math.prod(self.fsq_levels)}, the product of "
                f"fsq_levels, got {self.codebook_size}"
            )

    @property
    def code_channels(self) -> int:
        """Channels of the vectors that are quantized."""
        if self.fsq_levels is not None:
            return len(self.fsq_levels)
        if "codebook_dim" not in OFFERS[self.quantizer].settings:
            return (self.codebook_size - 1).bit_length()
        return 16 if self.codebook_dim is None else self.codebook_dim


def make_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer that a config names, for vectors ``[B, code_channels, ...]``.

    Its indices are ``[B, ...]``, or ``[B, ..., G]`` of several codebooks.
    """
    options = {
        argument: getattr(config, name)
        for name, argument in ARGUMENTS.items()
        if getattr(config, name) is not None
    }
    if config.learning == "gradient":
        options["learning"] = Gradient()
    elif config.learning == "ema" or config.decay is not None:
        options["learning"] = EMA() if config.decay is None else EMA(decay=config.decay)
    return OFFERS[config.quantizer].make(config, {"channel_dim": 1, **options})


def _check_fsq_levels(levels: tuple[int, ...]) -> None:
    _checks.instance("fsq_levels", levels, tuple)
    if not levels:
        raise ValueError("fsq_levels must hold at least one number, got none")
    for level in levels:
        _checks.positive("each of fsq_levels", level)
        if level < 2:
            raise ValueError(f"each of fsq_levels must be at least 2, got {level}")


def _check_multiple(name: str, value: int, parts_name: str, parts: int) -> None:
    if value % parts:
        raise ValueError(f"{name} must be a multiple of {parts_name} = {parts}, got {value}")
