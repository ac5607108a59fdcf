# SPDX-License-Identifier: Apache-2.0
"""Configs are frozen dataclasses; this is how plain values (JSON, TOML, command line) become one.

A key that no field has and a value of another type are errors that name what was expected, so
that a misspelt option never trains a model with the default in its place.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
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
    """The plain values of a config dataclass, ready for JSON.

    A config inside it comes with its class name as ``kind``, for a field may hold a subclass of
    what it is annotated with.
    """
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {"kind": type(value).__name__, **to_dict(value)}
    return tuple(_plain(item) for item in value) if isinstance(value, list | tuple) else value


def convert(value: Any, wanted: Any, *, name: str) -> Any:
    """``value`` as an annotation: int, float, str, bool, ``tuple[T, ...]``, ``T | None``, a config.

    Raises:
        ValueError: a config's ``kind`` or a key of it is unknown.
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
    if isinstance(wanted, type) and dataclasses.is_dataclass(wanted):
        if isinstance(value, wanted):
            return value
        if isinstance(value, Mapping):
            return _nested(value, wanted, name=name)
    if isinstance(wanted, type) and type(value) is wanted:
        return value
    spelled = wanted.__name__ if isinstance(wanted, type) and origin is None else str(wanted)
    raise TypeError(f"{name} must be {spelled}, got {type(value).__name__} {value!r}")


def _nested(values: Mapping[str, Any], wanted: type, *, name: str) -> Any:
    """A config inside another: of the class that ``kind`` names, by default that of the field."""
    kinds = {kind.__name__: kind for kind in _family(wanted)}
    kind = values.get("kind", wanted.__name__)
    _checks.one_of(f"{name}.kind", kind, kinds)
    fields = {key: value for key, value in values.items() if key != "kind"}
    return from_dict(kinds[kind], fields, where=name)


def _family(kind: type) -> Iterator[type]:
    yield kind
    derived: type
    for derived in kind.__subclasses__():
        yield from _family(derived)
