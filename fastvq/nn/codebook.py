# SPDX-License-Identifier: Apache-2.0
"""The state of a quantizer: its codes, how much each is used, and how both change."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastvq import _backends, ops
from fastvq.nn import start as starts
from fastvq.nn._distributed import distributed, of_first_process, sum_over_processes
from fastvq.nn.learning import EMA, Gradient, Learning
from fastvq.nn.revival import Revival
from fastvq.nn.start import KMeans, Start

# the decay of the usage record where learning does not bring its own
_USAGE_DECAY = 0.99
# below this fraction of uniform use a code counts as dead in `usage`, when nothing revives it
_DEAD = 0.01
_NARROW = (torch.float16, torch.bfloat16)


class Usage(NamedTuple):
    """How a codebook is used, from the moving average of its counts.

    Attributes:
        perplexity: exp of the entropy of the use, between 1 and K; the mean over heads.
        dead: number of dead codes, over all heads.
        largest: share of the most used code, the largest over heads.
    """

    perplexity: float
    dead: int
    largest: float


class Codebook(nn.Module):
    """Codes ``[H, K, D]`` with their learning, start and revival.

    Buffers:
        vectors: the codes; a parameter under ``Gradient``.
        cluster_size: ``[H, K]``, moving average of the number of vectors each code takes in a
            step that asks something of its head. Starts at 1, so that a code unused in the first
            step stays where it is.
        started: whether the codes hold their start; false until k-means has seen data.
        pending_counts, pending_residuals, pending_steps: what gradient accumulation has gathered
            since the last update; only with ``EMA(every=2)`` and more.

    The buffers never drop below float32, whatever ``module.to(dtype)`` or a checkpoint asks: a
    moving average in 16 bits stops moving. A parameter follows the dtype of the model.
    """

    vectors: Tensor
    cluster_size: Tensor
    started: Tensor
    pending_counts: Tensor
    pending_residuals: Tensor
    pending_steps: Tensor
    # whether what a head saw at a place is the row of x that lies there
    _revives_from_rows = True

    def __init__(
        self,
        heads: int,
        codebook_size: int,
        dim: int,
        *,
        learning: Learning,
        start: Start,
        revival: Revival | None,
        unit_norm: bool,
    ) -> None:
        super().__init__()
        self.learning, self.start, self.revival = learning, start, revival
        self.unit_norm = unit_norm
        vectors = self._normalized(starts.initial(start, heads, codebook_size, dim))
        if isinstance(learning, Gradient):
            self.vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("vectors", vectors)
        self.register_buffer("cluster_size", torch.ones(heads, codebook_size))
        self.register_buffer("started", torch.tensor(not isinstance(start, KMeans)))
        # once true it is remembered in Python, for reading a tensor makes the host wait
        self._started = False
        if isinstance(learning, EMA) and learning.every > 1:
            self.register_buffer("pending_counts", torch.zeros(heads, codebook_size))
            self.register_buffer("pending_residuals", torch.zeros(heads, codebook_size, dim))
            self.register_buffer("pending_steps", torch.zeros((), dtype=torch.int64))

    def codes(self) -> Tensor:
        """The codes ``[H, K, D]`` as they are searched; of unit length under cosine."""
        return self._on_sphere(self.vectors)

    def snapshot(self) -> Tensor:
        """The codes as of now, safe to keep for backward."""
        # a training step writes them in place while autograd still needs them
        return self._on_sphere(self.vectors.clone() if torch.is_grad_enabled() else self.vectors)

    @torch.no_grad()
    def begin(self, x: Tensor, usable: Tensor | None) -> None:
        """Starts the codes from x ``[B, M, H, D]`` where usable ``[B, M]``; only the first time."""
        if self._has_started() or not isinstance(self.start, KMeans):
            return
        if usable is None:
            usable = x.new_ones(x.shape[:2], dtype=torch.bool)
        self._start_from(*self._centres(x, usable, self.start))

    def _centres(self, x: Tensor, usable: Tensor, start: KMeans) -> tuple[Tensor, Tensor]:
        """Normalized centres ``[H, K, D]``, and whether there was something to find them in."""
        centres, found = starts.kmeans(x, usable, self.vectors, start.iterations)
        return self._normalized(centres), found

    def _start_from(self, centres: Tensor, found: Tensor) -> None:
        """Takes the first process's centres for codes, unless the codes have started."""
        centres = of_first_process(centres)
        begins = of_first_process(found.to(centres.dtype)).bool() & ~self.started
        self.vectors.copy_(torch.where(begins, centres, self.vectors))
        self.started.logical_or_(begins)
        # a graph cannot look, and takes its first batch for usable
        if torch.compiler.is_compiling():
            self._started = True

    @torch.no_grad()
    def learn(self, x: Tensor, indices: Tensor) -> None:
        """One training step from x ``[B, M, H, D]`` and its indices ``[B, M, H]``."""
        codes = self.vectors.shape[1]
        statistics = ops.statistics(x, indices, (x.shape[-2], codes), codebook=self.vectors)
        self._learn_from(*statistics, x, indices)

    def _learn_from(self, counts: Tensor, residuals: Tensor, x: Tensor, indices: Tensor) -> None:
        """The step, given this process's counts ``[H, K]`` and residuals ``[H, K, D]``."""
        if self._fits_kernels(counts, residuals):
            self._by_kernels(counts, residuals, x, indices)
            return
        counts, residuals = sum_over_processes(counts, residuals)
        due: Tensor | bool = True
        if isinstance(self.learning, EMA) and self.learning.every > 1:
            counts, residuals, due = self._accumulate(counts, residuals, self.learning.every)
        self._move(counts, residuals, due)
        if self.revival is not None:
            self._revive(x, indices, due, self.revival)

    def _fits_kernels(self, counts: Tensor, residuals: Tensor) -> bool:
        """Whether Triton takes the step: what it leaves to torch is rare, or compiled anyway."""
        if torch.compiler.is_compiling() or distributed():
            return False
        if isinstance(self.learning, EMA) and self.learning.every > 1:
            return False
        tensors = (counts, residuals, self.vectors, self.cluster_size)
        plain = all(t.dtype == torch.float32 and t.is_contiguous() for t in tensors)
        return plain and _backends.chosen("statistics", counts.device.type) == "triton"

    def _by_kernels(self, counts: Tensor, residuals: Tensor, x: Tensor, indices: Tensor) -> None:
        """What `_move` and `_revive` do, in two launches."""
        rows, revived = indices.shape[0] * indices.shape[1], None
        # whoever looks, in the interpreter, draws nothing where no code is dead
        together = self._revives_from_rows and rows > 0 and not self._may_look(counts)
        if self.revival is not None and together:
            picks = torch.randint(rows, counts.shape, device=x.device)
            revived = (x, indices, picks, self.revival.threshold)
        # Triton need not be there, and is loaded when it is first used
        importlib.import_module("fastvq.nn._triton_update").update(
            self.vectors,
            self.cluster_size,
            counts,
            residuals,
            decay=self._decay,
            moves=isinstance(self.learning, EMA),
            unit_norm=self.unit_norm,
            revived=revived,
        )
        if self.revival is not None and revived is None:
            self._revive(x, indices, True, self.revival)

    def usage(self) -> Usage:
        """Perplexity, dead codes and the share of the largest; waits for the device."""
        total = self.cluster_size.sum(-1, keepdim=True)
        share = self.cluster_size / total.clamp_min(torch.finfo(total.dtype).tiny)  # [H, K]
        entropy = -torch.xlogy(share, share).sum(-1)
        threshold = _DEAD if self.revival is None else self.revival.threshold
        dead = share < threshold / share.shape[-1]
        return Usage(entropy.exp().mean().item(), int(dead.sum()), share.max().item())

    def _accumulate(
        self, counts: Tensor, residuals: Tensor, every: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Adds to what is pending; the third result says whether an update is due."""
        self.pending_counts += counts
        self.pending_residuals += residuals
        self.pending_steps += 1
        due = self.pending_steps == every
        counts, residuals = self.pending_counts.clone(), self.pending_residuals.clone()
        for pending in (self.pending_counts, self.pending_residuals, self.pending_steps):
            pending.copy_(torch.where(due, 0, pending))
        return counts, residuals, due

    def _move(self, counts: Tensor, residuals: Tensor, due: Tensor | bool) -> None:
        """The moving averages of counts and codes."""
        decay = self._decay
        size = decay * self.cluster_size + (1 - decay) * counts.to(self.cluster_size.dtype)
        # a level that nothing was asked of forgets nothing
        asked = counts.sum(-1, keepdim=True) > 0  # [H, 1]
        size = torch.where(asked, size, self.cluster_size)
        self._write(self.cluster_size, size, due)
        if not isinstance(self.learning, EMA):
            return
        # a count long unused may reach zero; its residual is then zero as well
        rate = (1 - decay) / size.clamp_min(torch.finfo(size.dtype).tiny)
        step = rate.unsqueeze(-1) * residuals.to(self.vectors.dtype)
        # sums of finite vectors may overflow; a code they reach stays where it is. Any other ends
        # between where it was and the mean of its vectors, which cannot overflow
        step = step.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        self._write(self.vectors, self._normalized(step.add_(self.vectors)), due)

    def _revive(self, x: Tensor, indices: Tensor, due: Tensor | bool, revival: Revival) -> None:
        """Puts a random vector of the batch in the place of each dead code."""
        images, rows = indices.shape[:2]
        uniform = self.cluster_size.mean(-1, keepdim=True)  # [H, 1]
        dead = self.cluster_size < revival.threshold * uniform  # [H, K]
        if self._may_look(dead) and not dead.any():
            return
        if images * rows == 0:
            # an empty batch revives nothing, and still takes part in what the processes share
            found = torch.full_like(self.vectors, torch.nan)
        else:
            pick = torch.randint(images * rows, dead.shape, device=x.device)
            found = self._vectors_at(pick // rows, pick % rows, x, indices)  # [H, K, D]
        found = of_first_process(found)
        chosen = dead & torch.isfinite(found).all(-1) & due
        self.vectors.copy_(torch.where(chosen.unsqueeze(-1), found, self.vectors))
        self.cluster_size.copy_(torch.where(chosen, uniform, self.cluster_size))

    def _vectors_at(self, image: Tensor, row: Tensor, x: Tensor, indices: Tensor) -> Tensor:
        """What each head saw at places ``[H, K]`` of x; NaN where it had no code there."""
        where = (image, row, torch.arange(len(image), device=x.device).unsqueeze(-1))
        usable = (indices[where] >= 0).unsqueeze(-1)
        return torch.where(usable, x[where].to(self.vectors.dtype), torch.nan)

    @property
    def _decay(self) -> float:
        return self.learning.decay if isinstance(self.learning, EMA) else _USAGE_DECAY

    @staticmethod
    def _may_look(tensor: Tensor) -> bool:
        """Whether a branch may depend on the tensor: a GPU would wait, and a graph cannot."""
        return tensor.device.type == "cpu" and not torch.compiler.is_compiling()

    @staticmethod
    def _write(target: Tensor, value: Tensor, due: Tensor | bool) -> None:
        target.copy_(value if due is True else torch.where(torch.as_tensor(due), value, target))

    def _on_sphere(self, vectors: Tensor) -> Tensor:
        # an optimizer step leaves the sphere, an average is put back on it
        return self._normalized(vectors) if isinstance(self.learning, Gradient) else vectors

    def _normalized(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors, dim=-1) if self.unit_norm else vectors

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Codebook:
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = self._buffers[name]
            assert after is not None
            if after.dtype in _NARROW:
                self._buffers[name] = before.to(after.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._started = False  # what was loaded says
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.dtype in _NARROW:
                self._buffers[name] = buffer.float()

    def _has_started(self) -> bool:
        """What the buffer says, which others may write; looked at only until it says yes."""
        if not self._started and not torch.compiler.is_compiling():
            self._started = bool(self.started)
        return self._started

    def extra_repr(self) -> str:
        """The learning, start and revival, as they were given."""
        return f"learning={self.learning}, start={self.start}, revival={self.revival}"
