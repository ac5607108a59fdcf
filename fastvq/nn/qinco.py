# SPDX-License-Identifier: Apache-2.0
"""``QINCo``: residual quantization with codes that depend on what has been decoded so far."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastvq import _checks, ops
from fastvq.nn import _layout, _stages
from fastvq.nn import start as starts
from fastvq.nn._neural_codes import Step, codes_of, nearest_neural
from fastvq.nn.codebook import Codebook, Usage
from fastvq.nn.learning import Gradient
from fastvq.nn.quantized import Quantized
from fastvq.nn.revival import Revival
from fastvq.nn.start import Given, KMeans, Start, Uniform
from fastvq.ops._layout import compute_dtype

# what the blocks add at the start, as a share of the usual initialization: near nothing, so that a
# quantizer starts as residual quantization; not nothing, or half of a block would have no gradient
_QUIET = 0.01


class QINCo(nn.Module):
    r"""Replaces every vector by a sum of Q codes, which a network makes for this vector.

    With base codes :math:`c_{q,k}` and, for q > 1, a network :math:`f_q` of a linear layer and L
    residual blocks of width h,

    .. math:: i_q = \arg\min_k \lVert x - \hat x_{q-1} - f_q(c_{q,k}, \hat x_{q-1}) \rVert, \qquad
              \hat x_q = \hat x_{q-1} + f_q(c_{q,i_q}, \hat x_{q-1})

    .. math:: z_0 = c + A \, [c; \hat x] + a, \qquad
              z_l = z_{l-1} + V_l \operatorname{relu}(U_l \, z_{l-1}), \qquad f(c, \hat x) = z_L

    .. math:: L = \sum_q w \lVert \operatorname{sg}[x] - \hat x_q \rVert^2
              + \beta \lVert x - \operatorname{sg}[\hat x_q] \rVert^2

    each term averaged over the elements. :math:`\hat x_0 = 0` and :math:`f_1(c, 0) = c`. Codes and
    networks learn by gradient. That of the output :math:`\hat x_Q` passes to the input unchanged.

    Args:
        dim: channels of the input.
        codebook_size: K, the number of codes of each step.
        num_quantizers: Q, the number of steps.
        blocks: L.
        hidden: h.
        start: :class:`KMeans` (of each step's residuals in turn), :class:`Uniform` or
            :class:`Given` base codes ``[Q, K, D]``.
        revival: how dead codes come back, or ``None``.
        codebook_weight: w.
        commitment_weight: :math:`\beta`.
        channel_dim: the dimension of the channels: -1, or 1 for images, audio and video.

    Raises:
        TypeError, ValueError: an argument or input does not fit; the text says what was expected.

    Note:
        **What it costs.** Encoding makes all K codes of each step for each vector: about
        2 N K D h L multiplications a step, where a plain codebook takes N K D. It is the method's
        nature. It is done in chunks, so that memory is O(N Q D + K D) beside a bounded work space;
        decoding and the training gradient see the chosen codes alone, at 2 N D (D + h L) a step.
        All is done in float32 (float64 for float64), also in 16-bit models and under autocast.
        Deterministic given torch's random state, which the start and revival draw from. A row
        holding NaN or Inf gets index 0, makes the loss NaN and learns nothing.

    Source: 2401.14732, sections 3.2 and 3.3. There the networks start at random and the base codes
    from residual quantization; here the networks also start close to it.

    Example:
        >>> import torch, fastvq
        >>> vq = fastvq.QINCo(dim=16, codebook_size=32, num_quantizers=3, blocks=1, hidden=24)
        >>> quantized, indices, loss = vq(torch.randn(100, 16))
        >>> quantized.shape, indices.shape, loss.shape
        (torch.Size([100, 16]), torch.Size([100, 3]), torch.Size([]))
    """

    dtype_probe: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_quantizers: int,
        *,
        blocks: int = 4,
        hidden: int = 256,
        start: Start = KMeans(),
        revival: Revival | None = Revival(),
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.25,
        channel_dim: int = -1,
    ) -> None:
        super().__init__()
        for name, value in (
            ("dim", dim),
            ("codebook_size", codebook_size),
            ("num_quantizers", num_quantizers),
            ("blocks", blocks),
            ("hidden", hidden),
        ):
            _checks.positive(name, value)
        _checks.instance("start", start, KMeans, Uniform, Given)
        if revival is not None:
            _checks.instance("revival", revival, Revival)
        _checks.fraction("codebook_weight", codebook_weight, high=float("inf"))
        _checks.fraction("commitment_weight", commitment_weight, high=float("inf"))
        self.dim, self.codebook_size, self.num_quantizers = dim, codebook_size, num_quantizers
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        self.channel_dim = channel_dim
        self.book = _Steps(
            num_quantizers, codebook_size, dim,
            learning=Gradient(), start=start, revival=revival, unit_norm=False,
        )  # fmt: skip
        later = num_quantizers - 1
        self.mix = nn.Parameter(torch.zeros(later, dim, 2 * dim))
        self.bias = nn.Parameter(torch.zeros(later, dim))
        wide, narrow = dim**-0.5, _QUIET * hidden**-0.5
        self.up = nn.Parameter(torch.empty(later, blocks, hidden, dim).uniform_(-wide, wide))
        self.down = nn.Parameter(torch.empty(later, blocks, dim, hidden).uniform_(-narrow, narrow))
        # follows module.to(dtype): the dtype of what `decode` returns
        self.register_buffer("dtype_probe", torch.empty(0), persistent=False)

    @property
    def codebook(self) -> Tensor:
        """The base codes of all steps ``[Q, K, D]``."""
        return self.book.codes()

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, levels: int | None = None
    ) -> Quantized:
        """Quantizes x; in training dead codes come back from it.

        Args:
            x: vectors with ``dim`` channels in dimension ``channel_dim``.
            mask: bool, the shape of x without its channels; where false the position is padding:
                output 0, indices -1, no loss, no part in learning.
            levels: how many of the first steps; all unless given.

        Returns:
            :class:`Quantized` with indices ``[..., Q]``, or ``[..., levels]``.

        Raises:
            TypeError, ValueError: x or mask does not fit, or levels is no int in 1 to Q.
        """
        levels = _stages.check_levels(levels, self.num_quantizers)
        rows, fault, shape = self._rows(x, mask)
        present = None if mask is None else mask.flatten()
        counted = fault == 0 if present is None else (fault == 0) & present
        if self.training:
            self.book.begin(rows.detach().view(shape), counted.view(shape[:2]))
        codes = self.book.snapshot().to(rows.dtype)
        indices = self._search(rows.detach(), codes.detach(), levels)
        indices = torch.where((fault == 0).unsqueeze(-1), indices, 0)
        # a bad row is in no average, and yet it shows
        loss, decoded, rests = fault.sum(), torch.zeros_like(rows), []
        weight = counted.to(rows.dtype).unsqueeze(-1)
        count = (weight.sum() * self.dim).clamp_min(1)
        for q, index in enumerate(indices.unbind(-1)):
            rests.append((rows - decoded).detach())
            decoded = decoded + self._code(q, index, codes, decoded)
            learned = ((rows.detach() - decoded).square() * weight).sum() / count
            committed = ((rows - decoded.detach()).square() * weight).sum() / count
            loss = loss + self.codebook_weight * learned + self.commitment_weight * committed
        if self.training:
            taken = torch.where(counted.unsqueeze(-1), indices, -1)
            seen = torch.stack(rests, dim=1)  # [N, levels, dim]
            self.book.learn(seen.view(*shape[:2], levels, self.dim), taken.view(*shape[:2], levels))
        # the value of the codes to the last bit, the gradient of the input
        quantized = decoded.detach() + (rows - rows.detach())
        if present is not None:
            indices = torch.where(present.unsqueeze(-1), indices, -1)
            quantized = torch.where(present.unsqueeze(-1), quantized, 0)
        quantized = _layout.vectors_out(quantized.to(x.dtype).view(shape), x, self.channel_dim)
        return Quantized(quantized, _layout.indices_out(indices, x, self.channel_dim), loss)

    def encode(self, x: Tensor, levels: int | None = None) -> Tensor:
        """The indices of x ``[..., Q]``, or ``[..., levels]`` of the first steps alone."""
        levels = _stages.check_levels(levels, self.num_quantizers)
        rows, fault, _ = self._rows(x, None)
        codes = self.book.codes().to(rows.dtype)
        indices = self._search(rows.detach(), codes.detach(), levels)
        return _layout.indices_out(
            torch.where((fault == 0).unsqueeze(-1), indices, 0), x, self.channel_dim
        )

    def decode(self, indices: Tensor) -> Tensor:
        """The vectors of indices, with ``dim`` channels in dimension ``channel_dim``.

        Args:
            indices: integers of any width ``[..., q]`` of the first q steps, 1 to Q; where the
                first is -1 the vector is zero, and a later -1 adds nothing.

        Raises:
            TypeError: the indices are not integers.
            ValueError: the last dimension is not 1 to Q.
            IndexError: (on the CPU) an index is out of range.
        """
        _stages.check_indices(indices, self.num_quantizers, self.codebook_size)
        codes = self.book.codes()
        codes = codes.to(compute_dtype(codes))
        flat = indices.long().flatten(0, -2) if indices.ndim > 1 else indices.long().unsqueeze(0)
        decoded = codes.new_zeros(flat.shape[0], self.dim)
        for q, index in enumerate(flat.unbind(-1)):
            added = self._code(q, index.clamp_min(0), codes, decoded)
            decoded = decoded + torch.where((index >= 0).unsqueeze(-1), added, 0)
        decoded = torch.where(flat[:, :1] >= 0, decoded, 0)
        vectors = decoded.to(self.dtype_probe.dtype).view(*indices.shape[:-1], self.dim)
        return _layout.decoded(vectors, self.channel_dim)

    def usage(self) -> Usage:
        """How the base codes are used, from the moving average of their counts in training.

        Perplexity is the mean over steps. Waits for the device: call it when logging.
        """
        return self.book.usage()

    def _rows(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, torch.Size]:
        """Finite rows ``[N, dim]``; ``[N]``, 0 or NaN where one was not; and ``[B, M, dim]``."""
        _layout.check_input(x, mask, self.dim, self.channel_dim)
        shape = _layout.rows_of(x, self.channel_dim).shape
        return *_layout.finite_rows(x, mask, self.channel_dim), shape

    @torch.no_grad()
    def _search(self, rows: Tensor, codes: Tensor, levels: int) -> Tensor:
        """The indices ``[N, levels]``."""
        decoded, indices = torch.zeros_like(rows), []
        for q in range(levels):
            if q == 0:
                index = ops.nearest(rows, codes[0]).indices
            else:
                index = nearest_neural(rows, decoded, codes[q], *self._step(q, rows.dtype))
            decoded = decoded + self._code(q, index, codes, decoded)
            indices.append(index)
        return torch.stack(indices, dim=-1)

    def _code(self, q: int, index: Tensor, codes: Tensor, decoded: Tensor) -> Tensor:
        """The codes of a step ``[N, D]``, given what is decoded before it."""
        base = nn.functional.embedding(index, codes[q])
        if q == 0:
            return base
        with torch.autocast(base.device.type, enabled=False):
            return codes_of(base, decoded, self._step(q, base.dtype))

    def _step(self, q: int, dtype: torch.dtype) -> Step:
        weights = (self.mix, self.bias, self.up, self.down)
        return Step(*(weight[q - 1].to(dtype) for weight in weights))

    def extra_repr(self) -> str:
        """The arguments that are not shown by the codebook."""
        return (
            f"dim={self.dim}, codebook_size={self.codebook_size}, "
            f"num_quantizers={self.num_quantizers}, blocks={self.up.shape[1]}, "
            f"hidden={self.up.shape[2]}, codebook_weight={self.codebook_weight}, "
            f"commitment_weight={self.commitment_weight}, channel_dim={self.channel_dim}"
        )


class _Steps(Codebook):
    """Base codes ``[Q, K, D]`` that see, once started, the rests ``[B, M, Q, D]`` of all steps."""

    def _centres(self, x: Tensor, usable: Tensor, start: KMeans) -> tuple[Tensor, Tensor]:
        return starts.residual_kmeans(x, usable, self.vectors, start.iterations)

    def learn(self, x: Tensor, indices: Tensor) -> None:
        """One training step from rests ``[B, M, q, D]`` and indices ``[B, M, q]`` of q steps."""
        steps = len(self.vectors)
        x = nn.functional.pad(x, (0, 0, 0, steps - x.shape[-2]))
        super().learn(x, _stages.padded(indices, steps))
