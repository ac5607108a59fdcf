# SPDX-License-Identifier: Apache-2.0
"""``VectorQuantizer``: the quantizer of the VQ-VAE papers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from fastvq import _checks, ops
from fastvq.nn import _layout
from fastvq.nn.codebook import Codebook, Usage
from fastvq.nn.learning import EMA, Frozen, Gradient, Learning
from fastvq.nn.quantized import Quantized
from fastvq.nn.regularizers import Seen
from fastvq.nn.revival import Revival
from fastvq.nn.start import Given, KMeans, Start, Uniform
from fastvq.ops._layout import compute_dtype
from fastvq.ops.nearest.api import Metric as SearchMetric
from fastvq.ops.quantize.api import GRADIENTS
from fastvq.ops.quantize.api import Gradient as Estimator

CodeMetric = Literal["euclidean", "cosine", "angular", "dot"]
# what finds the code; vectors and codes are of unit length under cosine, where the squared
# euclidean distance has the same order and needs no norms
_SEARCH: dict[CodeMetric, SearchMetric] = {
    "euclidean": "euclidean",
    "cosine": "euclidean",
    "angular": "cosine",
    "dot": "dot",
}


class VectorQuantizer(nn.Module):
    r"""Replaces every vector by the nearest code of a learned codebook.

    .. math:: L = \beta \lVert x - \operatorname{sg}[c] \rVert^2
              \; (+ \, w \lVert \operatorname{sg}[x] - c \rVert^2 \text{ under Gradient}(w))

    averaged over the elements. The gradient of the output passes to the input unchanged, unless
    another estimator is asked for. In training the output uses the codes from before the step's
    update; in eval nothing changes.

    Args:
        dim: channels of the input.
        codebook_size: K, the number of codes.
        codebook_dim: channels of a code, ``dim / heads`` unless given. Where ``heads *
            codebook_dim`` is not ``dim``, linear projections go in and out.
        heads: parts into which the channels are split, each with a codebook of its own.
        metric: ``euclidean``, ``cosine``, ``angular`` or ``dot``. Under ``cosine`` vectors and
            codes live on the unit sphere, and so does the output. ``angular`` chooses as cosine
            does, by direction, and leaves vectors, codes, losses and output their lengths (DAC);
            under it :class:`KMeans` starts by euclidean distance.
        learning: :class:`EMA`, :class:`Gradient` or :class:`Frozen`.
        start: :class:`KMeans`, :class:`Uniform` or :class:`Given`.
        revival: how dead codes come back, or ``None``. Without effect under ``Frozen``.
        commitment_weight: :math:`\beta`.
        gradient: how the gradient of the output reaches the input, as in
            :func:`fastvq.ops.quantize`: ``straight_through``, ``rotation``, or ``diveq``, which
            moves the codes as well and so needs ``Gradient`` learning; its paper has it in the
            place of all losses, ``learning=Gradient(weight=0), commitment_weight=0``.
        channel_dim: the dimension of the channels: -1, or 1 for images, audio and video.

    Raises:
        TypeError, ValueError: an argument or input does not fit; the text says what was expected.

    Note:
        Deterministic given torch's random state, which k-means and revival draw from. A row
        holding NaN or Inf gets index 0, makes the loss NaN and never touches the codebook. Under
        ``torch.compile`` the first training call starts the codebook, so the second compiles anew.
        With several processes, counts and sums are reduced in one call a step.

    Source: 1711.00937, sections 3.1, 3.2 and A.1; cosine: 2110.04627, section 3.2; angular:
    2306.06546, section 3.2; rotation: 2410.06424; diveq: 2509.26469.

    Example:
        >>> import torch, fastvq
        >>> vq = fastvq.VectorQuantizer(dim=64, codebook_size=512, channel_dim=1)
        >>> quantized, indices, loss = vq(torch.randn(8, 64, 16, 16))
        >>> quantized.shape, indices.shape, loss.shape
        (torch.Size([8, 64, 16, 16]), torch.Size([8, 16, 16]), torch.Size([]))
    """

    dtype_probe: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        codebook_dim: int | None = None,
        heads: int = 1,
        metric: CodeMetric = "euclidean",
        learning: Learning = EMA(),
        start: Start = KMeans(),
        revival: Revival | None = Revival(),
        commitment_weight: float = 0.25,
        gradient: Estimator = "straight_through",
        channel_dim: int = -1,
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("codebook_size", codebook_size), ("heads", heads)):
            _checks.positive(name, value)
        if codebook_dim is None:
            if dim % heads:
                raise ValueError(f"dim must be a multiple of heads = {heads}, got {dim}")
            codebook_dim = dim // heads
        _checks.positive("codebook_dim", codebook_dim)
        _checks.one_of("metric", metric, _SEARCH)
        _checks.fraction("commitment_weight", commitment_weight, high=float("inf"))
        _checks.instance("learning", learning, EMA, Gradient, Frozen)
        _checks.instance("start", start, KMeans, Uniform, Given)
        if revival is not None:
            _checks.instance("revival", revival, Revival)
        _checks.one_of("gradient", gradient, GRADIENTS)
        if gradient == "diveq" and not isinstance(learning, Gradient):
            raise ValueError(
                f"gradient 'diveq' moves the codes, and needs learning=Gradient(...), "
                f"got {learning}"
            )
        self.dim, self.codebook_size, self.heads = dim, codebook_size, heads
        self.codebook_dim, self.metric, self.channel_dim = codebook_dim, metric, channel_dim
        self.commitment_weight, self.gradient = commitment_weight, gradient
        self.book = Codebook(
            heads,
            codebook_size,
            codebook_dim,
            learning=learning,
            start=start,
            revival=None if isinstance(learning, Frozen) else revival,
            unit_norm=metric == "cosine",
        )
        inner = heads * codebook_dim
        self.projects = inner != dim
        self.project_in = nn.Linear(dim, inner) if self.projects else nn.Identity()
        self.project_out = nn.Linear(inner, dim) if self.projects else nn.Identity()
        # follows module.to(dtype), which the codes do not: the dtype of what `decode` returns
        self.register_buffer("dtype_probe", torch.empty(0), persistent=False)

    @property
    def codebook(self) -> Tensor:
        """The codes ``[K, D]``, or ``[H, K, D]`` with several heads."""
        return self.book.codes() if self.heads > 1 else self.book.codes()[0]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantizes x; in training the codebook learns from it.

        Args:
            x: vectors with ``dim`` channels in dimension ``channel_dim``.
            mask: bool, the shape of x without its channels; where false the position is padding:
                output 0, index -1, no loss, no part in learning.
        """
        rows = self._rows(x, mask)  # [B, M, H, d]
        usable = None if mask is None else mask.reshape(rows.shape[:2])
        if self.training:
            self.book.begin(rows, usable)
        codes = self.book.snapshot()
        indices = self._search(rows, codes)
        if usable is not None:
            indices = torch.where(usable.unsqueeze(-1), indices, -1)
        out = ops.quantize(rows, codes, indices, gradient=self.gradient)
        if self.training:
            self.book.learn(rows, indices)
        loss = self.commitment_weight * out.commitment_loss
        if isinstance(self.book.learning, Gradient):
            metric: SearchMetric = "cosine" if self.metric == "angular" else self.metric
            loss = loss + self.book.learning.loss(
                out.codebook_loss, codes, lambda: Seen(rows, indices >= 0, metric, self.training)
            )
        # autocast may have put the projections in 16 bits; the output is of the input's dtype
        quantized = self.project_out(out.quantized.to(x.dtype).flatten(-2)).to(x.dtype)
        if usable is not None:
            quantized = torch.where(usable.unsqueeze(-1), quantized, 0)
        quantized = _layout.vectors_out(quantized, x, self.channel_dim)
        return Quantized(quantized, self._indices_out(indices, x), loss)

    def encode(self, x: Tensor) -> Tensor:
        """The indices of x, int64: the shape of x without its channels, ``[..., H]`` with heads."""
        rows = self._rows(x)
        return self._indices_out(self._search(rows, self.book.codes()), x)

    def decode(self, indices: Tensor) -> Tensor:
        """The vectors of indices, with ``dim`` channels in dimension ``channel_dim``.

        Args:
            indices: integers of any width and leading shape (``[..., H]`` with heads); -1 decodes
                to zeros.

        Raises:
            TypeError: the indices are not integers.
            ValueError: the last dimension is not heads.
            IndexError: (on the CPU) an index is out of range.
        """
        _checks.integers("indices", indices)
        if self.heads == 1:
            indices = indices.unsqueeze(-1)
        elif indices.ndim == 0 or indices.shape[-1] != self.heads:
            raise ValueError(
                f"indices must be [..., H] with H = {self.heads}, got {_checks.shape(indices)}"
            )
        _checks.index_range(indices, self.codebook_size)
        indices = indices.long()
        offsets = torch.arange(self.heads, device=indices.device) * self.codebook_size
        present = (indices >= 0).unsqueeze(-1)
        table = self.book.codes().flatten(0, 1)  # [H * K, d]
        codes = nn.functional.embedding(indices.clamp_min(0) + offsets, table)
        codes = torch.where(present, codes, 0).to(self.dtype_probe.dtype)
        vectors = self.project_out(codes.flatten(-2))
        vectors = torch.where(present.any(-2), vectors, 0)
        return _layout.decoded(vectors, self.channel_dim)

    def usage(self) -> Usage:
        """How the codebook is used, from the moving average of its counts in training.

        Waits for the device: call it when logging, not in every step.
        """
        return self.book.usage()

    def extra_repr(self) -> str:
        """The arguments that are not shown by the codebook."""
        return (
            f"dim={self.dim}, codebook_size={self.codebook_size}, "
            f"codebook_dim={self.codebook_dim}, heads={self.heads}, metric={self.metric!r}, "
            f"commitment_weight={self.commitment_weight}, gradient={self.gradient!r}, "
            f"channel_dim={self.channel_dim}"
        )

    def _rows(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x as ``[B, M, H, d]``: a view of it unless a projection or a normalization comes in."""
        _layout.check_input(x, mask, self.dim, self.channel_dim)
        rows = _layout.rows_of(x, self.channel_dim)  # [B, M, dim]
        if mask is not None and (self.projects or self.book.unit_norm):
            # what padding holds must not reach the gradient of a projection or a norm
            rows = torch.where(mask.reshape(rows.shape[:2]).unsqueeze(-1), rows, 0)
        rows = self.project_in(rows).unflatten(-1, (self.heads, self.codebook_dim))
        if self.book.unit_norm:
            rows = nn.functional.normalize(rows.to(compute_dtype(rows)), dim=-1)
        return rows

    def _search(self, rows: Tensor, codes: Tensor) -> Tensor:
        return ops.nearest(rows, codes, metric=_SEARCH[self.metric]).indices

    def _indices_out(self, indices: Tensor, x: Tensor) -> Tensor:
        leading = _layout.leading(x, self.channel_dim)
        return indices.reshape(leading if self.heads == 1 else (*leading, self.heads))
