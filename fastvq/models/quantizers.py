# SPDX-License-Identifier: Apache-2.0
"""The quantizers of the package by name, as models are configured with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from fastvq import _checks
from fastvq.nn import BSQ, EMA, FSQ, LFQ, Gradient, ResidualVQ, SimVQ, VectorQuantizer

# vectors in, `Quantized` out; `encode` and `decode` are its halves
Quantizer = VectorQuantizer | ResidualVQ | FSQ | LFQ | SimVQ

QUANTIZERS = ("vq", "residual", "fsq", "lfq", "bsq", "simvq")
LEARNING = ("ema", "gradient")
# the settings that say how codes are kept and learned, and the quantizers that have them
_USED_BY = {
    "codebook_dim": ("vq", "residual", "simvq"),
    "fsq_levels": ("fsq",),
    "learning": ("vq", "residual"),
    "decay": ("vq", "residual"),
    "commitment_weight": ("vq", "residual", "lfq", "bsq", "simvq"),
}


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
        quantizer: ``"vq"`` (`VectorQuantizer`), ``"residual"`` (`ResidualVQ`), ``"fsq"``,
            ``"lfq"``, ``"bsq"`` or ``"simvq"``.
        codebook_size: codes K, of each codebook; a power of two for ``lfq`` and ``bsq``, the
            product of its levels for ``fsq``.
        codebooks: G, codes of a position: for ``vq`` the D channels are split into G parts, each
            with a codebook of its own (the paper's CIFAR-10 model has 10); for ``residual`` the
            levels, at least 2; for others 1.
        codebook_dim: channels D that are quantized, a multiple of G for ``vq``; 16 unless given.
            ``fsq`` has one for each level, ``lfq`` and ``bsq`` one for each bit.
        fsq_levels: levels of each channel of ``fsq``.
        learning: how codebooks follow the encoder: ``"ema"`` (the default, appendix A.1 of the
            paper) or ``"gradient"`` (its equation 3).
        decay: of the moving averages of ``"ema"``, 0.99 unless given.
        commitment_weight: :math:`\beta`; unless given 0.25, and 0.02 for ``lfq`` and ``bsq``.
    """

    quantizer: str = "vq"
    codebook_size: int = 64
    codebooks: int = 1
    codebook_dim: int | None = None
    fsq_levels: tuple[int, ...] | None = None
    learning: str | None = None
    decay: float | None = None
    commitment_weight: float | None = None

    def __post_init__(self) -> None:
        _checks.one_of("quantizer", self.quantizer, QUANTIZERS)
        for name in ("codebook_size", "codebooks"):
            _checks.positive(name, getattr(self, name))
        if self.codebook_dim is not None:
            _checks.positive("codebook_dim", self.codebook_dim)
        if self.learning is not None:
            _checks.one_of("learning", self.learning, LEARNING)
        for name, users in _USED_BY.items():
            value = getattr(self, name)
            if value is not None and self.quantizer not in users:
                raise ValueError(
                    f"{name} must be None for quantizer {self.quantizer!r}, got {value!r}"
                )
        if self.learning == "gradient" and self.decay is not None:
            raise ValueError(f"decay must be None for learning 'gradient', got {self.decay}")
        self._check_codes()
        # its own checks, without memory or random numbers
        with torch.device("meta"):
            make_quantizer(self)

    def _check_codes(self) -> None:
        if self.quantizer == "residual" and self.codebooks < 2:
            raise ValueError(
                f"codebooks must be at least 2 for quantizer 'residual', got {self.codebooks}"
            )
        if self.quantizer not in ("vq", "residual") and self.codebooks != 1:
            raise ValueError(
                f"codebooks must be 1 for quantizer {self.quantizer!r}, got {self.codebooks}"
            )
        if self.quantizer == "vq" and self.code_channels % self.codebooks:
            raise ValueError(
                f"codebook_dim must be a multiple of codebooks = {self.codebooks}, "
                f"got {self.code_channels}"
            )
        if self.quantizer == "fsq":
            if self.fsq_levels is None:
                raise ValueError("fsq_levels must be given for quantizer 'fsq', got None")
            if self.codebook_size != math.prod(self.fsq_levels):
                raise ValueError(
                    f"codebook_size must be {math.prod(self.fsq_levels)}, the product of "
                    f"fsq_levels, got {self.codebook_size}"
                )

    @property
    def code_channels(self) -> int:
        """Channels of the vectors that are quantized."""
        if self.quantizer == "fsq":
            return len(self.fsq_levels or ())
        if self.quantizer in ("lfq", "bsq"):
            return (self.codebook_size - 1).bit_length()
        return 16 if self.codebook_dim is None else self.codebook_dim


def make_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer that a config names, for vectors ``[B, code_channels, ...]``.

    Its indices are ``[B, ...]``, or ``[B, ..., G]`` of several codebooks.
    """
    size, dim = config.codebook_size, config.code_channels
    if config.quantizer == "fsq":
        assert config.fsq_levels is not None
        return FSQ(config.fsq_levels, channel_dim=1)
    beta = config.commitment_weight
    if config.quantizer in ("lfq", "bsq"):
        kind = LFQ if config.quantizer == "lfq" else BSQ
        return kind(size, commitment_weight=0.02 if beta is None else beta, channel_dim=1)
    beta = 0.25 if beta is None else beta
    if config.quantizer == "simvq":
        return SimVQ(dim, size, commitment_weight=beta, channel_dim=1)
    decay = 0.99 if config.decay is None else config.decay
    learning = Gradient() if config.learning == "gradient" else EMA(decay=decay)
    if config.quantizer == "residual":
        return ResidualVQ(
            dim,
            size,
            config.codebooks,
            learning=learning,
            commitment_weight=beta,
            channel_dim=1,
        )
    return VectorQuantizer(
        dim,
        size,
        heads=config.codebooks,
        learning=learning,
        commitment_weight=beta,
        channel_dim=1,
    )
