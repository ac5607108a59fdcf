"""Codes drawn by the softmax: its frequencies, and the same draws wherever they are made."""

import math

import pytest
import torch

import fastvq
from fastvq import ops, testing
from fastvq.ops.entropy import _noise, reference


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_samples_follow_the_softmax(beta):
    _, codebook = testing.gaussian(1, 11, 3)
    n = 40_000
    p = (-beta * codebook.double().square().sum(-1)).softmax(-1)
    drawn = ops.sample_codes(torch.zeros(n, 3), codebook, seed=7, inverse_temperature=beta)
    expected = n * p
    kept = expected > 5
    counts = torch.bincount(drawn, minlength=11)
    chi_square = ((counts - expected).square() / expected)[kept].sum().item()
    assert chi_square < 29.6  # 10 degrees of freedom: one seed in a thousand
    # neighbouring rows are independent: pairs of equal codes are as frequent as chance has them
    equal = (drawn[1:] == drawn[:-1]).double().mean().item()
    chance = p.square().sum().item()
    assert abs(equal - chance) < 4 * math.sqrt(chance * (1 - chance) / n)


def test_noise_is_uniform_over_codes_and_rows():
    keys = _noise.row_keys(torch.tensor(3), 1, 200)[:, 0]
    noise = _noise.gumbel(keys, torch.arange(500))
    uniform = torch.exp(-torch.exp(-noise))
    for part in (uniform.mean(0), uniform.mean(1)):
        size = uniform.numel() / part.numel()
        z = (part - 0.5) * math.sqrt(12 * size)
        assert abs(z.square().mean().item() - 1) < 0.35
    assert abs(uniform.mean().item() - 0.5) < 4 / math.sqrt(12 * uniform.numel())
    assert uniform.flatten().unique().numel() > 0.999 * uniform.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_samples_are_those_of_the_reference(backend, dtype):
    x, codebook = testing.gaussian(100, 90, 6, dtype=dtype)
    drawn = ops.sample_codes(x, codebook, seed=-5, inverse_temperature=0.2)
    with fastvq.use_backend("reference"):
        expected = ops.sample_codes(x, codebook, seed=-5, inverse_temperature=0.2)
        other = ops.sample_codes(x, codebook, seed=2**40 - 5, inverse_temperature=0.2)
    assert torch.equal(drawn, expected)
    assert (expected != other).double().mean() > 0.5
    assert torch.equal(
        drawn, ops.sample_codes(x, codebook, seed=torch.tensor(-5), inverse_temperature=0.2)
    )


def test_samples_do_not_depend_on_chunks(monkeypatch):
    x, codebook = testing.gaussian(50, 40, 4)
    with fastvq.use_backend("reference"):
        whole = ops.sample_codes(x, codebook, seed=9)
        monkeypatch.setattr(reference, "_WORKSPACE", 100)
        assert torch.equal(whole, ops.sample_codes(x, codebook, seed=9))
    assert torch.equal(whole[:20], ops.sample_codes(x[:20], codebook, seed=9))
