# SPDX-License-Identifier: Apache-2.0
"""Settings from a TOML file and from ``--set section.key=value``, the latter winning."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastvq import _checks

Values = dict[str, dict[str, Any]]


def read(sections: Mapping[str, type], config: Path | None, assignments: Sequence[str]) -> Values:
    """Collects settings and refuses names that no section has.

    Args:
        sections: section name -> the dataclass whose fields are its keys.
        config: a TOML file with a table for each section, or ``None``.
        assignments: ``"section.key=value"``; values as in TOML, ``none``, or bare words.

    Returns:
        The values given, by section; every section is there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown section or key (the nearest is named), or a malformed setting.
    """
    known = [
        f"{section}.{field.name}"
        for section, kind in sections.items()
        for field in dataclasses.fields(kind)
    ]
    values: Values = {section: {} for section in sections}
    for name, value in [*_from_file(config), *map(_from_assignment, assignments)]:
        _check_known(name, known)
        section, key = name.split(".")
        values[section][key] = value
    return values


def _from_file(config: Path | None) -> list[tuple[str, Any]]:
    if config is None:
        return []
    if not config.is_file():
        raise FileNotFoundError(f"{config}: no such file")
    try:
        document = tomllib.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config}: not TOML ({error})") from error
    return [
        (f"{section}.{key}", value)
        for section, table in document.items()
        for key, value in (table.items() if isinstance(table, dict) else (("", None),))
    ]


def _from_assignment(assignment: str) -> tuple[str, Any]:
    name, equals, text = assignment.partition("=")
    if not equals:
        raise ValueError(f"--set must be section.key=value, got {assignment!r}")
    if text.lower() == "none":
        return name, None
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    return name, value


def _check_known(name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    # a key without its section is the likeliest slip, and no spelling distance would find it
    matching = [full for full in known if full.split(".")[1] == name.strip(".")]
    if matching:
        raise ValueError(f"settings are section.key, got {name!r}; did you mean {matching[0]!r}?")
    _checks.one_of("setting", name, known)
