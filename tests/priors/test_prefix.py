"""Sampling that continues given first codes: the same cached or not, and what it refuses."""

import re

import pytest
import torch

from fastvq.priors import (
    GatedPixelCNN,
    GatedPixelCNNConfig,
    LevelContextConfig,
    LevelPrior,
    LevelPriorConfig,
    PixelSNAIL,
    PixelSNAILConfig,
    Transformer,
    TransformerConfig,
    VideoPixelCNN,
    VideoPixelCNNConfig,
    WaveNet,
    WaveNetConfig,
    sample,
    sample_from,
)

CODES = 7
CONDITIONS = {"num_classes": 3, "context_channels": 2}
PRIORS = {
    "pixelcnn": (
        (5, 4),
        lambda: GatedPixelCNN(GatedPixelCNNConfig(CODES, channels=8, layers=2, **CONDITIONS)),
    ),
    "pixelsnail": (
        (5, 4),
        lambda: PixelSNAIL(PixelSNAILConfig(CODES, channels=8, blocks=1, layers=1, **CONDITIONS)),
    ),
    "wavenet": (
        (23,),
        lambda: WaveNet(WaveNetConfig(CODES, channels=8, layers=4, cycle=4, **CONDITIONS)),
    ),
    "transformer": (
        (2, 5, 2),
        lambda: Transformer(
            TransformerConfig(CODES, channels=8, heads=2, layers=2, mlp_channels=8, **CONDITIONS)
        ),
    ),
    "level": (
        (4, 6),
        lambda: LevelPrior(
            LevelPriorConfig(
                GatedPixelCNNConfig(CODES, channels=8, layers=2, num_classes=3, context_channels=2),
                LevelContextConfig((5,), channels=4, layers=1),
            )
        ),
    ),
    "video": (
        (4, 2, 3),
        lambda: VideoPixelCNN(
            VideoPixelCNNConfig(
                CODES, channels=8, layers=2, frame_channels=6, frame_layers=2, **CONDITIONS
            )
        ),
    ),
}


def case(name):
    shape, make = PRIORS[name]
    prior = make().double().eval()
    with torch.no_grad():
        # logits of order one, as after training
        for parameter_name, parameter in prior.named_parameters():
            parameter.mul_(40 if parameter_name.endswith("logits.weight") else 2)
    uniforms, labels = torch.rand(3, *shape, dtype=torch.float64), torch.tensor([0, 2, 1])
    if name == "level":
        return prior, uniforms, labels, (torch.randint(5, (3, 2, 3)),)
    return prior, uniforms, labels, torch.randn(3, 2, *shape, dtype=torch.float64)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("given", [0, 1, 7, -1])
def test_cached_continuations_are_those_of_the_whole_prior(name, given):
    prior, uniforms, labels, context = case(name)
    prefix = torch.randint(CODES, (3, given % (uniforms[0].numel() + 1)))
    whole, cached = (
        sample_from(prior, uniforms, labels, context=context, prefix=prefix, cached=cached)
        for cached in (False, True)
    )
    assert torch.equal(whole.flatten(1)[:, : prefix.shape[1]], prefix)
    assert torch.equal(cached, whole)


@pytest.mark.parametrize("name", PRIORS)
def test_a_sample_continues_its_own_beginning(name):
    """Given its own first codes, a sample is drawn again from the rest of the numbers."""
    prior, uniforms, labels, context = case(name)
    drawn = sample_from(prior, uniforms, labels, context=context)
    start, changed = drawn.flatten(1)[:, :9], uniforms.clone()
    changed.view(3, -1)[:, :9] = 0.5
    for cached in (True, False):
        again = sample_from(prior, changed, labels, context=context, prefix=start, cached=cached)
        assert torch.equal(again, drawn)
    # and another beginning has another end
    other = sample_from(prior, changed, labels, context=context, prefix=(start + 1) % CODES)
    assert not torch.equal(other.flatten(1)[:, 9:], drawn.flatten(1)[:, 9:])


@pytest.mark.parametrize("name", ["pixelcnn", "transformer", "video"])
def test_slices_are_codes_in_raster_order(name):
    prior, uniforms, labels, context = case(name)
    slices = torch.randint(CODES, (3, 2, *uniforms.shape[2:]))
    by_slices, by_codes = (
        sample_from(prior, uniforms, labels, context=context, prefix=prefix)
        for prefix in (slices, slices.flatten(1))
    )
    assert torch.equal(by_slices[:, :2], slices)
    assert torch.equal(by_slices, by_codes)


def test_frames_in_frames_out():
    """6 frames in, 10 out: 1711.00937 section 4.4; the prefix says how many videos there are."""
    config = VideoPixelCNNConfig(CODES, channels=4, layers=1, frame_channels=4, frame_layers=2)
    frames = torch.randint(CODES, (2, 6, 2, 2))
    draw = torch.Generator().manual_seed(0)
    video = sample(VideoPixelCNN(config), (16, 2, 2), prefix=frames, generator=draw)
    assert video.shape == (2, 16, 2, 2)
    assert torch.equal(video[:, :6], frames)


def test_progress_counts_given_positions_too():
    prior, uniforms, labels, context = case("wavenet")
    seen = []
    sample_from(
        prior,
        uniforms,
        labels,
        context=context,
        prefix=torch.zeros(3, 20, dtype=torch.int64),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(position, 23) for position in range(1, 24)]


@pytest.mark.parametrize(
    ("prefix", "error", "message"),
    [
        ([[0]], TypeError, "prefix must be an int64 tensor, got list"),
        (torch.zeros(3, 2), TypeError, "prefix must be an int64 tensor, got float32"),
        (torch.zeros(3, dtype=torch.int64), ValueError, "[3, n] or [3, n, 4], got [3]"),
        (torch.zeros(2, 2, dtype=torch.int64), ValueError, "[3, n] or [3, n, 4], got [2, 2]"),
        (torch.zeros(3, 2, 5, dtype=torch.int64), ValueError, "[3, n, 4], got [3, 2, 5]"),
        (torch.zeros(3, 21, dtype=torch.int64), ValueError, "at most n = 20, got [3, 21]"),
        (torch.zeros(3, 6, 4, dtype=torch.int64), ValueError, "at most n = 5, got [3, 6, 4]"),
        (torch.full((3, 2), CODES), ValueError, "prefix must be in [0, K = 7), got 7"),
        (torch.full((3, 2), -1), ValueError, "prefix must be in [0, K = 7), got -1"),
    ],
)
def test_refuses(prefix, error, message):
    prior, uniforms, labels, context = case("pixelcnn")
    with pytest.raises(error, match=re.escape(message)):
        sample_from(prior, uniforms, labels, context=context, prefix=prefix)


def test_refuses_another_batch():
    prior, _, labels, context = case("pixelcnn")
    prefix = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="batch must be that of the prefix, 2, got 3"):
        sample(prior, (5, 4), labels, context=context, prefix=prefix)
