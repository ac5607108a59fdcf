"""The backends that the logic of a module is shown on: what Triton's kernels compute, ``tests/ops``
shows, and that each kind of module trains with them, ``test_backends.py``."""

import pytest

from ..conftest import using


@pytest.fixture(params=("reference", "native"))
def backend(request: pytest.FixtureRequest):
    """Each of them in turn."""
    with using(request.param):
        yield request.param
