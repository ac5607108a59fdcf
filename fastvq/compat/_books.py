# SPDX-License-Identifier: Apache-2.0
"""How other libraries keep one codebook: its codes, its counts, and whether it has started."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.compat._keys import Keys

# of every library here that smooths its counts
_EPSILON = 1e-5


class Book(NamedTuple):
    """Codes ``[H, K, D]``, counts ``[H, K]`` and whether they hold their start."""

    codes: Tensor
    counts: Tensor
    started: bool


class Averaged(NamedTuple):
    r"""Codes beside what they are the average of; the latter is made anew on the way back.

    The average kept by a library that smooths its counts, :math:`m_k = c_k \, (N_k + \epsilon)
    \, N / (N + K \epsilon)` with :math:`N = \sum_k N_k`, says nothing that codes and counts do
    not say.
    """

    codes: str
    counts: str | None = None
    average: str | None = None
    started: str | None = None
    # the shape of the flag, a bool where it has no axis and a float where it has one
    started_shape: tuple[int, ...] = ()
    heads: bool = False
    transposed: bool = False
    padded: bool = False

    def read(self, keys: Keys, at: str = "") -> Book:
        """Takes the codebook whose names start with ``at``."""
        codes = keys.take(at + self.codes)
        codes = codes.t() if self.transposed else codes
        codes = codes[:-1] if self.padded else codes
        # lucidrains' had no axis of heads before 2022-07
        codes = codes.unsqueeze(0) if codes.ndim == 2 else codes
        counts = torch.ones(codes.shape[:2], dtype=codes.dtype, device=codes.device)
        if self.counts is not None:
            counts = keys.take(at + self.counts)
            _fits(keys.peer, codes, counts)
            counts = counts.reshape(codes.shape[:2])
        if self.average is not None:
            # early cosine codebooks of lucidrains have none
            keys.maybe(at + self.average)
        flag = keys.maybe(at + self.started) if self.started is not None else None
        return Book(codes, counts, flag is None or bool(flag.all()))

    def write(self, book: Book, at: str = "") -> dict[str, Tensor]:
        """The tensors of the codebook, their names starting with ``at``."""
        total = book.counts.sum(-1, keepdim=True)
        share = (book.counts + _EPSILON) / (total + book.counts.shape[-1] * _EPSILON)
        average = book.codes * (share * total).unsqueeze(-1)
        found = {}
        for name, tensor in ((self.codes, book.codes), (self.average, average)):
            if name is None:
                continue
            tensor = tensor if self.heads else tensor[0]
            tensor = tensor.t() if self.transposed else tensor
            if self.padded and name == self.codes:
                tensor = torch.cat([tensor, torch.zeros_like(tensor[:1])])
            found[at + name] = tensor.clone(memory_format=torch.contiguous_format)
        if self.counts is not None:
            found[at + self.counts] = (book.counts if self.heads else book.counts[0]).clone()
        if self.started is not None:
            found[at + self.started] = _flag(book, self.started_shape)
        return found


class Summed(NamedTuple):
    """Sums and counts, of which the codes are the quotient: Mimi."""

    sums: str
    counts: str
    started: str
    heads: bool = False
    # of the library, below which it takes no count
    floor: float = 1e-5

    def read(self, keys: Keys, at: str = "") -> Book:
        """Takes the codebook whose names start with ``at``."""
        sums, counts = keys.take(at + self.sums), keys.take(at + self.counts)
        _fits(keys.peer, sums, counts)
        started = bool(keys.take(at + self.started).all())
        return Book(self._quotient(sums, counts).unsqueeze(0), counts.unsqueeze(0), started)

    def write(self, book: Book, at: str = "") -> dict[str, Tensor]:
        """The tensors of the codebook, their names starting with ``at``."""
        codes, counts = book.codes[0], book.counts[0]
        sums = codes * counts.clamp(min=self.floor).unsqueeze(-1)
        return {
            at + self.sums: sums,
            at + self.counts: counts.clone(),
            at + self.started: _flag(book, (1,)),
        }

    def _quotient(self, sums: Tensor, counts: Tensor) -> Tensor:
        return sums / counts.clamp(min=self.floor).unsqueeze(-1)


def _fits(peer: str, codes: Tensor, counts: Tensor) -> None:
    if counts.numel() != codes.shape[:-1].numel():
        raise ValueError(
            f"counts must be one for each of the codes {_checks.shape(codes)}, "
            f"got {_checks.shape(counts)} in {peer}"
        )


def _flag(book: Book, shape: tuple[int, ...]) -> Tensor:
    dtype = torch.float32 if shape else torch.bool
    return torch.full(shape, book.started, dtype=dtype, device=book.codes.device)
