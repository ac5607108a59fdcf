# SPDX-License-Identifier: Apache-2.0
"""The softmax over the codes: what each public function promises."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.ops._layout import canonical_indices
from fastvq.ops.entropy._inputs import Metric, heads_first, prepare
from fastvq.ops.entropy._noise import row_keys
from fastvq.ops.entropy._ops import softmax_samples
from fastvq.ops.entropy._softmax import Entropies, Expectation, Surprisal


class Entropy(NamedTuple):
    """How undecided each vector is, and how evenly all of them use the codes; in nats.

    Attributes:
        sample: the mean of the vectors' own entropies, 0-d, or ``[H]`` with heads.
        batch: the entropy of ``probabilities``, 0-d or ``[H]``.
        probabilities: the mean of the vectors' distributions, ``[K]`` or ``[H, K]``.
        counted: how many vectors the means are over, 0-d or ``[H]``, without a gradient.
    """

    sample: Tensor
    batch: Tensor
    probabilities: Tensor
    counted: Tensor


def entropy(
    x: Tensor,
    codebook: Tensor,
    *,
    metric: Metric = "euclidean",
    inverse_temperature: float = 1.0,
    counted: Tensor | None = None,
) -> Entropy:
    r"""Entropies of the softmax over the codes, without ever forming the N x K matrix.

    .. math:: p_{nk} \propto e^{-\beta d(x_n, c_k)}, \qquad
       \text{sample} = \frac1N \sum_n H(p_n), \qquad
       \text{batch} = H\Bigl(\frac1N \sum_n p_n\Bigr)

    with the distances d of :func:`nearest`, squared ones for ``euclidean``. The usual regularizer,
    ``sample - batch``, makes each vector decided and all codes used. Gradients reach x and the
    codebook through both, and through ``probabilities``.

    Args:
        x: vectors ``[..., D]``, or ``[..., H, D]`` with a codebook for each of H heads; float32,
            float16, bfloat16 or float64.
        codebook: codes ``[K, D]`` or ``[H, K, D]``.
        metric: ``euclidean``, ``cosine`` or ``dot``.
        inverse_temperature: :math:`\beta > 0`.
        counted: bool ``[...]`` or ``[..., H]``, the vectors that count; all unless given.

    Returns:
        :class:`Entropy`, in float32, float64 if an input is. For the batch entropy of several
        processes, average ``probabilities`` over them, weighted by ``counted``, and take
        :func:`distribution_entropy`.

    Raises:
        TypeError: an input is not floating, or ``counted`` is not bool.
        ValueError: shapes, devices or options do not fit.

    Note:
        A vector holding NaN or Inf, or all of whose logits overflow, does not count; a code holding
        one has probability 0. Without a vector to count all results are 0. Sums are taken in
        float32 (float64 if an input is), distances from differences. Deterministic. Extra memory
        O((N + K) D), forward and backward.

    Source: 2310.05737 (MAGVIT-v2), section 3.1; 2412.02692 (IBQ).

    Example:
        >>> import torch, fastvq
        >>> x, codebook = torch.tensor([[-9.0], [9.0]]), torch.tensor([[-9.0], [9.0]])
        >>> out = fastvq.ops.entropy(x, codebook)
        >>> out.sample, out.batch
        (tensor(0.), tensor(0.6931))
    """
    prepared = prepare(x, codebook, metric, inverse_temperature)
    kept = prepared.finite
    if counted is not None:
        if counted.dtype != torch.bool:
            raise TypeError(f"counted must be bool, got {_checks.dtype_name(counted)}")
        if counted.shape != x.shape[:-1]:
            raise ValueError(
                f"counted must be {_checks.shape(x)[:-1]}, the shape of x without its last "
                f"dimension, got {_checks.shape(counted)}"
            )
        _checks.same_device("counted", counted, "x", x)
        kept = kept & heads_first(canonical_indices(counted, codebook.ndim == 3))
    sample, probabilities, number, *_ = Entropies.apply(
        prepared.x, prepared.codebook, prepared.bias, kept, prepared.metric, inverse_temperature
    )
    if codebook.ndim == 2:
        sample, probabilities, number = sample[0], probabilities[0], number[0]
    return Entropy(sample, distribution_entropy(probabilities), probabilities, number)


def distribution_entropy(probabilities: Tensor) -> Tensor:
    r"""The entropy in nats of distributions ``[..., K]``: :math:`-\sum_k P_k \log P_k`, ``[...]``.

    Its gradient is finite where a probability is 0; each derivative is given up to a constant,
    which cancels as the probabilities sum to one.

    Args:
        probabilities: ``[..., K]``, not negative, each row with sum 1.

    Raises:
        TypeError: the probabilities are not floating.

    Example:
        >>> import torch, fastvq
        >>> fastvq.ops.distribution_entropy(torch.tensor([0.5, 0.5, 0.0]))
        tensor(0.6931)
    """
    _checks.floating("probabilities", probabilities)
    smallest = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.detach().clamp_min(smallest).log()).sum(-1)


def soft_assignment(
    x: Tensor,
    codebook: Tensor,
    *,
    values: Tensor | None = None,
    metric: Metric = "euclidean",
    inverse_temperature: float = 1.0,
) -> Tensor:
    r"""The mean code of each vector under its softmax, without ever forming the N x K matrix.

    .. math:: y_n = \sum_k p_{nk} v_k, \qquad p_{nk} \propto e^{-\beta d(x_n, c_k)}

    where :math:`v = c` unless values are given. Gradients reach x, the codebook and the values:
    the codes themselves both by their place and as what is averaged.

    Args:
        x: vectors ``[..., D]``, or ``[..., H, D]`` with heads, as :func:`entropy` takes them.
        codebook: codes ``[K, D]`` or ``[H, K, D]``.
        values: v of the codebook's shape, finite.
        metric: ``euclidean``, ``cosine`` (which weighs the codes as given, not those of length 1)
            or ``dot``.
        inverse_temperature: :math:`\beta > 0`.

    Returns:
        The shape of x, in float32, float64 if an input is.

    Raises:
        TypeError: an input is not floating.
        ValueError: shapes, devices or options do not fit.

    Note:
        A vector holding NaN or Inf gets NaN and sends no gradient; a code holding one has
        probability 0. Deterministic. Extra memory O((N + K) D), forward and backward.

    Source: 1704.00648 (soft-to-hard vector quantization).

    Example:
        >>> import torch, fastvq
        >>> fastvq.ops.soft_assignment(torch.zeros(1, 1), torch.tensor([[-1.0], [1.0], [8.0]]))
        tensor([[0.]])
    """
    prepared = prepare(x, codebook, metric, inverse_temperature)
    codes = prepared.codes
    if values is not None:
        _checks.floating("values", values)
        if values.shape != codebook.shape:
            raise ValueError(
                f"values must be {_checks.shape(codebook)}, the shape of the codebook, "
                f"got {_checks.shape(values)}"
            )
        _checks.same_device("values", values, "the codebook", codebook)
        codes = values.view_as(codebook if codebook.ndim == 3 else codebook.unsqueeze(0))
        codes = codes.to(prepared.x.dtype).contiguous()
    expected, *_ = Expectation.apply(
        prepared.x, prepared.codebook, codes, prepared.bias, prepared.metric, inverse_temperature
    )
    expected = torch.where(prepared.finite.unsqueeze(-1), expected, torch.nan)
    return expected.movedim(0, 1).reshape(x.shape)


def code_cross_entropy(
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    *,
    metric: Metric = "euclidean",
    inverse_temperature: float = 1.0,
) -> Tensor:
    r"""The cross entropy of given codes under the softmax, without the N x K matrix.

    .. math:: L_n = -\log p_{n, i_n}, \qquad p_{nk} \propto e^{-\beta d(x_n, c_k)}

    Args:
        x: vectors ``[..., D]``, or ``[..., H, D]`` with heads, as :func:`entropy` takes them.
        codebook: codes ``[K, D]`` or ``[H, K, D]``.
        indices: int64 ``[...]`` or ``[..., H]``, each in ``[0, K)``, or -1 for a vector without a
            code, whose loss is 0 and has no gradient.
        metric: ``euclidean``, ``cosine`` or ``dot``.
        inverse_temperature: :math:`\beta > 0`.

    Returns:
        The shape of the indices, in float32, float64 if an input is; nats, never below 0.

    Raises:
        TypeError: x or the codebook is not floating, or the indices are not int64.
        ValueError: shapes, devices or options do not fit.
        IndexError: (on the CPU) an index is out of range.

    Note:
        A vector holding NaN or Inf gets NaN and sends no gradient; a code holding one has
        probability 0. On a GPU, where a check would have to wait for the device, an index out of
        range gets NaN. Deterministic. Extra memory O((N + K) D), forward and backward.

    Example:
        >>> import torch, fastvq
        >>> x, codebook = torch.zeros(2, 1), torch.tensor([[-1.0], [1.0]])
        >>> fastvq.ops.code_cross_entropy(x, codebook, torch.tensor([1, -1]))
        tensor([0.6931, 0.0000])
    """
    prepared = prepare(x, codebook, metric, inverse_temperature)
    _checks.indices(indices, x)
    _checks.index_range(indices, codebook.shape[-2])
    index = heads_first(canonical_indices(indices, codebook.ndim == 3)).contiguous()
    loss, *_ = Surprisal.apply(
        prepared.x, prepared.codebook, prepared.bias, index, prepared.metric, inverse_temperature
    )
    loss = torch.where(prepared.finite | (index == -1), loss, torch.nan)
    return loss.movedim(0, 1).reshape(indices.shape)


def sample_codes(
    x: Tensor,
    codebook: Tensor,
    *,
    seed: int | Tensor,
    metric: Metric = "euclidean",
    inverse_temperature: float = 1.0,
) -> Tensor:
    r"""A code for each vector drawn from its softmax, without ever forming the N x K matrix.

    .. math:: i_n = \operatorname{argmax}_k \, -\beta d(x_n, c_k) + g_{nk}, \qquad
              g_{nk} = -\log(-\log u_{nk})

    where u is a hash of (seed, number of the row, number of the code): one seed gives one answer,
    on every device and in every backend but for ties within the rounding of float32.

    Args:
        x: vectors ``[..., D]``, or ``[..., H, D]`` with heads, as :func:`entropy` takes them.
        codebook: codes ``[K, D]`` or ``[H, K, D]``.
        seed: an int of 64 bits, or a 0-d int64 tensor on the device of x; draw a new one for each
            call, as ``torch.randint(2**62, ())`` does.
        metric: ``euclidean``, ``cosine`` or ``dot``.
        inverse_temperature: :math:`\beta > 0`.

    Returns:
        int64 ``[...]`` or ``[..., H]``. Not differentiable.

    Raises:
        TypeError: an input is not floating, or the seed is neither int nor int64.
        ValueError: shapes, devices or options do not fit.

    Note:
        A vector holding NaN or Inf gets index 0; a code holding one is never drawn while a finite
        one exists. The noise of one pair has 32 bits. Deterministic. Extra memory O((N + K) D).

    Source: 1611.01144 (Gumbel-softmax), equation 1.

    Example:
        >>> import torch, fastvq
        >>> x, codebook = torch.zeros(6, 1), torch.tensor([[-1.0], [1.0], [99.0]])
        >>> fastvq.ops.sample_codes(x, codebook, seed=0)
        tensor([0, 1, 1, 1, 0, 1])
    """
    if not isinstance(seed, Tensor):
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be an int or an int64 tensor, got {type(seed).__name__}")
        seed = torch.tensor(seed, dtype=torch.int64, device=x.device)
    if seed.dtype != torch.int64 or seed.ndim != 0:
        raise TypeError(
            f"seed must be a 0-d int64 tensor, got {_checks.dtype_name(seed)} "
            f"of shape {_checks.shape(seed)}"
        )
    prepared = prepare(x.detach(), codebook.detach(), metric, inverse_temperature)
    _checks.same_device("seed", seed, "x", x)
    keys = row_keys(seed, *prepared.x.shape[:2])
    drawn = softmax_samples(
        prepared.x, prepared.codebook, prepared.bias, keys, prepared.metric, inverse_temperature
    )
    drawn = torch.where(prepared.finite, drawn, 0)
    return drawn.movedim(0, 1).reshape(x.shape[:-1])
