# SPDX-License-Identifier: Apache-2.0
import threading
import warnings

from fastvq.data.muting import MUTED


def test_overlapping_threads_leave_the_filters_as_they_were():
    before = list(warnings.filters)
    inside, leave = threading.Event(), threading.Event()

    def first_in_last_out():
        with MUTED:
            inside.set()
            leave.wait()

    thread = threading.Thread(target=first_in_last_out)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        thread.start()
        inside.wait()
        with MUTED:
            warnings.warn("unheard", stacklevel=1)
        warnings.warn("unheard too, the other is still inside", stacklevel=1)
        leave.set()
        thread.join()
        warnings.warn("heard", stacklevel=1)
    assert [str(warning.message) for warning in heard] == ["heard"]
    assert list(warnings.filters) == before
