# SPDX-License-Identifier: Apache-2.0
"""Whole quantizers in the layouts of other libraries, read and written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastvq.compat._books import Averaged, Book, Summed
from fastvq.compat._keys import Keys
from fastvq.compat._projections import Projections
from fastvq.nn import (
    EMA,
    FSQ,
    LFQ,
    Gradient,
    ProjectedResidualVQ,
    ResidualVQ,
    SimVQ,
    VectorQuantizer,
)
from fastvq.nn.learning import Learning

_MOVING = EMA()
State = dict[str, Tensor]
Read = tuple[dict[str, Any], State]


@dataclass(frozen=True)
class Single:
    """A quantizer of one codebook."""

    book: Averaged
    learning: Learning = _MOVING
    channel_dim: int = -1
    projections: Projections | None = None
    metrics: tuple[str, ...] = ("euclidean",)
    quantizer = VectorQuantizer

    def read(self, keys: Keys) -> Read:
        """Constructor arguments and state dict."""
        book = self.book.read(keys)
        maps = {} if self.projections is None else self.projections.read(keys)
        heads, size, width = book.codes.shape
        dim = _width(keys.peer, maps, heads * width)
        arguments = {
            "dim": dim,
            "codebook_size": size,
            "codebook_dim": width,
            "heads": heads,
            "learning": self.learning,
            "channel_dim": self.channel_dim,
        }
        return arguments, {**_book_state([book]), **maps}

    def write(self, peer: str, quantizer: VectorQuantizer) -> State:
        """The library's state dict."""
        if quantizer.metric not in self.metrics:
            known = " or ".join(self.metrics)
            raise ValueError(f"{peer} searches by {known} distance, got {quantizer.metric!r}")
        if quantizer.heads > 1 and not self.book.heads:
            raise ValueError(f"{peer} has one head, got {quantizer.heads}")
        if quantizer.projects and self.projections is None:
            raise ValueError(f"{peer} has no projections, got {quantizer.dim} channels to "
                             f"{quantizer.heads * quantizer.codebook_dim}")  # fmt: skip
        state = _detached(quantizer)
        found = self.book.write(_books(quantizer)[0])
        return {**found, **(self.projections or Projections()).write(peer, state)}


@dataclass(frozen=True)
class Levels:
    """A residual quantizer; ``{}`` in the pattern stands for the number of the level."""

    pattern: str
    book: Averaged | Summed
    channel_dim: int = -1
    projections: Projections | None = None
    quantizer = ResidualVQ

    def read(self, keys: Keys) -> Read:
        """Constructor arguments and state dict."""
        books = [
            self.book.read(keys, self.pattern.format(i)) for i in range(keys.count(self.pattern))
        ]
        shapes = {tuple(book.codes.shape) for book in books}
        if len(shapes) > 1 or books[0].codes.shape[0] > 1:
            raise ValueError(
                f"levels must be codebooks [K, D] of one shape, got {sorted(shapes)} in {keys.peer}"
            )
        maps = {} if self.projections is None else self.projections.read(keys)
        _, size, width = books[0].codes.shape
        arguments = {
            "dim": _width(keys.peer, maps, width),
            "codebook_size": size,
            "num_quantizers": len(books),
            "codebook_dim": width,
            "channel_dim": self.channel_dim,
        }
        return arguments, {**_book_state(books), **maps}

    def write(self, peer: str, quantizer: ResidualVQ) -> State:
        """The library's state dict."""
        state = _detached(quantizer)
        if "project_in.weight" in state and self.projections is None:
            raise ValueError(f"{peer} has no projections around its levels, got some")
        found: State = {}
        for i, book in enumerate(_books(quantizer)):
            for codes, counts in zip(book.codes, book.counts, strict=True):
                level = Book(codes.unsqueeze(0), counts.unsqueeze(0), book.started)
                found |= self.book.write(level, self.pattern.format(i))
        return {**found, **(self.projections or Projections()).write(peer, state)}


@dataclass(frozen=True)
class ProjectedLevels:
    """DAC's levels, of which each has projections of its own."""

    projections: Projections
    quantizer = ProjectedResidualVQ
    pattern = "quantizers.{}."
    book = Averaged("codebook.weight")

    def read(self, keys: Keys) -> Read:
        """Constructor arguments and state dict."""
        books, shapes = [], set()
        state: State = {}
        for i in range(keys.count(self.pattern)):
            at = self.pattern.format(i)
            books.append(self.book.read(keys, at))
            level = {**_book_state(books[-1:]), **self.projections.read(keys, at)}
            dim = _width(keys.peer, level, books[-1].codes.shape[-1])
            shapes.add((*books[-1].codes.shape[1:], dim))
            state |= {f"levels.{i}.{name}": tensor for name, tensor in level.items()}
        if len(shapes) > 1:
            raise ValueError(
                "levels must agree in codebook_size, codebook_dim and dim, "
                f"got {sorted(shapes)} in {keys.peer}"
            )
        size, width, dim = shapes.pop()
        if width == dim:
            raise ValueError(f"codebook_dim must not be dim, got {dim} for both in {keys.peer}")
        arguments = {
            "dim": dim,
            "codebook_size": size,
            "num_quantizers": len(books),
            "codebook_dim": width,
            "metric": "angular",
            "channel_dim": 1,
        }
        return arguments, state

    def write(self, peer: str, quantizer: ProjectedResidualVQ) -> State:
        """The library's state dict."""
        found: State = {}
        for i, level in enumerate(quantizer.levels):
            assert isinstance(level, VectorQuantizer)
            # codes of unit length are found and decoded there as they are under cosine
            if level.metric not in ("angular", "cosine"):
                raise ValueError(f"{peer} searches by direction, got {level.metric!r}")
            at = self.pattern.format(i)
            found |= self.book.write(_books(level)[0], at)
            found |= self.projections.write(peer, _detached(level), at)
        return found


@dataclass(frozen=True)
class Grid:
    """lucidrains' FSQ and LFQ, whose codes are no tensors."""

    quantizer: type[FSQ] | type[LFQ]

    def read(self, keys: Keys) -> Read:
        """Constructor arguments and state dict; the levels of FSQ are in no checkpoint."""
        arguments: dict[str, Any] = {}
        state = Projections().read(keys)
        if self.quantizer is LFQ:
            arguments["codebook_size"] = 2 ** len(keys.take("mask"))
        if state:
            arguments["dim"] = state["project_in.weight"].shape[1]
        return arguments, state

    def write(self, peer: str, quantizer: FSQ | LFQ) -> State:
        """The library's state dict."""
        found = Projections().write(peer, _detached(quantizer))
        if isinstance(quantizer, LFQ):
            found["mask"] = 2 ** torch.arange(quantizer.bits - 1, -1, -1)
        return found


@dataclass(frozen=True)
class Mapped:
    """lucidrains' SimVQ."""

    quantizer = SimVQ

    def read(self, keys: Keys) -> Read:
        """Constructor arguments and state dict."""
        frozen, weight = keys.take("frozen_codebook"), keys.take("code_transform.weight")
        arguments = {
            "dim": weight.shape[0],
            "codebook_size": frozen.shape[0],
            "codebook_dim": frozen.shape[1],
        }
        return arguments, {"frozen": frozen, "map.weight": weight}

    def write(self, peer: str, quantizer: SimVQ) -> State:
        """The library's state dict."""
        state = _detached(quantizer)
        return {
            "frozen_codebook": state["frozen"].clone(),
            "code_transform.weight": state["map.weight"].clone(),
        }


def _width(peer: str, maps: State, inner: int) -> int:
    """The channels of the input, from the projections if there are any."""
    if not maps:
        return inner
    rows, dim = maps["project_in.weight"].shape
    if rows != inner:
        # lucidrains' heads may share one codebook
        raise ValueError(
            f"project_in must lead to the {inner} channels of the codes, got {rows} in {peer}"
        )
    return int(dim)


def _book_state(books: list[Book]) -> State:
    codes = torch.cat([book.codes for book in books])
    started = torch.tensor(all(book.started for book in books), device=codes.device)
    counts = torch.cat([book.counts for book in books])
    return {"book.vectors": codes, "book.cluster_size": counts, "book.started": started}


def _books(quantizer: VectorQuantizer | ResidualVQ) -> list[Book]:
    """One book of all heads, or one for each level."""
    book = quantizer.book
    codes, counts, started = book.codes().detach(), book.cluster_size, bool(book.started)
    if isinstance(quantizer, VectorQuantizer):
        return [Book(codes, counts, started)]
    return [
        Book(c.unsqueeze(0), n.unsqueeze(0), started) for c, n in zip(codes, counts, strict=True)
    ]


def _detached(quantizer: nn.Module) -> State:
    return {name: tensor.detach() for name, tensor in quantizer.state_dict().items()}


_LUCIDRAINS = Averaged(
    "_codebook.embed", "_codebook.cluster_size", "_codebook.embed_avg", "_codebook.initted"
)
_ENCODEC = Averaged("embed", "cluster_size", "embed_avg", "inited", (1,))
_MIMI = Projections(("input_proj", "output_proj"), convolved=True, biased=False)
_DAC = Projections(("in_proj", "out_proj"), convolved=True, optional=False)

LAYOUTS: dict[str, Single | Levels | ProjectedLevels | Grid | Mapped] = {
    "lucidrains.VectorQuantize": Single(
        _LUCIDRAINS._replace(heads=True),
        projections=Projections(),
        metrics=("euclidean", "cosine"),
    ),
    "lucidrains.ResidualVQ": Levels(
        "layers.{}.", _LUCIDRAINS._replace(heads=True), projections=Projections()
    ),
    "lucidrains.FSQ": Grid(FSQ),
    "lucidrains.LFQ": Grid(LFQ),
    "lucidrains.SimVQ": Mapped(),
    # diffusers' VQModel keeps taming's names
    "taming": Single(Averaged("embedding.weight"), Gradient(), channel_dim=1),
    "rosinality": Single(Averaged("embed", "cluster_size", "embed_avg", transposed=True)),
    "zalando": Single(Averaged("_embedding.weight"), Gradient(), channel_dim=1),
    "zalando.EMA": Single(
        Averaged("_embedding.weight", "_ema_cluster_size", "_ema_w"), channel_dim=1
    ),
    "encodec": Levels("vq.layers.{}._codebook.", _ENCODEC, channel_dim=1),
    "encodec.transformers": Levels("layers.{}.codebook.", _ENCODEC, channel_dim=1),
    "mimi": Levels(
        "vq.layers.{}._codebook.",
        Summed("embedding_sum", "cluster_usage", "_initialized"),
        channel_dim=1,
        projections=_MIMI,
    ),
    "mimi.transformers": Levels(
        "layers.{}.codebook.",
        Summed("embed_sum", "cluster_usage", "initialized"),
        channel_dim=1,
        projections=_MIMI,
    ),
    "dac": ProjectedLevels(_DAC._replace(normed=True)),
    "dac.transformers": ProjectedLevels(_DAC),
    "rq-vae-transformer": Levels(
        "codebooks.{}.",
        Averaged("weight", "cluster_size_ema", "embed_ema", padded=True),
    ),
}
