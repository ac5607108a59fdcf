# SPDX-License-Identifier: Apache-2.0
"""``RandomProjectionQuantizer``: labels for self-supervised learning, from nothing learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastvq import _checks, ops
from fastvq.nn import _layout
from fastvq.ops._layout import compute_dtype


class RandomProjectionQuantizer(nn.Module):
    r"""The index of the code nearest in angle to a random projection of each vector.

    .. math:: i = \operatorname{argmin}_k \left\lVert c_k -
              \frac{A \operatorname{norm}(x)}{\lVert A \operatorname{norm}(x) \rVert} \right\rVert

    where norm takes the mean of a vector's channels to 0 and their variance to 1, A is a Gaussian
    matrix with Xavier's variance and the codes are Gaussian vectors of unit length. Nothing learns
    and nothing has a gradient: the indices are targets to predict.

    Args:
        dim: channels of the input.
        codebook_size: K, the number of codes in a codebook.
        codebook_dim: channels of a code; the paper has 16 with K = 8192.
        num_codebooks: H, projections with a codebook each.

    Buffers:
        projections: ``[H, dim, codebook_dim]``.
        codebooks: ``[H, K, codebook_dim]``. Both are drawn once, from torch's generator, and saved
            with the model.

    Raises:
        TypeError, ValueError: an argument or input does not fit; the text says what was expected.

    Note:
        The paper normalizes each channel over the data. Do so before, where the channels differ in
        mean: what is taken out here is the mean of each vector. Arithmetic in float32 (float64 for
        float64) also under autocast; ``module.to(dtype)`` rounds the buffers. Deterministic given
        the buffers. A row holding NaN or Inf gets index 0. Memory O(N + K).

    Source: 2202.01855 (BEST-RQ), section 3.1; several codebooks, 2303.01037 (USM).

    Example:
        >>> import torch, fastvq
        >>> labels = fastvq.RandomProjectionQuantizer(80, 8192, 16, num_codebooks=4)
        >>> labels(torch.randn(2, 100, 80)).shape
        torch.Size([2, 100, 4])
    """

    projections: Tensor
    codebooks: Tensor

    def __init__(
        self, dim: int, codebook_size: int, codebook_dim: int, *, num_codebooks: int = 1
    ) -> None:
        super().__init__()
        for name, size in (
            ("dim", dim),
            ("codebook_size", codebook_size),
            ("codebook_dim", codebook_dim),
            ("num_codebooks", num_codebooks),
        ):
            _checks.positive(name, size)
        self.dim, self.codebook_size = dim, codebook_size
        self.codebook_dim, self.num_codebooks = codebook_dim, num_codebooks
        deviation = (2 / (dim + codebook_dim)) ** 0.5
        projections = torch.randn(num_codebooks, dim, codebook_dim) * deviation
        codebooks = torch.randn(num_codebooks, codebook_size, codebook_dim)
        self.register_buffer("projections", projections)
        self.register_buffer("codebooks", nn.functional.normalize(codebooks, dim=-1))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """The indices of x ``[..., dim]``: int64 ``[...]``, ``[..., H]`` with several codebooks."""
        _layout.check_input(x, None, self.dim, -1)
        dtype = compute_dtype(x)
        rows = nn.functional.layer_norm(_layout.rows_of(x, -1).to(dtype), (self.dim,))
        # one product for all codebooks: [dim, H * d]
        matrix = self.projections.to(dtype).transpose(0, 1).flatten(1)
        with torch.autocast(x.device.type, enabled=False):
            latents = (rows @ matrix).unflatten(-1, (self.num_codebooks, self.codebook_dim))
        indices = ops.nearest(latents, self.codebooks, metric="cosine").indices  # [B, M, H]
        several = (self.num_codebooks,) if self.num_codebooks > 1 else ()
        return indices.reshape(x.shape[:-1] + several)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"dim={self.dim}, codebook_size={self.codebook_size}, "
            f"codebook_dim={self.codebook_dim}, num_codebooks={self.num_codebooks}"
        )
