# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from fastvq import data, training
from fastvq.data.examples import in_memory
from fastvq.models import VQVAE, VQVAEConfig
from fastvq.training import metrics


def test_use_of_the_codebook_by_hand():
    found = metrics.use(torch.tensor([[0, 0], [1, 3]]), 5)
    entropy = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    assert found.perplexity == pytest.approx(math.exp(entropy))
    assert found.codes_used == 3
    assert found.largest_share == 0.5


def test_each_codebook_has_a_histogram_of_its_own():
    """Two books that have each collapsed to another code are not one book with two codes."""
    collapsed = metrics.use(torch.tensor([[[0, 3], [0, 3]]]), 4, codebooks=2)
    assert collapsed == (1.0, 2, 1.0)
    codes = torch.tensor([[0, 3], [1, 3], [0, 3], [1, 2]])
    found = metrics.use(codes, 4, codebooks=2)
    bits = (1.0 + 0.75 * math.log2(4 / 3) + 0.25 * 2) / 2
    assert metrics.order0_bits(codes, 4, codebooks=2) == pytest.approx(bits)
    assert found.perplexity == pytest.approx(2**bits)
    assert (found.codes_used, found.largest_share) == (4, 0.75)


def test_psnr_by_hand():
    assert metrics.psnr(0.01) == pytest.approx(20.0)
    assert metrics.psnr(0.0) == math.inf


def test_the_error_is_of_clamped_pixels_over_the_whole_split(model):
    images = data.digits().test
    found = training.evaluate_reconstruction(model, images)
    pixels = images.batch(torch.arange(len(images)))
    with torch.no_grad():
        kept, indices, *_ = model(pixels)
    expected = (kept.clamp(0, 1).double() - pixels).square().mean().item()
    # float32 reconstructions in batches of another size
    assert found.mse == pytest.approx(expected, rel=1e-5)
    assert found.psnr == metrics.psnr(found.mse)
    assert found.bits_per_example == 16 * math.log2(16)
    assert found.bits_per_pixel == 1.0
    assert (found.codebook_sizes, found.examples) == ((16,), 360)
    assert found.use[0].codes_used == len(indices.unique())


def test_padding_does_not_count(model):
    pixels = torch.randint(0, 256, (3, 1, 7, 7), dtype=torch.uint8)
    odd = in_memory(pixels, torch.full((3,), -1), peak=255, classes=()).padded(2)
    padded = odd.batch(torch.arange(3))
    kept = metrics.decode(model, metrics.encode(model, padded))[..., :7, :7]
    expected = (kept - pixels / 255).double().square().mean().item()
    found = training.evaluate_reconstruction(model, odd)
    assert found.mse == pytest.approx(expected, rel=1e-6)
    assert found.bits_per_pixel == pytest.approx(16 * 4 / 49)


def test_the_bits_of_padding_are_paid_and_the_values_are_those_of_the_data():
    """A model that knows nothing pays log2 of the levels for all that it must say."""
    config = VQVAEConfig(likelihood="softmax", levels=17, hidden_channels=8, residual_channels=4)
    model = VQVAE(config).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
    pixels = torch.randint(0, 17, (3, 1, 7, 7), dtype=torch.uint8)
    odd = in_memory(pixels, torch.full((3,), -1), peak=16, classes=()).padded(2)
    found = training.evaluate_reconstruction(model, odd)
    assert found.reconstruction_bits_per_dim == pytest.approx(math.log2(17) * 64 / 49)
    nominal = 16 * math.log2(64)
    assert found.bits_per_dim == pytest.approx((64 * math.log2(17) + nominal) / 49)
    variance = (pixels / 16).double().var(correction=0).item()
    assert metrics.variance(odd) == pytest.approx(variance)
