# SPDX-License-Identifier: Apache-2.0
"""How a module of another library gets methods of ours and stays what it is."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, SupportsIndex

from torch import nn


class Fast(nn.Module):
    """Methods that go in front of those of a known class, of the same names and parameters.

    ``take_over`` gives a module the class made of the two. Nothing else of the module changes:
    weights, buffers, hooks and flags live in the instance, and ``isinstance`` still holds. The
    library of the known class is never imported, since the module at hand brings its class along.
    """

    @classmethod
    def methods(cls) -> list[str]:
        """The names of the methods that are replaced."""
        return [n for n, value in vars(cls).items() if inspect.isfunction(value) and n[0] != "_"]

    @classmethod
    def unfit(cls, module: nn.Module) -> str | None:
        """Why the module cannot be taken over; ``None`` where it can."""
        for name in cls.methods():
            # what wraps a call of one instance would hide the method of the class
            if name in vars(module):
                return f"{name} is replaced on the instance"
            if not _fits(getattr(cls, name), getattr(type(module), name, None)):
                return f"{name} has other parameters than in the version known here"
        return None

    @classmethod
    def parts(cls, module: nn.Module) -> list[Part]:
        """What is swapped together: the module, and those in it that work hand in hand with it."""
        return [Part("", module, cls)]

    @classmethod
    def take_over(cls, module: nn.Module) -> None:
        """Puts the methods in place; the module must be fit."""
        # mypy reads the __hash__ of the instances
        module.__class__ = derived(cls, type(module))  # type: ignore[arg-type]

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        # the class is made at run time, so a pickle or a deepcopy names the two it is made of
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        _, _, *state = reduced
        return blank, type(self).__bases__, *state


class Part(NamedTuple):
    """A module to swap, its path below the quantizer, and its new methods."""

    path: str
    module: nn.Module
    fast: type[Fast]


@functools.cache
def derived(fast: type, known: type) -> Any:
    """The class of both, the same object at every call."""
    name = f"Fast{known.__name__}"
    return type(name, (fast, known), {"__module__": fast.__module__, "__doc__": known.__doc__})


def blank(fast: type, known: type) -> Any:
    """An instance without its state, which unpickling then fills."""
    made = derived(fast, known)
    return made.__new__(made)


def _fits(ours: Callable[..., Any], theirs: Callable[..., Any] | None) -> bool:
    """Whether the parameters have the same names; ``*rest`` stands for those that follow."""
    if theirs is None:
        return False
    parameters = list(inspect.signature(ours).parameters.values())
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    known = list(inspect.signature(theirs).parameters)
    passes_rest = len(names) < len(parameters)
    return names == (known[: len(names)] if passes_rest else known)
