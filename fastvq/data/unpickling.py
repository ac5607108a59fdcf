# SPDX-License-Identifier: Apache-2.0
"""Pickles of arrays of bytes and plain containers, and of nothing else.

A pickle is a program that may call whatever it can import. This unpickler imports nothing: it
knows the few names that numpy writes for an array and answers them with methods of its own.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np


def unpickled(file: Path) -> Any:
    """What a pickle of plain containers, text, numbers and uint8 arrays holds.

    Text of Python 2 comes as bytes.

    Raises:
        ValueError: the file asks for anything else, is cut short, or is no pickle.
    """
    with file.open("rb") as opened:
        try:
            return _Unpickler(opened, encoding="bytes").load()
        # malformed opcodes fail in the many ways of what they happen to call
        except Exception as error:
            raise ValueError(f"{file}: not a whole pickle of plain arrays ({error})") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        known = {
            "numpy.core.multiarray._reconstruct": self._array,
            "numpy._core.multiarray._reconstruct": self._array,
            "numpy.ndarray": "numpy.ndarray",
            "numpy.dtype": self._dtype,
            "_codecs.encode": self._encoded,
        }
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is refused")
        return known[f"{module}.{name}"]

    # methods, so that a pickle that sets attributes of what it was given cannot change them

    def _array(self, kind: Any, *_: Any) -> Any:
        if kind != "numpy.ndarray":
            raise pickle.UnpicklingError(f"an array of type {kind!r} is refused")
        return np.ndarray((0,), np.uint8)

    def _dtype(self, code: Any, *_: Any) -> Any:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"an array of {code!r} is refused, u1 was expected")
        # a copy: what the pickle then sets of it must not reach numpy's own
        return np.dtype("u1", False, True)

    def _encoded(self, text: Any, encoding: Any = "latin1") -> bytes:
        """How a pickle of protocol 2 holds bytes when Python 3 wrote it."""
        if encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"the encoding {encoding!r} is refused")
        return str(text).encode("latin1")
