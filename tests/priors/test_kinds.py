"""The table of priors: each by its name, from plain values, into a folder and back."""

import json

import pytest
import torch

from fastvq import _config
from fastvq.priors import (
    KINDS,
    GatedPixelCNNConfig,
    LevelContextConfig,
    LevelPrior,
    LevelPriorConfig,
    PriorConfig,
    build,
    config_for,
    load,
    make,
    save,
)

SHAPES = {1: (6,), 2: (3, 4), 3: (2, 2, 3), None: (2, 5)}


@pytest.mark.parametrize("name", KINDS)
def test_every_prior_by_its_name(name, tmp_path):
    prior = build(name, codebook_size=5, num_classes=3, context_channels=2).eval()
    assert type(prior) is KINDS[name].prior
    assert type(prior.config) is KINDS[name].config
    shape = SHAPES[prior.grid_dims]
    given = torch.randint(5, (2, *shape)), torch.tensor([0, 2]), torch.randn(2, 2, *shape)
    save(tmp_path, prior)
    again = load(tmp_path)
    assert again.config == prior.config
    assert not again.training
    assert torch.equal(again(*given), prior(*given))


def test_a_level_in_a_folder(tmp_path):
    inside = GatedPixelCNNConfig(5, context_channels=4, channels=8, layers=1)
    above = LevelContextConfig((9, 7), channels=4, layers=1)
    prior = make(LevelPriorConfig(inside, above)).eval()
    save(tmp_path, prior)
    again = load(tmp_path)
    assert type(again) is LevelPrior
    assert again.config == prior.config
    given = torch.randint(5, (2, 4, 4)), None, tuple(torch.randint(7, (2, 2, 2)) for _ in range(2))
    assert torch.equal(again(*given), prior(*given))
    (tmp_path / "config.json").write_text(
        (tmp_path / "config.json").read_text().replace('"GatedPixelCNNConfig"', '"GatedPixelCN"')
    )
    with pytest.raises(ValueError, match="did you mean 'GatedPixelCNNConfig'"):
        load(tmp_path)


@pytest.mark.parametrize("name", KINDS)
def test_configs_are_plain_values(name):
    config = config_for(name, {"codebook_size": 5, "dropout": 0, "num_classes": 2})
    assert type(config) is KINDS[name].config
    values = json.loads(json.dumps(_config.to_dict(config)))
    assert config_for(name, values) == config


def test_refuses():
    with pytest.raises(ValueError, match=r"prior must be one of .*; did you mean 'pixelsnail'"):
        build("pixelsnails", codebook_size=5)
    with pytest.raises(ValueError, match=r"key of wavenet must be .*; did you mean 'layers'"):
        build("wavenet", codebook_size=5, layer=3)
    with pytest.raises(TypeError, match=r"config must be one of .*, got PriorConfig"):
        make(PriorConfig(5))


def test_refuses_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"format_version": 1, "kind": "VQVAE", "config": {}}')
    with pytest.raises(ValueError, match=r"kind in .* must be one of .*LevelPrior, got 'VQVAE'"):
        load(tmp_path)
