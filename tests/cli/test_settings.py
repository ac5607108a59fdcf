# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass

import pytest

from fastvq.cli import settings


@dataclass
class Model:
    size: int = 1
    strides: tuple[int, ...] = (2,)


@dataclass
class Training:
    steps: int = 1
    device: str = "auto"


SECTIONS = {"model": Model, "training": Training}


def test_a_file_and_assignments_that_win_over_it(tmp_path):
    config = tmp_path / "x.toml"
    config.write_text("[model]\nsize = 3\nstrides = [2, 2]\n[training]\nsteps = 5\n")
    found = settings.read(SECTIONS, config, ["training.steps=7", "training.device=cuda:1"])
    assert found == {
        "model": {"size": 3, "strides": [2, 2]},
        "training": {"steps": 7, "device": "cuda:1"},
    }
    assert settings.read(SECTIONS, None, []) == {"model": {}, "training": {}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("[2, 3]", [2, 3]),
        ("none", None),
        ("'3'", "3"),
        ("a/b=c", "a/b=c"),
        ("", ""),
    ],
)
def test_values(text, value):
    assert settings.read(SECTIONS, None, [f"model.size={text}"])["model"] == {"size": value}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.sise=3", "did you mean 'model.size'"),
        ("trainig.steps=3", "did you mean 'training.steps'"),
        ("steps=3", "section.key, got 'steps'; did you mean 'training.steps'"),
        ("model.size", "must be section.key=value, got 'model.size'"),
        ("=3", "got ''"),
    ],
)
def test_refused_assignments(assignment, message):
    with pytest.raises(ValueError, match=message):
        settings.read(SECTIONS, None, [assignment])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[modle]\nsize = 3\n", "did you mean 'model.size'"),
        ("size = 3\n", "did you mean 'model.size'"),
        ("[model]\nsiz = 3\n", "did you mean 'model.size'"),
        ("[model\n", "not TOML"),
    ],
)
def test_refused_files(tmp_path, text, message):
    config = tmp_path / "x.toml"
    config.write_text(text)
    with pytest.raises(ValueError, match=message):
        settings.read(SECTIONS, config, [])
    with pytest.raises(FileNotFoundError, match="no such file"):
        settings.read(SECTIONS, tmp_path / "y.toml", [])
