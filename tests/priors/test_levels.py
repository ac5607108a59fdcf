"""``LevelPrior``: the shared contract given two levels above, and what the features are."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from fastvq.priors import (
    GatedPixelCNNConfig,
    LevelContext,
    LevelContextConfig,
    LevelPrior,
    LevelPriorConfig,
    PixelSNAILConfig,
    PriorConfig,
    Transformer,
    TransformerConfig,
    WaveNetConfig,
    bits_per_code,
    sample,
    sample_from,
)
from fastvq.testing.prior_contract import PriorContract

ABOVE = (5, 4)
FEATURES = 6


def level_config(prior, **fields):
    fields = {"codebook_sizes": ABOVE, "channels": 8, "layers": 1} | fields
    return LevelPriorConfig(prior, LevelContextConfig(**fields))


def make(codes=7, **fields):
    """The prior of a third level of images, with weights as large as training makes them."""
    fields = {"channels": 8, "layers": 3, "kernel_size": 5, "context_channels": FEATURES} | fields
    prior = LevelPrior(level_config(GatedPixelCNNConfig(codes, **fields), dropout=0.0))
    with torch.no_grad():
        prior.prior.logits.weight.mul_(100)
        prior.above.out.weight.mul_(5)
        for layer in prior.prior.layers:
            layer.vertical.weight.mul_(2)
            layer.horizontal.weight.mul_(2)
    return prior


def grids_above(batch, *shapes):
    return tuple(
        torch.randint(size, (batch, *shape)) for size, shape in zip(ABOVE, shapes, strict=True)
    )


class TestLevelPrior(PriorContract):
    shapes = ((4, 8), (6, 4))
    sampled_shapes = ((2, 6), (4, 2))
    shallow: ClassVar = {"kernel_size": 3, "layers": 1}
    conditions: ClassVar = {
        "levels": {},
        "levels-classes": {"num_classes": 3, "label_dropout": 0.0},
        "levels-classes-or-none": {"num_classes": 3, "label_dropout": 0.2},
    }

    def make(self, **fields):
        return make(self.codes, **fields)

    def context(self, prior, batch, shape):
        height, width = shape
        return grids_above(batch, (height // 2, width // 2), (height // 2, width))

    def test_refuses_contexts(self, condition):
        prior = self.prior(condition)
        codes, labels, (top, middle) = self.draw(prior, 2, (4, 8))
        for wrong, error, message in (
            (None, TypeError, "a tuple of the 2 grids of codes above, got none"),
            (torch.zeros(2, FEATURES, 4, 8), TypeError, "a tuple of the 2 grids.*got Tensor"),
            ((top,), ValueError, "context must hold 2 grids of codes, got 1"),
            ((top, middle.float()), TypeError, r"context\[1\] must be an int64 tensor, got float"),
            ((top[:1], middle), ValueError, r"context\[0\] must be .*B = 2.*got \[1, 2, 4\]"),
            ((top[:, 0], middle), ValueError, r"context\[0\] must be \[B, \*shape_above\]"),
            ((top[:, :0], middle), ValueError, r"context\[0\] must be .*got \[2, 0, 4\]"),
            ((top[..., :3], middle), ValueError, r"divide \[4, 8\], got \[2, 2, 3\]"),
            ((top + 5, middle), ValueError, r"context\[0\] must be in \[0, K = 5\), got"),
            ((top, middle - 4), ValueError, r"context\[1\] must be in \[0, K = 4\), got"),
            ((top.to("meta"), middle), ValueError, r"context\[0\] and the prior must be on one"),
        ):
            with pytest.raises(error, match=message):
                prior(codes, labels, wrong)
            with pytest.raises(error, match=message):
                prior.stepper(2, (4, 8), labels, wrong)


@pytest.mark.parametrize("level", [0, 1])
def test_every_code_above_moves_logits_of_its_cell(level):
    prior = make().double().eval()
    codes, above = torch.randint(7, (1, 4, 8)), grids_above(1, (2, 2), (4, 4))
    factors = 4 // above[level].shape[1], 8 // above[level].shape[2]
    with torch.no_grad():
        before = prior(codes, context=above)
        for row in range(above[level].shape[1]):
            for column in range(above[level].shape[2]):
                changed = [grid.clone() for grid in above]
                changed[level][0, row, column] += 1
                changed[level] %= ABOVE[level]
                moved = (prior(codes, context=tuple(changed)) - before).abs().amax(-1)[0]
                cell = moved.unfold(0, factors[0], factors[0]).unfold(1, factors[1], factors[1])
                assert cell[row, column].min() > 1e-6


def test_a_code_stands_for_the_cell_at_its_place():
    """Nets that pass embeddings on: a feature is the sum of what the codes above it stand for."""
    context = LevelContext(LevelContextConfig(ABOVE, channels=3, layers=1, kernel_size=1), 3)
    with torch.no_grad():
        for stack in context.stacks:
            nn.init.zeros_(stack[0].out.weight)
            nn.init.zeros_(stack[0].out.bias)
        nn.init.dirac_(context.out.weight)
        nn.init.zeros_(context.out.bias)
    top, middle = grids_above(2, (1, 3), (2, 3))
    features = context((top, middle), 2, (4, 9))
    tables = [embedding.weight for embedding in context.embeddings]
    for row in range(4):
        for column in range(9):
            summed = tables[0][top[:, 0, column // 3]] + tables[1][middle[:, row // 2, column // 3]]
            torch.testing.assert_close(features[..., row, column], nn.functional.silu(summed))


def test_positions_that_share_a_coarse_code_have_features_of_their_own():
    context = LevelContext(LevelContextConfig((9,), channels=8, layers=1), 4)
    features = context((torch.randperm(9).view(1, 3, 3),), 1, (6, 6))
    inside = features[0, :, 2:4, 2:4].flatten(1).t()
    assert torch.pdist(inside).min() > 1e-3


@pytest.mark.parametrize(
    ("prior", "shape", "above"),
    [
        (WaveNetConfig(7, context_channels=FEATURES, layers=2), (8,), [(2,), (4,)]),
        (PixelSNAILConfig(7, 3, FEATURES, attention_heads=0), (4, 4), [(1, 1), (2, 2)]),
        (TransformerConfig(7, context_channels=FEATURES, layers=1), (2, 2, 4), [(1, 1, 2)] * 2),
    ],
    ids=["1-d", "2-d", "3-d"],
)
def test_any_prior_on_any_axes(prior, shape, above):
    level = LevelPrior(level_config(prior, grid_dims=len(shape))).eval()
    uniforms, grids = torch.rand(2, *shape), grids_above(2, *above)
    labels = None if prior.num_classes is None else torch.tensor([0, 2])
    codes = sample_from(level, uniforms, labels, context=grids)
    assert codes.shape == (2, *shape)
    assert torch.equal(codes, sample_from(level, uniforms, labels, context=grids, cached=False))


def test_features_are_computed_once_per_sampling(monkeypatch):
    prior, calls = make().eval(), []
    forward = LevelContext.forward
    monkeypatch.setattr(LevelContext, "forward", lambda *a: calls.append(1) or forward(*a))
    above = grids_above(3, (2, 2), (4, 4))
    codes = sample(prior, (4, 4), context=above)
    assert len(calls) == 1
    assert codes.shape == (3, 4, 4)
    # and a mean over batches takes the levels above along
    whole = prior.nll(codes, context=above).mean().item() / torch.tensor(2.0).log().item()
    assert bits_per_code(prior, codes, context=above, batch_size=2) == pytest.approx(whole, 1e-5)


def test_dropout_of_the_stack_acts_in_training_only():
    context = LevelContext(LevelContextConfig((9,), channels=8, layers=1, dropout=0.5), 4)
    grids = (torch.randint(9, (1, 3, 3)),)
    assert not torch.equal(context(grids, 1, (6, 6)), context(grids, 1, (6, 6)))
    context.eval()
    assert torch.equal(context(grids, 1, (6, 6)), context(grids, 1, (6, 6)))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"codebook_sizes": ()}, ValueError, "at least one level above, got none"),
        ({"codebook_sizes": (5, 0)}, ValueError, "each of codebook_sizes must be at least 1"),
        ({"grid_dims": 4}, ValueError, "grid_dims must be 1, 2 or 3, got 4"),
        ({"kernel_size": 2}, ValueError, "kernel_size must be odd, got 2"),
        ({"layers": 0}, ValueError, "layers must be at least 1, got 0"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1"),
        ({"grid_dims": 3}, ValueError, "grid_dims must be that of the prior, 2, got 3"),
    ],
)
def test_refuses_configs(fields, error, message):
    with pytest.raises(error, match=message):
        level_config(GatedPixelCNNConfig(7, context_channels=FEATURES), **fields)


def test_refuses_what_is_no_prior_of_a_level():
    with pytest.raises(ValueError, match="context_channels must be at least 1 in the prior of a"):
        level_config(GatedPixelCNNConfig(7))
    with pytest.raises(TypeError, match=r"config must be one of Gated.*, got PriorConfig"):
        level_config(PriorConfig(7, context_channels=FEATURES))


def test_the_prior_inside_sees_as_far_as_alone():
    level = LevelPrior(level_config(TransformerConfig(7, context_channels=FEATURES)))
    assert level.reach == Transformer(TransformerConfig(7)).reach
