# SPDX-License-Identifier: Apache-2.0
"""Imports go downward only, and siblings on one floor do not know each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "fastvq"

# from the ground up; `ops.*` is every folder of an op, `fastvq` the public names of __init__.py
FLOORS = (
    ("_checks", "_files", "_native"),
    ("_backends", "_config"),
    ("_pretrained",),
    ("ops._layout",),
    ("ops.*",),
    ("ops",),
    ("nn",),
    ("fastvq",),
    ("compat", "data", "priors"),
    # an autoregressive decoder is a prior over the data, given the codes
    ("models", "testing"),
    ("training",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {unit: height for height, floor in enumerate(FLOORS) for unit in floor}


def modules(package: Path) -> dict[str, Path]:
    """Dotted name -> file, for every module of the package."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Line and target of every import of a module of the package, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            anchor = name.split(".") + (["__init__"] if path.name == "__init__.py" else [])
            base = anchor[: len(anchor) - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            # `from fastvq import ops` names a module, `from fastvq import __version__` does not
            dotted = [f"{source}.{alias.name}" for alias in node.names]
            targets = [target if target in known else source for target in dotted]
        else:
            continue
        for target in targets:
            if target in known:
                yield node.lineno, target


def unit(name: str, known: dict[str, Path]) -> str:
    """The unit of the house that a module belongs to: ``fastvq.nn.start`` -> ``nn``."""
    parts = name.split(".")[1:]
    if not parts:
        return "fastvq"
    if parts[0] == "ops" and len(parts) > 1:
        is_op = known[".".join(name.split(".")[:3])].name == "__init__.py"
        return f"ops.{parts[1]}" if is_op or parts[1].startswith("_") else "ops"
    return parts[0]


def height(unit: str) -> int | None:
    if unit.startswith("ops.") and unit not in HEIGHT:
        return HEIGHT["ops.*"] if not unit.startswith("ops._") else None
    return HEIGHT.get(unit)


def faults(package: Path) -> list[str]:
    """One line for each arrow that does not point downward, and each unit without a floor."""
    known = modules(package)
    found = []
    for name, path in known.items():
        here = unit(name, known)
        if height(here) is None:
            found.append(f"{name}: {here!r} has no floor, enter it in FLOORS")
            continue
        for line, target in imported(name, path, known):
            there = unit(target, known)
            up = height(there) is not None and height(there) >= height(here)
            if up and here != there:
                found.append(f"{name}:{line} imports {target}, which is not below it")
            if {name.split(".")[-1], target.split(".")[-1]} == {"reference", "_triton"}:
                found.append(f"{name}:{line} imports {target}: implementations stand alone")
    return found


def test_imports_go_downward_only():
    assert faults(PACKAGE) == []


def test_the_package_was_read():
    known = modules(PACKAGE)
    assert {"fastvq", "fastvq._checks", "fastvq.ops.nearest.api", "fastvq.nn"} <= set(known)
    arrows = list(imported("fastvq._backends", known["fastvq._backends"], known))
    assert "fastvq._checks" in {target for _, target in arrows}


def _house(root: Path, files: dict[str, str]) -> Path:
    package = root / "fastvq"
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for folder in path.relative_to(package).parents:
            (package / folder / "__init__.py").touch()
    return package


NEAREST = {"ops/nearest/api.py": "", "ops/nearest/reference.py": ""}


@pytest.mark.parametrize(
    "files",
    [
        {"_checks.py": "import fastvq.nn", "nn/a.py": ""},
        {"_checks.py": "from fastvq import nn", "nn/a.py": ""},
        {"_checks.py": "from .nn import a", "nn/a.py": ""},
        {"_checks.py": "def f():\n    from fastvq.nn.a import b", "nn/a.py": ""},
        {"nn/a.py": "from fastvq import VectorQuantizer"},
        {"__init__.py": "from fastvq.models import a", "models/a.py": ""},
        {"priors/a.py": "from fastvq.models.b import c", "models/b.py": ""},
        {"data/a.py": "from ..priors import b", "priors/b.py": ""},
        NEAREST | {"ops/quantize/api.py": "from fastvq.ops.nearest import nearest"},
        NEAREST | {"ops/_layout.py": "from fastvq.ops.nearest import api"},
        NEAREST | {"ops/nearest/_triton.py": "from fastvq.ops.nearest import reference"},
        NEAREST | {"ops/_secret.py": ""},
        {"attic/a.py": ""},
    ],
)
def test_a_fault_is_found(tmp_path, files):
    assert len(faults(_house(tmp_path, files))) >= 1


@pytest.mark.parametrize(
    "files",
    [
        {"_checks.py": "", "nn/a.py": "from fastvq import _checks\nfrom . import b", "nn/b.py": ""},
        {"__init__.py": "from fastvq.nn import a", "nn/a.py": "import torch"},
        {
            "cli/a.py": "from fastvq import __version__\nfrom fastvq.models import b",
            "models/b.py": "",
        },
        NEAREST | {"ops/nearest/api.py": "from .reference import nearest"},
        NEAREST | {"ops/_layout.py": "", "ops/nearest/api.py": "from fastvq.ops._layout import f"},
    ],
)
def test_a_sound_house_has_none(tmp_path, files):
    assert faults(_house(tmp_path, files)) == []
