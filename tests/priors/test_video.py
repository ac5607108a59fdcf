"""``VideoPixelCNN``: the shared contract, whole frames before, actions, and what it refuses."""

import math
from typing import ClassVar

import pytest
import torch

from fastvq.priors import VideoPixelCNN, VideoPixelCNNConfig
from fastvq.testing._prior_cases import earlier
from fastvq.testing.prior_contract import PriorContract

CODES = 7


def make(**fields):
    """A prior small enough to look at, with weights as large as training makes them."""
    sizes = {"channels": 6, "layers": 2, "frame_channels": 5, "frame_layers": 2}
    prior = VideoPixelCNN(VideoPixelCNNConfig(CODES, **sizes | fields))
    with torch.no_grad():
        prior.frame.logits.weight.mul_(150)
        for layer in [*prior.layers, *prior.frame.layers]:
            for parameter in layer.parameters():
                parameter.mul_(2)
    return prior


class TestVideoPixelCNN(PriorContract):
    shapes = ((4, 3, 4), (3, 4, 2), (1, 2, 3), (3, 1, 1))
    sampled_shapes = ((3, 2, 3), (2, 3, 2))
    variants: ClassVar = {
        "dilated": {},
        "undilated": {"frame_cycle": 1, "kernel_size": 5, "layers": 1},
    }
    shallow: ClassVar = {"layers": 1, "frame_layers": 1, "frame_cycle": 1}

    def make(self, **fields):
        return make(**fields)

    def sees(self, prior, shape):
        if prior.config.frame_layers > 1:
            return super().sees(prior, shape)
        # one layer of either network with a kernel of 3, worked out by hand: of the frame's own
        # codes those of two layers, of two frames before a step to every side
        places = torch.stack(torch.unravel_index(torch.arange(math.prod(shape)), shape), dim=-1)
        frames, rows, columns = (places - places[:, None]).unbind(-1)
        own = (frames == 0) & (rows <= 2) & (columns.abs() <= 2) & earlier(len(places))
        before = (frames >= 1) & (frames <= 2) & (rows.abs() <= 1) & (columns.abs() <= 1)
        return own | before


@pytest.mark.parametrize(
    ("fields", "reach"),
    [
        # time 1 + 1, space 1, the frame's own prior 2 or 4
        ({"layers": 1, "frame_layers": 1}, 1),
        ({"layers": 1, "frame_layers": 1, "kernel_size": 5}, 2),
        ({"layers": 9, "frame_layers": 4, "frame_cycle": 4}, 10),
        ({"layers": 20, "frame_layers": 4, "frame_cycle": 4}, 15),
        ({"layers": 20, "frame_layers": 4, "frame_cycle": 2, "kernel_size": 5}, 7),
    ],
)
def test_reach(fields, reach):
    assert make(**fields).reach == reach


@torch.no_grad()
def test_caches_hold_over_many_frames():
    """More frames than the encoder looks back, and dilations of 1, 2 and 4."""
    prior = make(frame_layers=3, frame_cycle=3, context_channels=2, num_classes=3).double().eval()
    codes, labels = torch.randint(CODES, (2, 11, 2, 2)), torch.tensor([1, 2])
    context = torch.randn(2, 2, 11, 2, 2, dtype=torch.float64)
    stepper, logits = prior.stepper(2, (11, 2, 2), labels, context), []
    for column in codes.flatten(1).unbind(1):
        logits.append(stepper.logits())
        stepper.append(column)
    expected = prior(codes, labels, context)
    found = torch.stack(logits, dim=1).view_as(expected)
    assert (found - expected).abs().max() <= 1e-10


@torch.no_grad()
def test_an_action_reaches_its_own_frame():
    """Broadcast over the frame, it moves every logit of it and of no earlier or later one."""
    prior = make(context_channels=3).double().eval()
    codes, actions = torch.randint(CODES, (1, 4, 3, 5)), torch.randn(1, 3, 4, dtype=torch.float64)
    other = actions.clone()
    other[:, :, 2] += 1
    given, changed = (a[..., None, None].expand(-1, -1, -1, 3, 5) for a in (actions, other))
    moved = (prior(codes, context=changed) - prior(codes, context=given)).abs().amax(-1)[0]
    assert (moved[2] > 1e-6).all()
    assert moved[[0, 1, 3]].max() == 0


def test_a_fresh_prior_knows_nothing():
    """The first loss is within a twentieth of a nat of log K: no wild start to unlearn."""
    prior = VideoPixelCNN(VideoPixelCNNConfig(64, 10)).eval()
    codes, labels = torch.randint(64, (4, 3, 4, 4)), torch.randint(10, (4,))
    assert prior.nll(codes, labels).mean().item() == pytest.approx(math.log(64), abs=0.05)


def test_learns_that_nothing_moves():
    """Still videos: after the first frame every code is certain."""
    torch.manual_seed(0)
    sizes = {"channels": 12, "layers": 1, "frame_channels": 12, "frame_layers": 1}
    prior = VideoPixelCNN(VideoPixelCNNConfig(4, dropout=0, code_dropout=0, **sizes))
    optimizer = torch.optim.Adam(prior.parameters(), 0.01)
    for _ in range(60):
        still = torch.randint(4, (16, 1, 3, 3)).expand(-1, 3, -1, -1)
        optimizer.zero_grad()
        prior.nll(still).mean().backward()
        optimizer.step()
    nll = prior.eval().nll(torch.randint(4, (16, 1, 3, 3)).expand(-1, 3, -1, -1))
    assert nll[:, 1:].mean() < 0.1
    assert nll[:, 0].mean() > 1.2


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"frame_layers": 0}, ValueError, "frame_layers must be at least 1, got 0"),
        ({"frame_cycle": 1.5}, TypeError, "frame_cycle must be an int, got float"),
        ({"kernel_size": 4}, ValueError, "kernel_size must be odd and at least 3, got 4"),
        ({"layers": 0}, ValueError, "layers must be at least 1, got 0"),
    ],
)
def test_refuses_configs(fields, error, message):
    with pytest.raises(error, match=message):
        VideoPixelCNNConfig(8, **fields)
