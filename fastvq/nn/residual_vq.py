# SPDX-License-Identifier: Apache-2.0
"""``ResidualVQ``: codebooks in a row, of which each codes what the ones before it left over."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastvq import _checks, ops
from fastvq.nn import _layout, _stages, _tables
from fastvq.nn._levels import Levels, SharedLevels
from fastvq.nn.codebook import Usage
from fastvq.nn.learning import EMA, Frozen, Gradient, Learning
from fastvq.nn.quantized import Quantized
from fastvq.nn.regularizers import Seen
from fastvq.nn.revival import Revival
from fastvq.nn.start import Given, KMeans, Start, Uniform
from fastvq.ops.residual.api import GRADIENTS
from fastvq.ops.residual.api import Gradient as Estimator


class ResidualVQ(nn.Module):
    r"""Replaces every vector by a sum of codes, one of each of Q codebooks.

    .. math:: r_1 = x, \qquad i_q = \arg\min_k \lVert r_q - c_{q,k} \rVert, \qquad
              r_{q+1} = r_q - c_{q,i_q}, \qquad \hat x = \sum_q c_{q,i_q}

    .. math:: L = \beta \sum_q \lVert r_q - \operatorname{sg}[c_{q,i_q}] \rVert^2
              \; (+ \, w \sum_q \lVert \operatorname{sg}[r_q] - c_{q,i_q} \rVert^2
              \text{ under Gradient}(w))

    each term averaged over the elements. The gradient of the output passes to the input unchanged,
    unless another estimator is asked for.
    In training the output uses the codes from before the step's update; in eval nothing changes.

    Args:
        dim: channels of the input.
        codebook_size: K, the number of codes of each level.
        num_quantizers: Q, the number of levels.
        codebook_dim: channels of a code, ``dim`` unless given; where it is not ``dim``, one linear
            projection goes in and one out.
        learning: :class:`EMA`, :class:`Gradient` or :class:`Frozen`.
        start: :class:`KMeans` (of each level's residuals in turn), :class:`Uniform` or
            :class:`Given` vectors ``[Q, K, D]``.
        shared_codebook: one codebook ``[1, K, D]`` for all levels (RQ-VAE). It starts from x and
            learns from what every level sees.
        revival: how dead codes come back, or ``None``. Without effect under ``Frozen``.
        commitment_weight: :math:`\beta`.
        dropout: the probability, in training, that a sample of the batch takes only the first n
            levels, n uniform in 1 to Q; the levels it leaves out have index -1. A model trained so
            can be decoded from any number of levels.
        gradient: how the gradient of the output reaches the input: ``straight_through`` or
            ``rotation``, as in :func:`fastvq.ops.residual`.
        channel_dim: the dimension of the channels: -1, or 1 for images, audio and video.

    Raises:
        TypeError, ValueError: an argument or input does not fit; the text says what was expected.

    Note:
        As :class:`VectorQuantizer`: deterministic given torch's random state, contained NaN rows,
        one reduction of counts and sums a step with several processes.

    Source: 2107.03312 (SoundStream), section III-C; 2203.01941 (RQ-VAE), section 3.1; dropout per
    sample with a probability: 2306.06546 (DAC), "Quantizer dropout rate".

    Example:
        >>> import torch, fastvq
        >>> rvq = fastvq.ResidualVQ(dim=128, codebook_size=1024, num_quantizers=8, channel_dim=1)
        >>> quantized, indices, loss = rvq(torch.randn(2, 128, 50))
        >>> quantized.shape, indices.shape, loss.shape
        (torch.Size([2, 128, 50]), torch.Size([2, 50, 8]), torch.Size([]))
    """

    dtype_probe: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_quantizers: int,
        *,
        codebook_dim: int | None = None,
        learning: Learning = EMA(),
        start: Start = KMeans(),
        revival: Revival | None = Revival(),
        shared_codebook: bool = False,
        commitment_weight: float = 0.25,
        dropout: float = 0.0,
        gradient: Estimator = "straight_through",
        channel_dim: int = -1,
    ) -> None:
        super().__init__()
        codebook_dim = dim if codebook_dim is None else codebook_dim
        for name, value in (
            ("dim", dim),
            ("codebook_size", codebook_size),
            ("num_quantizers", num_quantizers),
            ("codebook_dim", codebook_dim),
        ):
            _checks.positive(name, value)
        _checks.fraction("commitment_weight", commitment_weight, high=float("inf"))
        _checks.fraction("dropout", dropout)
        _checks.instance("learning", learning, EMA, Gradient, Frozen)
        _checks.instance("start", start, KMeans, Uniform, Given)
        if revival is not None:
            _checks.instance("revival", revival, Revival)
        self.dim, self.codebook_size, self.num_quantizers = dim, codebook_size, num_quantizers
        self.codebook_dim, self.channel_dim = codebook_dim, channel_dim
        self.commitment_weight, self.dropout = commitment_weight, dropout
        _checks.one_of("gradient", gradient, GRADIENTS)
        self.shared_codebook, self.gradient = shared_codebook, gradient
        self.book = (SharedLevels if shared_codebook else Levels)(
            num_quantizers,
            codebook_size,
            codebook_dim,
            learning=learning,
            start=start,
            revival=None if isinstance(learning, Frozen) else revival,
            unit_norm=False,
        )
        projects = codebook_dim != dim
        self.project_in = nn.Linear(dim, codebook_dim) if projects else nn.Identity()
        self.project_out = nn.Linear(codebook_dim, dim) if projects else nn.Identity()
        # follows module.to(dtype), which the codes do not: the dtype of what `decode` returns
        self.register_buffer("dtype_probe", torch.empty(0), persistent=False)

    @property
    def codebook(self) -> Tensor:
        """The codes of all levels ``[Q, K, D]``."""
        return self.book.codes()

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, levels: int | None = None
    ) -> Quantized:
        """Quantizes x; in training the codebooks learn from it.

        Args:
            x: vectors with ``dim`` channels in dimension ``channel_dim``.
            mask: bool, the shape of x without its channels; where false the position is padding:
                output 0, indices -1, no loss, no part in learning.
            levels: how many of the first levels, as a codec has for its bit rates; all unless
                given. In training the others are left out as ``dropout`` leaves them out, which
                then draws n up to ``levels``.

        Returns:
            :class:`Quantized` with indices ``[..., Q]``, or ``[..., levels]``.

        Raises:
            TypeError, ValueError: x or mask does not fit, or levels is no int in 1 to Q.
        """
        levels = _stages.check_levels(levels, self.num_quantizers)
        _layout.check_input(x, mask, self.dim, self.channel_dim)
        rows = _layout.rows_of(x, self.channel_dim)  # [B, M, dim]
        usable = None if mask is None else mask.reshape(rows.shape[:2])
        if usable is not None:
            # what padding holds must not reach the gradient of the projection
            rows = torch.where(usable.unsqueeze(-1), rows, 0)
        rows = self.project_in(rows)
        if self.training:
            self.book.begin(rows.detach(), usable)
        dropout = self.dropout if self.training else 0.0
        taken = _stages.taken(rows, usable, levels, dropout)
        codes = self.book.snapshot()[:levels]
        out = ops.residual(rows, codes, levels=taken, gradient=self.gradient)
        if self.training:
            self.book.learn(rows.detach(), out.indices)
        loss = self.commitment_weight * out.commitment_losses.sum()
        if isinstance(self.book.learning, Gradient):
            loss = loss + self.book.learning.loss(
                out.codebook_losses.sum(),
                codes,
                lambda: Seen(
                    _tables.rests(rows, out.indices, codes),
                    out.indices >= 0,
                    "euclidean",
                    self.training,
                ),
            )
        # autocast may have put the projections in 16 bits; the output is of the input's dtype
        quantized = self.project_out(out.quantized.to(x.dtype)).to(x.dtype)
        if usable is not None:
            quantized = torch.where(usable.unsqueeze(-1), quantized, 0)
        quantized = _layout.vectors_out(quantized, x, self.channel_dim)
        indices = _layout.indices_out(out.indices, x, self.channel_dim)
        return Quantized(quantized, indices, loss)

    def encode(self, x: Tensor, levels: int | None = None, beam: int = 1) -> Tensor:
        """The indices of x ``[..., Q]``, or ``[..., levels]`` of the first levels alone.

        Args:
            x: vectors with ``dim`` channels in dimension ``channel_dim``.
            levels: how many of the first levels; all unless given.
            beam: 1 for what forward chooses, more for :func:`fastvq.ops.beam_search`, whose sum of
                codes is never farther from the (projected) vector.
        """
        levels = _stages.check_levels(levels, self.num_quantizers)
        _layout.check_input(x, None, self.dim, self.channel_dim)
        rows = self.project_in(_layout.rows_of(x, self.channel_dim))
        codes = self.book.codes()[:levels]
        indices = ops.beam_search(rows, codes, beam=beam)
        return _layout.indices_out(indices, x, self.channel_dim)

    def decode(self, indices: Tensor) -> Tensor:
        """The vectors of indices, with ``dim`` channels in dimension ``channel_dim``.

        Args:
            indices: integers of any width ``[..., q]`` of the first q levels, 1 to Q; a level of
                -1 adds nothing, and where all are -1 the vector is zero.

        Raises:
            TypeError: the indices are not integers.
            ValueError: the last dimension is not 1 to Q.
            IndexError: (on the CPU) an index is out of range.
        """
        _stages.check_indices(indices, self.num_quantizers, self.codebook_size)
        total = _tables.total(indices.long(), self.book.codes())
        vectors = self.project_out(total.to(self.dtype_probe.dtype))
        vectors = torch.where((indices >= 0).any(-1, keepdim=True), vectors, 0)
        return _layout.decoded(vectors, self.channel_dim)

    def usage(self) -> Usage:
        """How the codebooks are used, from the moving average of their counts in training.

        Perplexity is the mean over levels. Waits for the device: call it when logging.
        """
        return self.book.usage()

    def extra_repr(self) -> str:
        """The arguments that are not shown by the codebook."""
        return (
            f"dim={self.dim}, codebook_size={self.codebook_size}, "
            f"num_quantizers={self.num_quantizers}, codebook_dim={self.codebook_dim}, "
            f"shared_codebook={self.shared_codebook}, "
            f"commitment_weight={self.commitment_weight}, dropout={self.dropout}, "
            f"gradient={self.gradient!r}, channel_dim={self.channel_dim}"
        )
