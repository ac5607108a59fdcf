"""``PixelSNAIL``: the shared contract, its attention looked at alone, and what it refuses."""

import math
from typing import ClassVar

import pytest
import torch

from fastvq.priors import PixelSNAIL, PixelSNAILConfig
from fastvq.testing.prior_contract import PriorContract

SMALL = {
    "channels": 8,
    "residual_channels": 6,
    "attention_heads": 2,
    "attention_key_channels": 3,
    "attention_value_channels": 5,
    "output_layers": 1,
}


def make(codes=7, **fields):
    """A prior small enough to look at, with weights as large as training makes them."""
    prior = PixelSNAIL(PixelSNAILConfig(codes, **SMALL | fields))
    with torch.no_grad():
        prior.logits.weight.mul_(50)
        for name, weight in prior.blocks.named_parameters():
            if name.endswith(("vertical.weight", "horizontal.weight", "attention.stream.weight")):
                weight.mul_(3)
    return prior


class TestPixelSNAIL(PriorContract):
    variants: ClassVar = {
        "attention": {"blocks": 2, "layers": 1},
        "convolutions": {"attention_heads": 0, "blocks": 2, "layers": 2, "kernel_size": 5},
    }
    shallow: ClassVar = {"attention_heads": 0, "blocks": 1, "layers": 1}

    def make(self, **fields):
        return make(self.codes, **fields)


def test_the_first_position_reads_nothing_and_the_second_the_first():
    """What a position gains, against the documented softmax in plain arithmetic."""
    attention = make().double().eval().blocks[0].attention
    stream, codes = torch.randn(2, 1, 4, 8, dtype=torch.float64).unbind(0)
    positions = torch.randn(4, 32, dtype=torch.float64)
    gained = attention(stream, codes, positions)[0]
    asked = (attention.stream(stream) + attention.position(positions)).view(4, 2, 11)
    answers = asked[..., 3:] + attention.code(codes).view(4, 2, 8)
    for place in range(4):
        heads = []
        for head in range(2):
            seen = torch.stack([attention.nothing[head], *answers[:place, head]])
            weights = (seen[:, :3] @ asked[place, head, :3] / math.sqrt(3)).softmax(0)
            heads.append(weights @ seen[:, 3:])
        signal, gate = attention.out(torch.cat(heads)).chunk(2)
        torch.testing.assert_close(gained[place], signal * gate.sigmoid())


def test_attention_reaches_where_convolutions_do_not():
    contract = TestPixelSNAIL()
    prior = make(blocks=1, layers=1).double().eval()
    assert prior.reach == math.inf
    assert contract.sees(prior, (5, 9)).sum() == 45 * 44 // 2
    assert make(attention_heads=0, blocks=2, layers=3, kernel_size=5).reach == 14


def test_a_fresh_prior_knows_nothing():
    """The first loss is within a twentieth of a nat of log K: no wild start to unlearn."""
    prior = PixelSNAIL(PixelSNAILConfig(64, 10)).eval()
    codes, labels = torch.randint(64, (32, 4, 4)), torch.randint(10, (32,))
    assert prior.nll(codes, labels).mean().item() == pytest.approx(math.log(64), abs=0.05)


def test_positions_matter():
    """With all codes equal and no attention, logits far from the border know where they are."""
    prior = make(attention_heads=0, blocks=1, layers=1).eval()
    inside = prior(torch.zeros(1, 8, 12, dtype=torch.int64))[0, 3:, 3:-3].flatten(0, 1)
    assert torch.pdist(inside).min() > 1e-4


def test_attention_weights_are_dropped_in_training_only():
    attention = PixelSNAIL(PixelSNAILConfig(7, **SMALL, dropout=0.5)).blocks[0].attention
    given = torch.randn(1, 9, 8), torch.randn(1, 9, 8), torch.randn(9, 32)
    assert not torch.equal(attention(*given), attention(*given))
    attention.eval()
    assert torch.equal(attention(*given), attention(*given))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"blocks": 0}, ValueError, "blocks must be at least 1, got 0"),
        ({"layers": 2.5}, TypeError, "layers must be an int, got float"),
        ({"kernel_size": 4}, ValueError, "odd and at least 3, got 4"),
        ({"attention_heads": -1}, ValueError, "attention_heads must be at least 0, got -1"),
        ({"output_layers": -1}, ValueError, "output_layers must be at least 0, got -1"),
        ({"attention_key_channels": 0}, ValueError, "attention_key_channels must be at least 1"),
    ],
)
def test_refuses_configs(options, error, message):
    with pytest.raises(error, match=message):
        PixelSNAILConfig(7, **options)
