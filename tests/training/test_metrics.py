# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from fastvq import data, training
from fastvq.data.examples import in_memory
from fastvq.training import metrics


def test_use_of_the_codebook_by_hand():
    found = metrics.use(torch.tensor([[0, 0], [1, 3]]), 5)
    entropy = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    assert found.perplexity == pytest.approx(math.exp(entropy))
    assert found.codes_used == 3
    assert found.largest_share == 0.5


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
    assert (found.codebook_size, found.examples) == (16, 360)
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
