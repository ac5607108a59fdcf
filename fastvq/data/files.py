# SPDX-License-Identifier: Apache-2.0
"""Files of a folder: found in one order, decoded side by side, the unreadable ones named."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from fastvq import _checks

A = TypeVar("A")
T = TypeVar("T")
# up to this many bytes of levels stay in memory; beyond, files are decoded anew for each batch
MEMORY_BYTES = 4 * 2**30
UNREADABLE = ("refuse", "skip")
Report = Callable[[str], None]


def found(root: Path, suffixes: Collection[str], what: str) -> list[Path]:
    """Paths relative to ``root``, sorted by their parts on every system alike.

    Hidden files and folders are passed over, and files of other suffixes.

    Raises:
        FileNotFoundError: there is no such folder, or no such file in it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    files = sorted(_walk(root, suffixes), key=lambda file: file.parts)
    if not files:
        raise FileNotFoundError(f"{root}: no {what} in this folder or below it")
    return files


def _walk(root: Path, suffixes: Collection[str]) -> Iterator[Path]:
    for at, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield (Path(at) / name).relative_to(root)


def natural(file: Path) -> list[list[tuple[int, int | str]]]:
    """The key that sorts ``frame2`` before ``frame10``."""
    return [
        [(0, int(word)) if word.isdecimal() else (1, word) for word in re.split(r"(\d+)", part)]
        for part in file.parts
    ]


class Unreadable:
    """What is done with files that cannot be decoded: they are named, and refused or skipped."""

    def __init__(self, root: Path, what: str, policy: str, report: Report) -> None:
        _checks.one_of("unreadable", policy, UNREADABLE)
        self._root, self._what, self._policy, self._report = root, what, policy, report

    def decoded(self, files: list[Path], decode: Callable[[Path], T]) -> Iterator[tuple[Path, T]]:
        """The readable files in order, each with what ``decode`` makes of it.

        Raises:
            ValueError: at the end, when files were unreadable under ``"refuse"``, or all were.
        """

        def attempt(file: Path) -> T | _Fault:
            try:
                return decode(self._root / file)
            # a corrupt file can raise anything from inside a decoder
            except Exception as error:
                return _Fault(f"{file} ({type(error).__name__}: {error})")

        bad = []
        for file, result in zip(files, side_by_side(attempt, files), strict=True):
            if isinstance(result, _Fault):
                bad.append(result)
            else:
                yield file, result
        if bad:
            self._handle(bad, len(files))

    def _handle(self, bad: list[_Fault], total: int) -> None:
        count = f"{self._root}: {len(bad)} of {total} {self._what} cannot be read"
        if self._policy == "refuse" or len(bad) == total:
            listed = "".join(f"\n  {line}" for line in bad)
            raise ValueError(f"{count} (unreadable = 'skip' leaves such {self._what} out):{listed}")
        self._report(f"{count} and are skipped:")
        for line in bad:
            self._report(f"  {line}")


class _Fault(str):
    """A line about an unreadable file; of a type that no decoder returns."""

    __slots__ = ()


def side_by_side(decode: Callable[[A], T], arguments: Iterable[A]) -> Iterator[T]:
    """``map`` on all cores, in order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(decode, arguments)
