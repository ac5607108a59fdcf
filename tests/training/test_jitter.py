# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from fastvq.training import Jitter, jittered


def test_nothing_asked_for_nothing_moved():
    images = torch.rand(5, 3, 6, 9)
    assert not Jitter().moves
    # the interpolation at the pixel itself, in float32 coordinates
    torch.testing.assert_close(jittered(images, Jitter()), images, rtol=0, atol=1e-5)


def ramp(height=16, width=16):
    """Brightness 0.25 + 0.5 column / width in the first channel, the same by rows in the second."""
    across = 0.25 + 0.5 * torch.arange(width).expand(height, -1) / width
    down = 0.25 + 0.5 * torch.arange(height)[:, None].expand(-1, width) / height
    return torch.stack([across, down]).expand(64, -1, -1, -1)


CENTRE = (..., slice(6, 10), slice(6, 10))


def test_shifts_are_in_pixels_along_both_axes():
    moved = (jittered(ramp(16, 32), Jitter(shift=2.0)) - ramp(16, 32))[..., 6:10, 10:22]
    pixels = moved.mean((2, 3)) * torch.tensor([32, 16]) / 0.5
    assert moved.var((2, 3)).max() < 1e-6
    assert pixels.abs().amax(0).min() > 1.5
    assert pixels.abs().max() < 2.01
    assert pixels.min() < 0 < pixels.max()
    assert (pixels[:, 0] - pixels[:, 1]).abs().max() > 1


def test_zoom_changes_the_slope_and_keeps_the_centre():
    moved = jittered(ramp(), Jitter(zoom=0.2))
    slope = (moved[:, 0, 8, 12] - moved[:, 0, 8, 3]) / 9 * 16 / 0.5
    # torch's cubic kernel follows a ramp to within 0.05 pixels, at either end of the nine
    assert 0.79 < slope.min() < 0.85
    assert 1.15 < slope.max() < 1.21
    middle = moved[CENTRE].mean((2, 3))
    torch.testing.assert_close(middle, ramp()[CENTRE].mean((2, 3)), rtol=0, atol=1e-3)


def test_turns_tilt_the_rows():
    moved = jittered(ramp(), Jitter(rotate=20.0))
    tilt = (moved[:, 0, 9, 8] - moved[:, 0, 6, 8]) / 3 * 16 / 0.5
    assert tilt.min() < -0.2
    assert tilt.max() > 0.2


def test_random_numbers_come_from_the_generator():
    images, jitter = torch.rand(4, 1, 8, 8), Jitter(rotate=9.0, zoom=0.1, shift=1.0)
    first, again, other = (
        jittered(images, jitter, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotate": -1.0}, r"rotate must be in \[0, 45\), got -1.0"),
        ({"zoom": 1.0}, r"zoom must be in \[0, 1\), got 1.0"),
        ({"shift": -0.5}, r"shift must be in \[0, inf\), got -0.5"),
    ],
)
def test_refused_amounts(options, message):
    with pytest.raises(ValueError, match=message):
        Jitter(**options)
