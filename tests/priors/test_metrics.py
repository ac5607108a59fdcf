"""Bits per code against hand-computed values."""

import math

import pytest
import torch

from fastvq.priors import (
    GatedPixelCNN,
    GatedPixelCNNConfig,
    bits_per_code,
    entropy_bits,
    per_position_bits,
)


@pytest.mark.parametrize(
    ("codes", "order0", "per_position"),
    [
        ([[0, 0], [0, 0]], 0.0, 0.0),
        ([[0, 1], [0, 1]], 1.0, 0.0),
        ([[0, 1], [1, 0]], 1.0, 1.0),
        ([[0, 1], [2, 3]], 2.0, 1.0),
        ([[0], [0], [0], [1]], 2 - 0.75 * math.log2(3), 2 - 0.75 * math.log2(3)),
        ([[0, 3], [1, 3], [2, 3], [3, 3]], 3 / 8 * 3 + 5 / 8 * math.log2(8 / 5), 1.0),
    ],
)
def test_entropies(codes, order0, per_position):
    codes = torch.tensor(codes)
    assert entropy_bits(codes, 4) == pytest.approx(order0, abs=1e-12)
    assert per_position_bits(codes, 4) == pytest.approx(per_position, abs=1e-12)
    # the shape of the grid does not matter
    assert per_position_bits(codes[:, None], 4) == per_position_bits(codes, 4)


def test_bits_per_code_is_the_mean_nll_whatever_the_batches():
    prior = GatedPixelCNN(GatedPixelCNNConfig(9, 3, channels=8, layers=2)).double().eval()
    codes, labels = torch.randint(9, (11, 3, 4)), torch.randint(3, (11,))
    expected = prior.nll(codes, labels).mean().item() / math.log(2)
    for batch_size in (1, 4, 11, 100):
        bits = bits_per_code(prior, codes, labels, batch_size=batch_size)
        assert bits == pytest.approx(expected, abs=1e-12)
    assert bits_per_code(prior, codes) != pytest.approx(expected, abs=1e-6)


def test_bits_of_a_uniform_prior_are_log2_k():
    prior = GatedPixelCNN(GatedPixelCNNConfig(17)).eval()
    for parameter in prior.logits.parameters():
        torch.nn.init.zeros_(parameter)
    assert bits_per_code(prior, torch.randint(17, (5, 4, 4))) == pytest.approx(
        math.log2(17), abs=1e-6
    )


def test_refuses():
    prior = GatedPixelCNN(GatedPixelCNNConfig(9, channels=8, layers=1)).eval()
    none = torch.empty(0, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="at least one grid, got none"):
        bits_per_code(prior, none)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        bits_per_code(prior, torch.zeros(1, 4, 4, dtype=torch.int64), batch_size=0)
    with pytest.raises(ValueError, match="at least one code, got none"):
        per_position_bits(none, 4)
    with pytest.raises(ValueError, match=r"codes must be in \[0, K = 4\), got 4"):
        entropy_bits(torch.tensor([0, 4]), 4)
    with pytest.raises(ValueError, match=r"codes must be in \[0, K = 4\), got -1"):
        per_position_bits(torch.tensor([[0, -1]]), 4)
    with pytest.raises(TypeError, match="codes must be int64, got float32"):
        entropy_bits(torch.zeros(3), 4)
