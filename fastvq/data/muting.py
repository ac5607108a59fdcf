# SPDX-License-Identifier: Apache-2.0
"""Decoders in threads without their warnings."""

from __future__ import annotations

import threading
import warnings


class _Muted:
    """Silences warnings while any thread is inside.

    The filters of warnings belong to the process. Threads that each saved and restored them would
    restore one another's, so the first one in saves and the last one out restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


# what decoders warn of (odd metadata, unknown chunks, very large pictures) leaves the values right
MUTED = _Muted()
