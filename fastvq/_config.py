# SPDX-License-Identifier: Apache-2.0
"""Configs are frozen dataclasses; this is how plain values (JSON, TOML, command line) become one.

A key that no field has and a value of another type are errors that name what was expected, so
that a misspelt option never trains a model with the default in its place.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from fastvq import _checks

C = TypeVar("C")


def from_dict(kind: type[C], values: Mapping[str, Any], *, where: str) -> C:
    """Builds a config dataclass from plain values.

    Args:
        kind: the dataclass.
        values: field name -> value; lists become tuples, whole numbers may stand for floats.
        where: what the values came from, for messages (``"model"``, ``"config.json"``).

    Raises:
        ValueError: a key that is not a field; the nearest field is named.
        TypeError: a value of another type than the field's.
    """
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in values:
        _checks.one_of(f"key of {where}", name, known)
    return kind(**{n: convert(v, hints[n], name=f"{where}.{n}") for n, v in values.items()})


def to_dict(config: Any) -> dict[str, Any]:
    """The plain values of a config dataclass, ready for JSON."""
    return dataclasses.asdict(config)


def convert(value: Any, wanted: Any, *, name: str) -> Any:
    """``value`` as an annotation: int, float, str, bool, ``tuple[T, ...]`` or ``T | None``.

    Raises:
        TypeError: the value is of another type.
    """
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (wanted,) = (a for a in arguments if a is not type(None))
        return convert(value, wanted, name=name)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(
            convert(item, arguments[0], name=f"{name}[{i}]") for i, item in enumerate(value)
        )
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(wanted, type) and type(value) is wanted:
        return value
    spelled = wanted.__name__ if isinstance(wanted, type) and origin is None else str(wanted)
    raise TypeError(f"{name} must be {spelled}, got {type(value).__name__} {value!r}")
