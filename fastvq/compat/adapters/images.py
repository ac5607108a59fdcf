# SPDX-License-Identifier: Apache-2.0
"""rosinality's quantizer and RQ-VAE-transformer's, for images with their channels last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.compat._adapter import Adapter
from fastvq.nn import EMA, Given, KMeans, ResidualVQ, Revival, VectorQuantizer


class Quantize(Adapter):
    """rosinality's quantizer of vectors ``[..., dim]``, learned by moving average.

    Without its smoothing of counts, which has a say only where a code takes a hundred-thousandth
    of a vector; counts start at 1 in place of 0, so that no code is divided by nothing.

    Args:
        dim: channels.
        n_embed: number of codes.
        decay: of the moving averages.

    Example:
        >>> import torch
        >>> from fastvq.compat.adapters import Quantize
        >>> quantized, diff, ids = Quantize(8, 64)(torch.randn(2, 4, 4, 8))
        >>> quantized.shape, diff.shape, ids.shape
        (torch.Size([2, 4, 4, 8]), torch.Size([]), torch.Size([2, 4, 4]))
    """

    layout = "rosinality"
    quantizer: VectorQuantizer

    def __init__(self, dim: int, n_embed: int, decay: float = 0.99) -> None:
        _checks.positive("dim", dim)
        _checks.positive("n_embed", n_embed)
        super().__init__(
            VectorQuantizer(
                dim,
                n_embed,
                learning=EMA(decay),
                start=Given(torch.randn(n_embed, dim)),
                revival=None,
                commitment_weight=1.0,
            )
        )
        self.dim, self.n_embed, self.decay = dim, n_embed, decay

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, the commitment loss and indices of the input."""
        quantized, indices, loss = self.quantizer(input)
        return quantized, loss, indices

    def embed_code(self, embed_id: Tensor) -> Tensor:
        """The codes of indices."""
        return self.quantizer.decode(embed_id)


class RQBottleneck(Adapter):
    r"""RQ-VAE-transformer's residual quantizer of feature maps ``[B, height, width, D]``.

    The loss is the mean over the levels of the distance between x and the sum of the codes up to
    each. Codes are of one size for all levels and of the map's resolution: ``code_shape`` must
    agree with ``latent_shape`` but for its depth.

    Args:
        latent_shape: (height, width, D).
        code_shape: (height, width, depth).
        n_embed: number of codes of each level.
        decay: of the moving averages.
        restart_unused_codes: dead codes come back; by fastvq's relative threshold.

    Raises:
        ValueError: the shapes do not agree.

    Source: 2203.01941, section 3.1.

    Example:
        >>> import torch
        >>> from fastvq.compat.adapters import RQBottleneck
        >>> rq = RQBottleneck((8, 8, 16), (8, 8, 4), n_embed=32)
        >>> quantized, loss, codes = rq(torch.randn(2, 8, 8, 16))
        >>> quantized.shape, loss.shape, codes.shape
        (torch.Size([2, 8, 8, 16]), torch.Size([]), torch.Size([2, 8, 8, 4]))
    """

    layout = "rq-vae-transformer"
    quantizer: ResidualVQ

    def __init__(
        self,
        latent_shape: Sequence[int],
        code_shape: Sequence[int],
        n_embed: int,
        decay: float = 0.99,
        *,
        restart_unused_codes: bool = True,
    ) -> None:
        if len(latent_shape) != 3 or len(code_shape) != 3 or latent_shape[:2] != code_shape[:2]:
            raise ValueError(
                "code_shape must be (height, width, depth) with the height and width of "
                f"latent_shape (height, width, D), got {tuple(code_shape)} and "
                f"{tuple(latent_shape)}"
            )
        depth = code_shape[-1]
        _checks.positive("depth", depth)
        super().__init__(
            ResidualVQ(
                latent_shape[-1],
                n_embed,
                depth,
                learning=EMA(decay),
                start=KMeans(),
                revival=Revival() if restart_unused_codes else None,
                commitment_weight=1 / depth,
            )
        )
        self.latent_shape, self.code_shape = tuple(latent_shape), tuple(code_shape)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of codes, loss and codes of x ``[B, height, width, D]``."""
        quantized, indices, loss = self.quantizer(x)
        return quantized, loss, indices

    def embed_code(self, code: Tensor) -> Tensor:
        """The sums of codes ``[B, height, width, D]`` of codes ``[B, height, width, depth]``."""
        return self.quantizer.decode(code)
