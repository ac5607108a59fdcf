"""Shared by the ops."""

import pytest
import torch


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def budgeted(request):
    """A dtype, and the error relative to the largest element that its sums may have."""
    return request.param, {torch.float32: 2e-5, torch.float64: 1e-12}[request.param]
