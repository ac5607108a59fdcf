# SPDX-License-Identifier: Apache-2.0
"""``VectorQuantizer2`` of taming-transformers, which diffusers has as well."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvq.compat._adapter import Adapter
from fastvq.nn import Gradient, Uniform, VectorQuantizer


class VectorQuantizer2(Adapter):
    r"""taming-transformers' quantizer of images ``[B, D, height, width]``, and diffusers'.

    .. math:: L = \lVert \operatorname{sg}[c] - z \rVert^2 + \beta \lVert c - \operatorname{sg}[z]
              \rVert^2

    averaged over the elements; with ``legacy=False`` beta is on the first term, as the paper has
    it. The codes learn by gradient. There is no ``remap``.

    Args:
        n_e: number of codes.
        e_dim: channels.
        beta: :math:`\beta`.
        sane_index_shape: indices ``[B, height, width]`` in place of flat ones.
        legacy: where beta is; ``True`` is the default there, and a mistake.

    Example:
        >>> import torch
        >>> from fastvq.compat.adapters import VectorQuantizer2
        >>> z, loss, (_, _, indices) = VectorQuantizer2(64, 8, beta=0.25)(torch.randn(2, 8, 4, 4))
        >>> z.shape, loss.shape, indices.shape
        (torch.Size([2, 8, 4, 4]), torch.Size([]), torch.Size([32]))
    """

    layout = "taming"
    quantizer: VectorQuantizer

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float,
        *,
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        commitment, codebook = (1.0, beta) if legacy else (beta, 1.0)
        super().__init__(
            VectorQuantizer(
                e_dim,
                n_e,
                learning=Gradient(codebook),
                start=Uniform(),
                revival=None,
                commitment_weight=commitment,
                channel_dim=1,
            )
        )
        self.n_e, self.e_dim, self.beta = n_e, e_dim, beta
        self.sane_index_shape, self.legacy = sane_index_shape, legacy

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """Codes, loss and ``(None, None, indices)`` of z ``[B, D, height, width]``."""
        out = self.quantizer(z)
        indices = out.indices if self.sane_index_shape else out.indices.flatten()
        return out.quantized, out.loss, (None, None, indices)

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None) -> Tensor:
        """Codes ``[B, D, height, width]`` for shape (B, height, width, D), or ``[N, D]``."""
        codes = torch.nn.functional.embedding(indices.flatten(), self.quantizer.codebook)
        return codes if shape is None else codes.view(*shape).movedim(-1, 1).contiguous()
