# SPDX-License-Identifier: Apache-2.0
"""The commands end to end, on settings that take seconds."""

import json
import os
import subprocess
import sys
import wave

import numpy as np
import pytest
from PIL import Image

import fastvq
from fastvq import training
from fastvq.__main__ import main

TINY = (
    "--set=model.hidden_channels=8",
    "--set=model.residual_channels=4",
    "--set=model.codebook_size=16",
    "--set=training.steps=6",
    "--set=training.validate_every=3",
)
TINY_PRIOR = ("--set=model.channels=8", "--set=training.steps=4", "--set=training.validate_every=2")


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs ``fastvq ARGUMENTS`` in this process: (exit status, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastvq", *map(str, arguments)])
        try:
            main()
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_the_way_from_data_to_samples(tmp_path, command, monkeypatch):
    run, codes = tmp_path / "run", tmp_path / "codes.npz"
    assert command("train", "--out", run, *TINY)[0] == 0
    status, out, _ = command("encode", run, "--out", codes)
    assert (status, out) == (0, f"{codes}: 1797 grids of 4x4 codes, K = 16\n")
    assert command("train-prior", run, "--codes", codes, *TINY_PRIOR)[0] == 0

    status, _, err = command("sample", run, "--device=abacus", "--out", tmp_path / "no.png")
    assert status != 0
    assert "abacus" in err
    status, _, err = command("sample", run, "--device=cpu", "--graph", "--out", tmp_path / "no.png")
    assert status != 0
    assert "graph must be False unless the prior is on a CUDA device, got cpu" in err
    assert not (tmp_path / "no.png").exists()
    assert (
        command(
            "sample",
            run,
            "--device=cpu",
            "--class=3",
            "--class=8",
            "-n2",
            "--out",
            tmp_path / "s.png",
        )[0]
        == 0
    )
    with Image.open(tmp_path / "s.png") as samples:
        assert samples.width > 2 * 64
    seen, draw = {}, training.sample_examples
    with monkeypatch.context() as patch:
        patch.setattr(
            training,
            "sample_examples",
            lambda *given, **options: seen.update(options) or draw(*given, **options),
        )
        options = ("--temperature=0.5", "--top-k=3", "--top-p=0.9", "--seed=4", "--class=3")
        assert command("sample", run, *options, "--out", tmp_path / "s.png")[0] == 0
    told = {"classes": ["3"], "temperature": 0.5, "top_k": 3, "top_p": 0.9, "seed": 4}
    assert seen == {**told, "graph": False}
    assert command("reconstruct", run, "-n5", "--out", tmp_path / "r.png")[0] == 0

    assert command("decode", run, codes, "--out", tmp_path / "decoded")[0] == 0
    decoded = sorted((tmp_path / "decoded").iterdir())
    assert len(decoded) == 1797
    images = training.decode_codes(training.load_model(run), training.Codes.load(codes))
    with Image.open(decoded[0]) as first:
        assert np.array_equal(first, (images[0, 0] * 255).round().byte().numpy())

    status, out, _ = command("evaluate", run, "--out", tmp_path / "e.json")
    assert status == 0
    found = json.loads(out)
    assert found == json.loads((tmp_path / "e.json").read_text())
    assert found["levels"][0]["bits_per_code"]["prior"] > 0
    assert command("train", "--out", run, "--resume")[0] == 0
    assert command("train-prior", run, "--resume")[0] == 0


def test_images_of_ones_own(tmp_path, command):
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 256, (9 + i, 14, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    run = tmp_path / "run"
    options = ("--data", tmp_path / "images", "--set=data.image_size=8", "--set=training.shift=1")
    assert command("train", "--out", run, *options, *TINY)[0] == 0
    assert command("train-prior", run, "--copies=2", *TINY_PRIOR)[0] == 0
    assert len(training.Codes.load(run / "prior" / "codes.npz")) == 24 + 2 * 20
    status, out, _ = command("evaluate", run, "--split=all")
    assert (status, json.loads(out)["examples"]) == (0, 24)
    assert command("sample", run, "--class=dog", "-n3", "--out", tmp_path / "s.png")[0] == 0
    flat = tmp_path / "images" / "cat"
    picture = ("--out", tmp_path / "r.png")
    assert command("reconstruct", run, "--data", flat, "--split=all", *picture)[0] == 0


def test_a_hierarchy_by_commands(tmp_path, command):
    """Two levels: one command trains both priors, samples are drawn through them."""
    run = tmp_path / "run"
    strides = "--set=model.strides=[[2],[2]]"
    assert command("train", "--model=vqvae2", "--out", run, strides, *TINY)[0] == 0
    above = ("--set=above.channels=8", "--set=above.layers=1")
    kind = ("--kind=pixelsnail", "--set=model.blocks=1")
    # what is wrong with the lower prior is found before the upper one is trained
    even = "--set=above.kernel_size=2"
    status, _, err = command("train-prior", run, *kind, *above, even, *TINY_PRIOR)
    assert (status, "kernel_size must be odd" in err) == (2, True)
    assert not (run / "prior").exists()
    assert command("train-prior", run, "--level=0", *kind, *TINY_PRIOR)[0] == 0
    status, _, err = command("train-prior", run, "--resume")
    assert (status, "train the next with --level 1" in err) == (0, True)
    assert command("train-prior", run, "--resume", "--level=1")[0] == 2
    assert command("train-prior", run, "--level=1", *kind, *above, *TINY_PRIOR)[0] == 0
    (run / "prior").rename(tmp_path / "away")
    # nothing is encoded for a folder that is taken
    status, _, err = command("train-prior", run, "--codes", "absent", *kind, *TINY_PRIOR)
    assert (status, "prior-1: there is a run in this folder" in err) == (2, True)
    (run / "prior-1").rename(tmp_path / "away-1")
    assert command("train-prior", run, *kind, *above, *TINY_PRIOR)[0] == 0
    status, out, _ = command("evaluate", run)
    assert status == 0
    assert [len(level["bits_per_code"]) for level in json.loads(out)["levels"]] == [3, 3]
    assert command("sample", run, "-n1", "--class=3", "--out", tmp_path / "s.png")[0] == 0
    status, out, _ = command("encode", run, "--out", tmp_path / "c.npz")
    assert out.endswith("1797 grids of 2x2 and 4x4 codes, K = 16 and 16\n")
    status, _, err = command("train-prior", run, "--resume")
    assert (status, "train the next" in err) == (0, False)
    status, _, err = command("train-prior", run, "--level=0", *above, "--out", tmp_path / "x")
    assert (status, "above must not be set for the top level" in err) == (2, True)
    assert command("sample", run, "--prior", run / "prior", "--out", tmp_path / "x")[0] == 2
    assert not (tmp_path / "x").exists()


def test_sound_by_commands(tmp_path, command):
    """What is drawn and what is decoded has the rate of what was read."""
    (tmp_path / "sound").mkdir()
    for index in range(6):
        samples = (8000 * np.sin(np.arange(128) * (index + 1) / 9)).astype("<i2")
        with wave.open(str(tmp_path / "sound" / f"{index}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(6000)
            file.writeframes(samples.tobytes())
    run = tmp_path / "run"
    small = [f"--set=model.wavenet_{part}channels=4" for part in ("", "gate_", "skip_")]
    small += ["--set=model.wavenet_layers=2", "--set=model.strides=[2,2]"]
    small += ["--set=model.hidden_channels=8", "--set=model.codebook_size=8"]
    few = ("--set=training.steps=2", "--set=training.validate_every=2")
    source = ("--data", tmp_path / "sound", "--set=data.length=64")
    assert command("train", "--model=wavenet_vqvae", "--out", run, *source, *small, *few)[0] == 0
    assert command("train-prior", run, "--set=model.layers=1", *few)[0] == 0
    assert command("sample", run, "-n2", "--out", tmp_path / "drawn")[0] == 0
    assert command("encode", run, "--out", tmp_path / "c.npz")[0] == 0
    decoded = ("--out", tmp_path / "decoded")
    status, out, _ = command("decode", run, tmp_path / "c.npz", *decoded)
    assert (status, out) == (0, f"{tmp_path / 'decoded'}: 12 sounds\n")
    for folder, count in (("drawn", 2), ("decoded", 12)):
        files = sorted((tmp_path / folder).glob("*.wav"))
        assert len(files) == count
        with wave.open(str(files[0])) as file:
            assert (file.getframerate(), file.getnframes()) == (6000, 64)


def test_an_experiment(tmp_path, command):
    steps = ("--set=training.steps=2", "--set=training.validate_every=2")
    small = ("--set=model.hidden_channels=8", "--set=model.codebook_size=8")
    status, out, _ = command(
        "experiment", "learning", "--out", tmp_path / "x", "--seeds=1", *steps, *small
    )
    assert status == 0
    assert "**Claim.**" in out
    assert "**Finding.**" in out
    assert (tmp_path / "x" / "plot.png").is_file()


def test_the_demo(tmp_path, command):
    status, out, err = command("demo", "--out", tmp_path, "--model-steps=8", "--prior-steps=4")
    assert status == 0
    assert "test MSE" in out
    assert "step 8/8" in err
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"test_mse", "psnr", "seconds", "backend"} <= report.keys()
    assert f"{report['levels'][0]['codes_used']} of 64, perplexity" in out
    assert report["bits"]["nominal"] == 96
    assert report["bits"]["prior"] > 0
    for name in ("reconstructions", "samples", "codebook", "curves"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            picture.load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--out", "x", "--sede", "1"), "--seed|--set"),
        (("trian",), "train"),
        (
            ("train", "--out", "x", "--set", "model.codebok_size=3"),
            "did you mean 'model.codebook_size'",
        ),
        (("train", "--out", "x", "--set", "codebook_size=3"), "did you mean 'model.codebook_size'"),
        (
            ("train", "--out", "x", "--set", "model.codebook_size=many"),
            "must be int, got str 'many'",
        ),
        (("train", "--out", "x", "--set", "model.codebook_size=0"), "must be at least 1, got 0"),
        (("train", "--out", "x", "--set", "model.in_channels=3"), "in_channels must be 1"),
        (("train", "--out", "x", "--data", "absent"), "absent: no such folder"),
        (("train", "--out", "x", "--config", "absent.toml"), "absent.toml: no such file"),
        (("train", "--out", "x", "--resume"), "no such file"),
        (("train", "--out", "x", "--resume", "--data", "digits"), "give no others"),
        (("train", "--out", "x", "--resume", "--model", "vqvae2"), "give no others"),
        (("train-prior", "absent", "--out", "x"), "no checkpoint in this run"),
        (("evaluate", "absent"), "no checkpoint in this run"),
        (("decode", "absent", "codes.npz", "--out", "x"), "no checkpoint in this run"),
        (("sample", "absent", "--out", "x"), "no checkpoint in this run"),
        (("train", "--out", "x", "--model", "vqvea"), "must be one of vqvae, vqvae2"),
        (("experiment", "bta", "--out", "x"), "did you mean 'beta'"),
        (("demo",), "--out"),
    ],
)
def test_refused_before_anything_is_written(tmp_path, monkeypatch, command, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = command(*arguments)
    assert status == 2
    assert any(part in err for part in message.split("|")), err
    assert list(tmp_path.iterdir()) == []


def test_another_models_codes_are_refused(tmp_path, command):
    command("train", "--out", tmp_path / "a", *TINY)
    command("train", "--out", tmp_path / "b", *TINY, "--set=training.seed=1")
    command("encode", tmp_path / "a", "--out", tmp_path / "a.npz")
    for arguments in (
        ("train-prior", tmp_path / "b", "--codes", tmp_path / "a.npz"),
        ("decode", tmp_path / "b", tmp_path / "a.npz", "--out", tmp_path / "x"),
    ):
        status, _, err = command(*arguments)
        assert status == 2
        assert "codes must be of the model with fingerprint" in err
    assert not (tmp_path / "b" / "prior").exists()
    assert not (tmp_path / "x").exists()


def test_doctor(command):
    status, out, _ = command("doctor")
    assert status == 0
    assert f"fastvq {fastvq.__version__}" in out
    for status in fastvq.backends():
        assert str(status) in out


def test_without_the_train_extra_doctor_works_and_the_rest_says_what_is_missing(tmp_path):
    hidden = ("typer", "tqdm", "safetensors", "PIL", "matplotlib", "sklearn")
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.machinery, sys\n"
        "class Hider:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {hidden!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hider())\n"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    }

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "fastvq", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )

    found = run("doctor")
    assert found.returncode == 0, found.stderr
    assert "reference" in found.stdout
    found = run("train", "--out", str(tmp_path / "x"))
    assert found.returncode == 2
    assert 'pip install "fastvq[train]"' in found.stderr
    assert "Traceback" not in found.stderr
