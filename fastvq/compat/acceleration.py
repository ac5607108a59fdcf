# SPDX-License-Identifier: Apache-2.0
"""``accelerate``: finds the quantizers of other libraries in a model and swaps their search."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from torch import nn

from fastvq.compat import dac, encodec, lucidrains, mimi, taming
from fastvq.compat._fast import Fast

# names alone: a class that is not loaded is in no model
_TRANSFORMERS: dict[str, dict[str, type[Fast]]] = {
    "dac": {"DacVectorQuantize": dac.FastVectorQuantize},
    "encodec": {
        "EncodecResidualVectorQuantizer": encodec.FastResidualVectorQuantizer,
        "EncodecEuclideanCodebook": encodec.FastEuclideanCodebook,
    },
    "mimi": {
        "MimiResidualVectorQuantizer": mimi.FastResidualVectorQuantizer,
        "MimiEuclideanCodebook": mimi.FastEuclideanCodebook,
    },
    "wavtokenizer": {"WavTokenizerEuclideanCodebook": encodec.FastEuclideanCodebook},
    "xcodec": {
        "XcodecResidualVectorQuantization": encodec.FastResidualVectorQuantization,
        "XcodecEuclideanCodebook": encodec.FastEuclideanCodebook,
    },
}
KNOWN: dict[str, dict[str, type[Fast]]] = {
    "diffusers.models.autoencoders.vae": {"VectorQuantizer": taming.FastVectorQuantizer},
    "vector_quantize_pytorch.vector_quantize_pytorch": {
        "VectorQuantize": lucidrains.FastVectorQuantize
    },
    **{f"transformers.models.{n}.modeling_{n}": kinds for n, kinds in _TRANSFORMERS.items()},
}
# copied from project to project and changed on the way: the module must prove what it is
BY_STRUCTURE: dict[str, type[Fast]] = {"VectorQuantizer2": taming.FastVectorQuantizer2}
_LOOKS_LIKE = re.compile(r"Quantize(?!d)|Quantization|Codebook|VQ\d*$|[BF]SQ$|LFQ$")
_UNKNOWN = "an unknown class"


class Replaced(NamedTuple):
    """A module that was swapped: where it is, what it was, which of its methods are new."""

    path: str
    kind: str
    methods: str


class Left(NamedTuple):
    """A module that looked like a quantizer and was left, and why."""

    path: str
    kind: str
    reason: str


class Acceleration(NamedTuple):
    """What :func:`accelerate` did; prints as a table, equal lines as one."""

    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]

    def __repr__(self) -> str:
        if not self.replaced and not self.left:
            return "accelerate: no quantizer found"
        lines = [*_lines("replaced", self.replaced), *_lines("left", self.left)]
        widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
        padded = ([c.ljust(w) for c, w in zip(line, widths, strict=True)] for line in lines)
        return "\n".join("  ".join(cells).rstrip() for cells in padded)


class _Found(NamedTuple):
    """A module that is, or looks like, a quantizer: what swaps it, or why nothing does."""

    path: str
    module: nn.Module
    fast: type[Fast] | None
    reason: str


def accelerate(model: nn.Module) -> Acceleration:
    """Swaps, in place, the code search of every quantizer of a known library in the model.

    Outputs stay equal; speed and memory change: the search is :func:`fastvq.ops.nearest`, which
    forms no matrix of distances. The module stays an instance of its class, with its weights,
    buffers, ``state_dict``, hooks and training flag, and can be copied and pickled. Only the
    methods named in the result are new. Known are

    - Hugging Face transformers: EnCodec, Mimi and X-Codec, whose levels become one call of
      :func:`fastvq.ops.residual`; DAC and WavTokenizer, codebook by codebook;
    - lucidrains' vector-quantize-pytorch: ``VectorQuantize``, alone or inside ``ResidualVQ`` and
      ``GroupedResidualVQ``, euclidean and cosine, in eval and in EMA training;
    - Hugging Face diffusers: the quantizer of ``VQModel``;
    - ``VectorQuantizer2`` of taming-transformers and its copies, where values and gradients of the
      copy agree with the original's on a probe.

    Args:
        model: any module; itself and all its submodules are looked at.

    Returns:
        ``Acceleration(replaced, left)``: what was swapped, and what looked like a quantizer and was
        left, with the reason. A second call finds everything accelerated and changes nothing.

    Raises:
        TypeError: the model is not a module.

    Note:
        The codes are those of ``nearest``: exact, the lowest index among equal codes,
        deterministic. They differ from the library's where that one is wrong by its rounding;
        each file of ``fastvq.compat`` names the cases. A pickle of an accelerated model needs
        fastvq to load; its ``state_dict`` does not. Call it before ``torch.compile``.

    Example:
        >>> import torch, fastvq
        >>> fastvq.accelerate(torch.nn.Linear(2, 2))
        accelerate: no quantizer found
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    replaced, left = [], []
    seen: set[int] = set()
    found = deque(_search(model, "", seen))
    while found:
        path, module, fast, reason = found.popleft()
        kind = type(module).__name__
        # asked one by one: a codebook may be shared with a quantizer that has just been swapped
        reason = reason or (fast.unfit(module) if fast else None) or ""
        if fast is None or reason:
            left.append(Left(path, kind, reason))
            if fast is not None:
                # what cannot be swapped as a whole may hold codebooks that can
                found.extendleft(f for f in reversed(_below(module, path, seen)) if f.fast)
            continue
        for below, part, methods in fast.parts(module):
            if isinstance(part, Fast):
                continue
            place = ".".join(name for name in (path, below) if name)
            replaced.append(Replaced(place, type(part).__name__, ", ".join(methods.methods())))
            methods.take_over(part)
    return Acceleration(tuple(replaced), tuple(left))


def _search(module: nn.Module, path: str, seen: set[int]) -> list[_Found]:
    """The quantizers at and below a module, the outermost of several unknown ones."""
    if id(module) in seen:
        return []
    seen.add(id(module))
    kind = type(module)
    if isinstance(module, Fast):
        return [_Found(path, module, None, "accelerated before")]
    suspect = _LOOKS_LIKE.search(kind.__name__) is not None and not kind.__module__.startswith(
        "torch."
    )
    if suspect and kind.__module__.startswith("fastvq."):
        return [_Found(path, module, None, "fastvq's own")]
    fast = _known(kind)
    if fast is not None:
        return [_Found(path, module, fast, "")]
    for base in kind.__mro__[1:]:
        if _known(base) is not None:
            reason = f"a subclass of {base.__name__}, which may search in another way"
            return [_Found(path, module, None, reason)]
    found = _below(module, path, seen)
    if suspect and all(f.reason == _UNKNOWN for f in found):
        return [_Found(path, module, None, _UNKNOWN)]
    return found


def _below(module: nn.Module, path: str, seen: set[int]) -> list[_Found]:
    prefix = f"{path}." if path else ""
    children = module.named_children()
    return [f for name, child in children for f in _search(child, prefix + name, seen)]


def _known(kind: type) -> type[Fast] | None:
    return KNOWN.get(kind.__module__, BY_STRUCTURE).get(kind.__name__)


def _lines(what: str, rows: Iterable[tuple[str, str, str]]) -> Iterator[list[str]]:
    """Cells of the table; rows that differ in the numbers of their path alone share a line."""
    paths: dict[tuple[str, str, str], list[str]] = {}
    for path, kind, text in rows:
        paths.setdefault((re.sub(r"\b\d+\b", "*", path), kind, text), []).append(path)
    for (pattern, kind, text), members in paths.items():
        alone = len(members) == 1
        place = members[0] if alone else pattern
        yield [what, place or "(the model)", kind if alone else f"{kind} x {len(members)}", text]
