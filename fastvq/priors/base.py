# SPDX-License-Identifier: Apache-2.0
"""What every prior over codes offers, and the cache through which it is sampled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvq import _checks


@dataclass(frozen=True)
class PriorConfig:
    """What every prior is told: the codes, what it is conditioned on, how it is regularised.

    Args:
        codebook_size: K, the number of codes.
        num_classes: classes to condition on; ``None`` for an unconditional prior.
        context_channels: channels of the features that every position is conditioned on (the codes
            of the levels above, encoded by a :class:`fastvq.priors.LevelContext`; the codes that a
            decoder decodes); 0 for none.
        dropout: probability of dropping a unit in training; each prior says where.
        code_dropout: probability of hiding an input code in training (what is predicted stays).
        label_dropout: probability of hiding a label in training. Above zero, the prior also
            answers for ``labels=None``.

    Raises:
        TypeError, ValueError: a count below its least, a probability outside [0, 1).
    """

    codebook_size: int
    num_classes: int | None = None
    context_channels: int = 0
    dropout: float = 0.3
    code_dropout: float = 0.1
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        _checks.positive("codebook_size", self.codebook_size)
        if self.num_classes is not None:
            _checks.positive("num_classes", self.num_classes)
        if self.context_channels < 0:
            raise ValueError(f"context_channels must be at least 0, got {self.context_channels}")
        for name in ("dropout", "code_dropout", "label_dropout"):
            _checks.fraction(name, getattr(self, name))


# what positions are conditioned on: features [B, C, *shape], or the grids of codes they come from
Context = Tensor | tuple[Tensor, ...]


class Stepper(Protocol):
    """A cache: the logits of one position after another in raster order.

    ``logits`` and ``append`` alternate, once per position. What ``logits`` returns is the caller's
    to keep: a stepper does not write to it again.
    """

    def logits(self) -> Tensor:
        """Logits ``[B, K]`` of the next position given the codes appended so far."""
        ...

    def append(self, codes: Tensor) -> None:
        """Fixes the codes ``[B]``, int64, of that position and moves on."""
        ...


@runtime_checkable
class PeriodicStepper(Stepper, Protocol):
    """A stepper that does the same again and again: a CUDA graph of one period is one of each.

    From the start of any period on, ``period`` positions are the same operations with the same
    numbers on the same memory, for what differs from one period to the next is in tensors.

    Attributes:
        period: how many positions a period has.
    """

    period: int


class Prior(nn.Module, ABC):
    r"""A distribution over grids of codes, one code after another in raster order.

    .. math:: p(z) = \prod_t p(z_t \mid z_1, \dots, z_{t-1}, \text{label}, \text{context})

    Logits at a position depend on no code at or after it, exactly. A label, and the context at any
    position, may move every logit.

    Args:
        config: see :class:`PriorConfig`.
    """

    # axes of a grid of codes; None where any number will do
    grid_dims: ClassVar[int | None] = None

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        classes = config.num_classes or 0
        # the last row answers for "no label"; without label dropout nothing would train it
        self.num_label_rows = classes + (1 if classes and config.label_dropout else 0)

    @property
    @abstractmethod
    def reach(self) -> float:
        """How far back along every axis a logit can see, at most; infinite without a limit."""

    @abstractmethod
    def forward(
        self, codes: Tensor, labels: Tensor | None = None, context: Context | None = None
    ) -> Tensor:
        """Logits of every code given the codes before it.

        Args:
            codes: int64 ``[B, *shape]`` in ``[0, K)``.
            labels: int64 ``[B]`` in ``[0, num_classes)``; ``None`` for an unconditional prior, or
                for a conditional one trained with label dropout.
            context: floating ``[B, context_channels, *shape]``, ``None`` for a prior without; a
                :class:`fastvq.priors.LevelPrior` takes the grids of codes it is made from.

        Returns:
            Logits ``[B, *shape, K]`` in the dtype of the parameters.

        Raises:
            TypeError, ValueError: a wrong rank, dtype, size, device or range; a missing label or
                context.
        """

    @abstractmethod
    def stepper(
        self,
        batch: int,
        shape: Sequence[int],
        labels: Tensor | None = None,
        context: Context | None = None,
    ) -> Stepper:
        """A fresh cache at the first position of ``batch`` grids, for a prior in eval mode.

        Raises:
            RuntimeError: the prior is in training mode, where dropout would make every answer
                another.
            TypeError, ValueError: as for :meth:`forward`.
        """

    def nll(
        self, codes: Tensor, labels: Tensor | None = None, context: Context | None = None
    ) -> Tensor:
        """Negative log-likelihood of every code in nats, shaped like ``codes``."""
        logits = self(codes, labels, context)
        losses = F.cross_entropy(logits.flatten(0, -2), codes.flatten(), reduction="none")
        return losses.view_as(codes)

    def label_rows(self, labels: Tensor | None, batch: int) -> Tensor | None:
        """Checked rows ``[B]`` of the label tables; ``None`` for an unconditional prior."""
        classes = self.config.num_classes
        if classes is None:
            if labels is not None:
                raise ValueError("labels must be None for a prior without classes, got a tensor")
            return None
        if labels is None:
            if self.num_label_rows == classes:
                raise ValueError(
                    "labels must be given: the prior has classes and label_dropout = 0, "
                    "so it never learned to do without"
                )
            return torch.full((batch,), classes, device=self._device)
        check_int64("labels", labels)
        if labels.shape != (batch,):
            raise ValueError(f"labels must be [B] with B = {batch}, got {list(labels.shape)}")
        self._check_device("labels", labels)
        check_range("labels", labels, "num_classes", classes)
        return labels

    def checked_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """``shape`` as a tuple, with the number of axes that this prior takes, none of them 0."""
        axes = self.grid_dims
        if (axes is not None and len(shape) != axes) or not shape or min(shape) < 1:
            wanted = "at least 1 axis" if axes is None else f"{axes} axes"
            raise ValueError(f"shape must have {wanted}, each at least 1, got {tuple(shape)}")
        return tuple(shape)

    def check_codes(self, codes: Tensor) -> None:
        """Raises unless ``codes`` are what :meth:`forward` takes."""
        check_int64("codes", codes)
        axes = self.grid_dims
        if (axes is not None and codes.ndim != 1 + axes) or codes.ndim < 2 or 0 in codes.shape[1:]:
            wanted = "[B, *shape]" if axes is None else f"[B, *shape] with {axes} axes in shape"
            raise ValueError(f"codes must be {wanted}, each at least 1, got {list(codes.shape)}")
        self._check_device("codes", codes)
        check_range("codes", codes, "K", self.config.codebook_size)

    def features(self, context: Context | None, batch: int, shape: Sequence[int]) -> Tensor | None:
        """Checked features ``[B, context_channels, *shape]``; ``None`` for a prior without."""
        channels = self.config.context_channels
        if not channels:
            if context is not None:
                raise ValueError("context must be None for a prior without context_channels")
            return None
        wanted = [batch, channels, *shape]
        if not isinstance(context, Tensor):
            got = "none" if context is None else type(context).__name__
            raise TypeError(f"context must be a floating tensor {wanted}, got {got}")
        _checks.floating("context", context)
        if list(context.shape) != wanted:
            raise ValueError(f"context must be {wanted}, got {list(context.shape)}")
        self._check_device("context", context)
        return context

    def hidden_labels(self, rows: Tensor | None) -> Tensor | None:
        """``rows`` with some replaced by that of "no label", in training with label dropout."""
        if not self.training or rows is None or not self.config.label_dropout:
            return rows
        hidden = torch.rand(rows.shape, device=rows.device) < self.config.label_dropout
        return torch.where(hidden, self.num_label_rows - 1, rows)

    def hidden_codes(self, embedded: Tensor) -> Tensor:
        """``embedded [B, *shape, C]`` with whole codes zeroed, in training with code dropout."""
        if not self.training or not self.config.code_dropout:
            return embedded
        positions = embedded.shape[:-1]
        shown = torch.rand(positions, device=embedded.device) >= self.config.code_dropout
        return embedded * shown[..., None]

    def check_evaluating(self) -> None:
        """Raises ``RuntimeError`` in training mode: for steppers."""
        if self.training:
            raise RuntimeError("a stepper needs the prior in eval mode: call prior.eval() first")

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _check_device(self, name: str, tensor: Tensor) -> None:
        _checks.same_device(name, tensor, "the prior", next(self.parameters()))


def start_near_uniform(logits: nn.Module) -> None:
    """Shrinks the layer of the logits: a prior starts near log K, the loss of knowing nothing."""
    with torch.no_grad():
        for parameter in logits.parameters():
            parameter.mul_(0.1)


def check_int64(name: str, value: object) -> None:
    """Raises ``TypeError`` unless ``value`` is an int64 tensor."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        got = _checks.dtype_name(value) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be an int64 tensor, got {got}")


def check_range(name: str, values: Tensor, bound_name: str, bound: int) -> None:
    """Raises ``ValueError`` unless ``values`` are in [0, bound)."""
    # a look at the values would hold up an accelerator and break a compiled graph
    if values.device.type != "cpu" or torch.compiler.is_compiling() or values.numel() == 0:
        return
    low, high = (int(end) for end in values.aminmax())
    if low < 0 or high >= bound:
        worst = low if low < 0 else high
        raise ValueError(f"{name} must be in [0, {bound_name} = {bound}), got {worst}")
