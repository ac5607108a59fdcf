# SPDX-License-Identifier: Apache-2.0
"""The priors that their contract is run on, what they are given, and how they are looked at."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from fastvq.priors import Context, Prior, probabilities

Fields = Mapping[str, Any]
Shape = tuple[int, ...]

NO_DROPOUT: Fields = {"dropout": 0.0, "code_dropout": 0.0, "label_dropout": 0.0}
CLASSES: Fields = {"num_classes": 3, "label_dropout": 0.0}
CLASSES_OR_NONE: Fields = {"num_classes": 3, "label_dropout": 0.2}
CONTEXT: Fields = {"context_channels": 2}
# for logits of a few units: some tens of float32 roundings, and far more than float64 needs
BUDGETS = {torch.float32: 1e-5, torch.float64: 1e-10}


class PriorCases:
    """What a contract of priors is run on: small priors, and what they are given.

    Attributes:
        codes: K of the priors that ``make`` makes.
        shapes: grids on which logits are looked at; the priors see the whole of each.
        sampled_shapes: grids on which samples are compared, which costs a forward per position.
        conditions: name -> fields of the config that say what a prior is conditioned on.
        variants: name -> fields that give other nets, each of which sees the whole of the shapes.
        shallow: fields that make a net whose ``reach`` is less than ``shapes[0]``, or ``None``
            where every prior sees all.
    """

    codes: ClassVar[int] = 7
    shapes: ClassVar[Sequence[Shape]] = ((5, 9), (9, 5), (1, 6), (6, 1))
    sampled_shapes: ClassVar[Sequence[Shape]] = ((3, 5), (5, 3))
    conditions: ClassVar[Mapping[str, Fields]] = {
        "plain": {},
        "classes": CLASSES,
        "classes-or-none": CLASSES_OR_NONE,
        "context": CONTEXT,
        "classes-context": {**CLASSES_OR_NONE, **CONTEXT},
    }
    variants: ClassVar[Mapping[str, Fields]] = {"net": {}}
    shallow: ClassVar[Fields | None] = None

    @abstractmethod
    def make(self, **fields: Any) -> Prior:
        """A new small prior of K = ``codes`` with weights as large as training makes them.

        Args:
            **fields: of its config; what they leave out is up to you.
        """

    def context(self, prior: Prior, batch: int, shape: Shape) -> Context | None:
        """A random context that ``prior`` takes, ``None`` where it takes none."""
        channels = prior.config.context_channels
        dtype = next(prior.parameters()).dtype
        return torch.randn(batch, channels, *shape, dtype=dtype) if channels else None

    def sees(self, prior: Prior, shape: Shape) -> Tensor:
        """Whether the logits at s depend on the code at t, bool ``[T, T]``, row t, column s.

        By default, on every earlier code that is within ``prior.reach`` along each axis.
        """
        size = math.prod(shape)
        places = torch.stack(torch.unravel_index(torch.arange(size), shape), dim=-1)
        apart = (places - places[:, None]).abs().amax(-1)
        return (apart <= prior.reach) & earlier(size)

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        """Runs a test for each value of the arguments it asks for by these names."""
        full = list(cls.conditions)[-1]
        for name, values in (
            ("shape", cls.shapes),
            ("sampled_shape", cls.sampled_shapes),
            ("condition", list(cls.conditions)),
            ("extreme", dict.fromkeys([next(iter(cls.conditions)), full])),
            ("classed", [n for n, f in cls.conditions.items() if f.get("label_dropout")]),
            ("variant", list(cls.variants)),
            ("dtype", BUDGETS),
        ):
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, list(values), ids=str)

    def prior(
        self, condition: str, variant: str | None = None, dtype: torch.dtype = torch.float64
    ) -> Prior:
        """A prior in eval mode under a condition."""
        variant = next(iter(self.variants)) if variant is None else variant
        return (
            self.make(**{**self.variants[variant], **self.conditions[condition]}).to(dtype).eval()
        )

    def draw(
        self, prior: Prior, batch: int, shape: Shape
    ) -> tuple[Tensor, Tensor | None, Context | None]:
        """Random codes, labels and context that ``prior`` takes."""
        classes = prior.config.num_classes
        labels = None if classes is None else torch.randint(classes, (batch,))
        codes = torch.randint(self.codes, (batch, *shape))
        return codes, labels, self.context(prior, batch, shape)


def earlier(size: int) -> Tensor:
    """``[T, T]``, true where the row comes before the column."""
    return torch.ones(size, size, dtype=torch.bool).triu(1)


@torch.no_grad()
def influence(
    prior: Prior, codes: Tensor, labels: Tensor | None, context: Context | None
) -> Tensor:
    """How far changing the code at t moves the logits at s: ``[T, T]``, row t, column s."""
    size = codes.numel()
    changed = codes.flatten().repeat(size, 1)
    changed.diagonal().add_(1).remainder_(prior.config.codebook_size)
    before = prior(codes, labels, context).view(1, size, -1)
    after = prior(
        changed.view(size, *codes.shape[1:]),
        None if labels is None else labels.expand(size),
        map_context(context, lambda given: given.expand(size, *given.shape[1:])),
    )
    return (after.view(size, size, -1) - before).abs().amax(-1)


def one_row(
    row: int, codes: Tensor, labels: Tensor | None, context: Context | None
) -> tuple[Tensor, Tensor | None, Context | None]:
    """One grid of a batch, with its label and context."""
    rows = slice(row, row + 1)
    label = None if labels is None else labels[rows]
    return codes[rows], label, map_context(context, lambda given: given[rows])


def map_context(context: Context | None, function: Callable[[Tensor], Tensor]) -> Context | None:
    if isinstance(context, tuple):
        return tuple(function(grid) for grid in context)
    return None if context is None else function(context)


def on_an_edge(logits: Tensor, uniform: Tensor, budget: float, options: Fields) -> bool:
    """Whether rounding of the logits ``[1, K]`` may change the code that ``uniform`` stands for."""
    draws = set()
    for shift in budget * torch.eye(logits.shape[-1], dtype=logits.dtype) - budget / 2:
        cumulative = probabilities(logits + shift, **options).cumsum(-1)[0]
        draws.add(int((cumulative <= uniform * cumulative[-1]).sum()))
    return len(draws) > 1
