# SPDX-License-Identifier: Apache-2.0
"""Every quantizer that a config may name, in a model; the common ones run in all of its tests."""

import math

import pytest
import torch

from fastvq import nn
from fastvq.models import VQVAE, VQVAEConfig
from fastvq.models.quantizers import QUANTIZERS as OFFERED

from .conftest import FURTHER, QUANTIZERS, batch, make, started

KINDS = {
    "grouped_residual": nn.GroupedResidualVQ,
    "projected_residual": nn.ProjectedResidualVQ,
    "qinco": nn.QINCo,
    "residual_simvq": nn.ResidualSimVQ,
    "residual_fsq": nn.ResidualFSQ,
    "residual_lfq": nn.ResidualLFQ,
    "ibq": nn.IBQ,
    "gumbel": nn.GumbelVQ,
    "vq": nn.VectorQuantizer,
    "residual": nn.ResidualVQ,
    "simvq": nn.SimVQ,
}


@pytest.fixture(params=FURTHER)
def further(request):
    return request.param


def test_every_quantizer_on_offer_is_tested():
    assert {name.split("-")[0] for name in QUANTIZERS | FURTHER} == set(OFFERED)


def test_a_step_trains_every_parameter(further):
    model = make(quantizer=further)
    assert isinstance(model.quantizer, KINDS[further.split("-")[0]])
    with torch.no_grad():
        # all codes of an untrained "residual_fsq" are zero, from which the decoder learns nothing
        model.encoder.layers[-1].weight.mul_(30)
    started(model, 8, 8)
    model(batch(model, 8, 8)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_codes_survive_decoding_and_a_file(further, tmp_path):
    model = started(make(quantizer=further), 8, 12).eval()
    x, config = batch(model, 8, 12), model.config
    indices, data = model.encode(x), model.reconstruct(x)
    assert (4, *model.grid_shapes(8, 12)[0]) == indices.shape
    assert 0 <= int(indices.min()) <= int(indices.max()) < config.codebook_size
    assert torch.equal(model(x).indices, indices)
    assert torch.equal(model.decode(indices), data)
    torch.testing.assert_close(model(x).reconstruction, data, rtol=0, atol=1e-6)
    nominal = config.codebooks * 24 * math.log2(config.codebook_size)
    assert model.nominal_bits(8, 12) == pytest.approx(nominal)

    model.save_pretrained(tmp_path)
    loaded = VQVAE.from_pretrained(tmp_path)
    assert loaded.config == config
    assert torch.equal(loaded.encode(x), indices)
    assert torch.equal(loaded.decode(indices), data)


def test_groups_stand_one_after_another():
    model = started(make(quantizer="grouped_residual"), 8, 8).eval()
    vectors = model.encoder(batch(model, 8, 8))
    indices = model.quantizer.encode(vectors)
    for group, part in enumerate(vectors.chunk(2, 1)):
        alone = model.quantizer.quantizers[group].encode(part)
        assert torch.equal(indices[..., 3 * group : 3 * group + 3], alone)
    with pytest.raises(ValueError, match=r"G a multiple of groups = 2, got \[1, 4, 4, 5\]"):
        model.decode(torch.zeros(1, 4, 4, 5, dtype=torch.int64))


def test_settings_reach_the_quantizer():
    assert make(quantizer="vq-rotation").quantizer.gradient == "rotation"
    assert make(quantizer="residual-rotation").quantizer.gradient == "rotation"
    assert make(quantizer="ibq").quantizer.commitment_weight == 1.0
    assert make(quantizer="qinco", commitment_weight=0.5).quantizer.commitment_weight == 0.5
    first = make(quantizer="projected_residual").quantizer.levels[0]
    assert (first.dim, first.codebook_dim) == (4, 2)
    assert isinstance(first.book.learning, nn.Gradient)
    first = make(quantizer="projected_residual-averages").quantizer.levels[0]
    assert (first.codebook_dim, first.book.learning) == (8, nn.EMA(decay=0.9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantizer": "qinco"}, "at least 2 for quantizer 'qinco', got 1"),
        ({"quantizer": "gumbel", "codebooks": 2}, "must be 1 for quantizer 'gumbel', got 2"),
        ({"quantizer": "gumbel", "commitment_weight": 0.1}, "None for quantizer 'gumbel', got 0.1"),
        ({"quantizer": "qinco", "codebooks": 2, "learning": "ema"}, "learning must be None"),
        (
            {"quantizer": "grouped_residual", "codebooks": 4},
            "groups must be given for quantizer 'grouped_residual', got None",
        ),
        (
            {"quantizer": "grouped_residual", "codebooks": 5, "groups": 2},
            "codebooks must be a multiple of groups = 2, got 5",
        ),
        (
            {"quantizer": "grouped_residual", "codebooks": 6, "groups": 3},
            "codebook_dim must be a multiple of groups = 3, got 16",
        ),
        ({"groups": 2}, "groups must be None for quantizer 'vq', got 2"),
        ({"projected_dim": 0}, "projected_dim must be at least 1, got 0"),
        (
            {"quantizer": "residual_fsq", "codebooks": 2},
            "fsq_levels must be given for quantizer 'residual_fsq', got None",
        ),
        (
            {"quantizer": "residual_fsq", "codebooks": 2, "fsq_levels": (5, 5)},
            "codebook_size must be 25, the product of fsq_levels, got 64",
        ),
        ({"gradient": "straight"}, "gradient must be one of .* did you mean 'straight_through'"),
        ({"gradient": "diveq"}, "learning must be 'gradient' for gradient 'diveq', got 'ema'"),
        (
            {"quantizer": "projected_residual", "codebooks": 2, "gradient": "diveq", "decay": 0.9},
            "learning must be 'gradient' for gradient 'diveq', got 'ema'",
        ),
        ({"quantizer": "fsq", "fsq_levels": ()}, "fsq_levels must hold at least one number"),
        ({"quantizer": "fsq", "fsq_levels": (8, 1)}, "each of fsq_levels must be at least 2"),
        (
            {"quantizer": "residual", "codebooks": 2, "gradient": "diveq"},
            "gradient must be one of straight_through, rotation, got 'diveq'",
        ),
        ({"quantizer": "lfq", "gradient": "rotation"}, "gradient must be None for quantizer 'lfq'"),
    ],
)
def test_refused_settings(options, message):
    with pytest.raises(ValueError, match=message):
        VQVAEConfig(**options)


@pytest.mark.parametrize("levels", [[5, 5], 25])
def test_fsq_levels_are_a_tuple(levels):
    with pytest.raises(TypeError, match="fsq_levels must be one of tuple"):
        VQVAEConfig(quantizer="fsq", codebook_size=25, fsq_levels=levels)
