# SPDX-License-Identifier: Apache-2.0
"""How a codebook learns: by moving average, by gradient, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastvq import _checks
from fastvq.nn.regularizers import Diversity, Orthogonality, Seen


@dataclass(frozen=True)
class EMA:
    r"""Codes follow the moving average of the vectors assigned to them.

    With counts :math:`n_k` and sums :math:`s_k` of one step's vectors,

    .. math:: N_k \leftarrow \gamma N_k + (1 - \gamma) n_k, \qquad
              c_k \leftarrow c_k + \frac{1 - \gamma}{N_k} (s_k - n_k c_k)

    which is the paper's :math:`m_k \leftarrow \gamma m_k + (1 - \gamma) s_k`,
    :math:`c_k = m_k / N_k`, written so that :math:`m_k` need not be kept: it equals
    :math:`N_k c_k` at every step, the first one included. A code that receives nothing stays
    where it is.

    Args:
        decay: :math:`\gamma` in [0, 1).
        every: training forwards that make one update; set it to the number of accumulation steps
            and the update equals that of the whole batch.

    Source: 1711.00937, appendix A.1.
    """

    decay: float = 0.99
    every: int = 1

    def __post_init__(self) -> None:
        _checks.fraction("decay", self.decay)
        _checks.positive("every", self.every)


@dataclass(frozen=True)
class Gradient:
    r"""Codes are a parameter of the model, moved by the optimizer through the codebook loss.

    .. math:: L = \beta \, L_\text{commitment} + w \, L_\text{codebook} + \sum_r w_r L_r

    Args:
        weight: w, the weight of the codebook loss.
        regularizers: further losses of the codes: :class:`Orthogonality`, of the codes alone, and
            :class:`Diversity`, of their use.

    Source: 1711.00937, section 3.2, equation 3.
    """

    weight: float = 1.0
    regularizers: tuple[Orthogonality | Diversity, ...] = ()

    def __post_init__(self) -> None:
        _checks.fraction("weight", self.weight, high=float("inf"))
        _checks.instance("regularizers", self.regularizers, tuple)
        for regularizer in self.regularizers:
            _checks.instance("regularizers", regularizer, Orthogonality, Diversity)

    def loss(self, codebook_loss: Tensor, codes: Tensor, seen: Callable[[], Seen]) -> Tensor:
        """What codes ``[H, K, D]`` pay: their codebook loss and the regularizers, weighted.

        ``seen`` is made only where a regularizer looks at more than the codes.
        """
        loss = self.weight * codebook_loss
        for regularizer in self.regularizers:
            loss = loss + regularizer.weight * regularizer(codes, seen)
        return loss


@dataclass(frozen=True)
class Frozen:
    """Codes stay as they start; only their use is recorded."""


Learning = EMA | Gradient | Frozen
