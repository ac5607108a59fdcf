"""``WaveNet``: the shared contract, its reach, its ring buffers, and what it refuses."""

import math
from typing import ClassVar

import pytest
import torch

from fastvq.priors import WaveNet, WaveNetConfig, sample_from
from fastvq.testing.prior_contract import PriorContract

CODES = 7


def make(**fields):
    """A prior small enough to look at, with weights as large as training makes them."""
    sizes = {"channels": 8, "gate_channels": 6, "skip_channels": 10, "layers": 5, "cycle": 5}
    prior = WaveNet(WaveNetConfig(CODES, **sizes | fields))
    with torch.no_grad():
        prior.logits.weight.mul_(300)
        for layer in prior.layers:
            layer.dilated.weight.mul_(2)
    return prior


class TestWaveNet(PriorContract):
    # two end within a block, one is shorter than a dilation
    shapes = ((29,), (13,), (2,))
    sampled_shapes = ((29,), (13,))
    variants: ClassVar = {
        "two-cycles": {"layers": 8, "cycle": 4},
        "kernel-3": {"kernel_size": 3, "layers": 4},
    }
    shallow: ClassVar = {"layers": 3}

    def make(self, **fields):
        return make(**fields)


@pytest.mark.parametrize(
    ("fields", "reach"),
    [
        ({"layers": 1, "cycle": 1}, 2),
        ({"layers": 3, "cycle": 3}, 8),
        ({"layers": 5, "cycle": 2}, 1 + 1 + 2 + 1 + 2 + 1),
        ({"layers": 2, "cycle": 5, "kernel_size": 4}, 1 + 3 * 3),
    ],
)
def test_reach_is_exact(fields, reach):
    contract = TestWaveNet()
    contract.shapes, contract.shallow = [(20,)], fields
    contract.test_reach_is_exact()
    assert make(**fields).reach == reach


def test_reach_of_the_paper():
    """Three cycles of ten layers see 3070 samples."""
    assert WaveNet(WaveNetConfig(2, layers=30, cycle=10, channels=1)).reach == 3070


@pytest.mark.parametrize("kernel_size", [2, 3, 4])
@pytest.mark.parametrize("length", [63, 64, 65, 200])
@torch.no_grad()
def test_rings_hold_over_many_turns(kernel_size, length):
    """Dilations below, at and above the chunk of the context, and lengths around its end."""
    prior = make(kernel_size=kernel_size, layers=8, cycle=8, context_channels=2, num_classes=3)
    prior = prior.double().eval()
    codes, labels = torch.randint(CODES, (2, length)), torch.tensor([0, 2])
    context = torch.randn(2, 2, length, dtype=torch.float64)
    stepper, logits = prior.stepper(2, (length,), labels, context), []
    for column in codes.unbind(1):
        logits.append(stepper.logits())
        stepper.append(column)
    expected = prior(codes, labels, context)
    assert (torch.stack(logits, dim=1) - expected).abs().max() <= 1e-10


def test_what_is_returned_stays_and_what_is_unwritten_is_not_read(poisoned_empty):
    prior = make().eval()
    stepper = prior.stepper(2, (9,))
    codes = torch.randint(CODES, (2, 9))
    logits, copies = [], []
    for column in codes.unbind(1):
        logits.append(stepper.logits())
        copies.append(logits[-1].clone())
        stepper.append(column)
    assert all(torch.equal(*pair) for pair in zip(logits, copies, strict=True))
    assert torch.stack(logits).isfinite().all()


def test_context_acts_from_its_own_position_on():
    """The context at t moves the logits at t and later ones, and none before."""
    prior = make(context_channels=2).double().eval()
    codes, context = torch.randint(CODES, (1, 20)), torch.randn(1, 2, 20, dtype=torch.float64)
    other = context.clone()
    other[:, :, 11] += 1
    with torch.no_grad():
        moved = (prior(codes, context=other) - prior(codes, context=context)).abs().amax(-1)[0]
    assert moved[:11].max() == 0
    assert moved[11] > 1e-3
    assert moved[12:].max() > 1e-3


@pytest.mark.parametrize(("length", "columns"), [(90, 6), (200, 1), (200, 8), (130, 65)])
@torch.no_grad()
def test_a_coarse_context_is_that_of_several_codes_in_a_row(length, columns):
    """Columns shorter and longer than the chunk in which the cache takes the context in."""
    prior = make(context_channels=3, num_classes=2).double().eval()
    codes, labels = torch.randint(CODES, (2, length)), torch.tensor([1, 0])
    context = torch.randn(2, 3, columns, dtype=torch.float64)
    fine = context.repeat_interleave(length // columns, dim=2)
    expected = prior(codes, labels, fine)
    torch.testing.assert_close(prior(codes, labels, context), expected)
    stepper, logits = prior.stepper(2, (length,), labels, context), []
    for column in codes.unbind(1):
        logits.append(stepper.logits())
        stepper.append(column)
    torch.testing.assert_close(torch.stack(logits, dim=1), expected)


@pytest.mark.parametrize("columns", [0, 7, 40])
def test_a_context_whose_columns_do_not_divide_the_codes_is_refused(columns):
    prior = make(context_channels=3)
    with pytest.raises(ValueError, match=r"context must be \[2, 3, 20\], got"):
        prior(torch.randint(CODES, (2, 20)), context=torch.randn(2, 3, columns))


def test_decodes_a_sound_given_its_codes():
    """A small decoder of mu-law levels learns to follow its context: van den Oord 2017, 4.3."""
    sizes = {"channels": 16, "gate_channels": 16, "skip_channels": 16, "layers": 3, "cycle": 3}
    config = WaveNetConfig(256, context_channels=4, dropout=0, code_dropout=0, **sizes)
    decoder, table = WaveNet(config), torch.randn(8, 4)
    optimizer = torch.optim.Adam(decoder.parameters(), 0.03)

    def batch(size):
        codes = torch.randint(8, (size, 4)).repeat_interleave(8, dim=1)
        return 32 * codes + 5, table[codes].transpose(1, 2)

    for _ in range(80):
        levels, context = batch(8)
        optimizer.zero_grad()
        decoder.nll(levels, context=context).mean().backward()
        optimizer.step()
    levels, context = batch(16)
    heard = sample_from(decoder, torch.rand(16, 32, dtype=torch.float64), context=context)
    assert (heard == levels).float().mean() > 0.9


def test_a_fresh_prior_knows_nothing():
    """The first loss is within a twentieth of a nat of log K: no wild start to unlearn."""
    prior = WaveNet(WaveNetConfig(64, 10)).eval()
    codes, labels = torch.randint(64, (8, 40)), torch.randint(10, (8,))
    assert prior.nll(codes, labels).mean().item() == pytest.approx(math.log(64), abs=0.05)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"layers": 0}, ValueError, "layers must be at least 1, got 0"),
        ({"cycle": 2.0}, TypeError, "cycle must be an int, got float"),
        ({"kernel_size": 1}, ValueError, "kernel_size must be at least 2, got 1"),
        ({"skip_channels": -1}, ValueError, "skip_channels must be at least 1, got -1"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1"),
    ],
)
def test_refuses_configs(fields, error, message):
    with pytest.raises(error, match=message):
        WaveNetConfig(8, **fields)
