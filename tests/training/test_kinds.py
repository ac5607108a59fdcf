# SPDX-License-Identifier: Apache-2.0
"""Every kind of model, data and prior from training to samples, on settings that take seconds."""

import dataclasses
import math
import wave

import numpy as np
import pytest
import torch
from PIL import Image

from fastvq import data, training
from fastvq.data import DataConfig, Splits
from fastvq.models import VQVAE2, WaveNetVQVAE
from fastvq.priors import entropy_bits
from fastvq.training import Codes, generation, jittered, media, runs
from fastvq.training.kinds import config_for, load_pretrained, model_name

from .conftest import silent

TRAINING = training.ModelTraining(steps=6, batch_size=16, validate_every=3, warmup_steps=1)
PRIOR_TRAINING = training.PriorTraining(steps=4, batch_size=16, validate_every=2, warmup_steps=1)
SMALL = {"hidden_channels": 8, "residual_channels": 4, "codebook_size": 8, "codebook_dim": 4}
WAVENET = {
    "hidden_channels": 8,
    "codebook_size": 8,
    "codebook_dim": 4,
    "strides": (2, 2),
    "wavenet_channels": 8,
    "wavenet_gate_channels": 8,
    "wavenet_skip_channels": 8,
    "wavenet_layers": 3,
    "wavenet_cycle": 3,
}


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """A folder of WAV files: two speakers who hum at two pitches."""
    folder = tmp_path_factory.mktemp("speech")
    for index in range(12):
        speaker = ("ann", "bob")[index % 2]
        pitch = (220, 330)[index % 2] * 2 ** (index / 24)
        wave_form = 0.5 * np.sin(2 * np.pi * pitch * np.arange(640) / 8000)
        with wave.open(str(folder / f"{index}_{speaker}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes((wave_form * 32767).astype("<i2").tobytes())
    return DataConfig(source=str(folder), length=64, label_pattern=r"_(\w+)\.")


def trained(tmp_path, source, model, **values):
    return training.train_model(
        source,
        lambda examples: config_for(examples, model, values),
        TRAINING,
        tmp_path / "run",
        report=silent,
    )


def priors_of(tmp_path, model, kinds):
    """A trained prior of each level, and the codes."""
    splits = training.load_data(tmp_path / "run", model, report=silent)
    codes = training.encode_splits(model, splits)
    found = []
    for level, (kind, values) in enumerate(kinds):
        above = {"channels": 8, "layers": 1} if level else {}
        config = training.prior_config_for(codes, level, kind, values, above)
        folder = runs.prior_folder(tmp_path / "run", level)
        found.append(
            training.train_prior(codes, config, PRIOR_TRAINING, folder, level=level, report=silent)
        )
    return found, codes, splits


def spied(function, calls):
    """``function``, whose results and keywords are kept."""

    def call(*arguments, **options):
        calls.append((function(*arguments, **options), options))
        return calls[-1][0]

    return call


def test_a_hierarchy_with_a_prior_for_each_level(tmp_path, monkeypatch):
    """Two levels of 4 codes and 8, the lower prior told of the upper codes: all that is done."""
    sizes = {"codebook_size": 64, "codebook_sizes": (8, 4)}
    model = trained(tmp_path, DataConfig(), "vqvae2", strides=((2,), (2,)), **(SMALL | sizes))
    assert isinstance(model, VQVAE2)
    kinds = [("pixelsnail", {"channels": 8, "blocks": 1}), ("gated_pixelcnn", {"channels": 8})]
    priors, codes, splits = priors_of(tmp_path, model, kinds)
    assert [grid.shape[1:] for grid in codes.grids] == [(2, 2), (4, 4)]
    assert codes.codebook_sizes == (4, 8)
    codes.save(tmp_path / "codes.npz")
    assert codes.is_same(Codes.load(tmp_path / "codes.npz"))
    lower = priors[1].prior.config
    assert (lower.codebook_size, lower.above.codebook_sizes) == (8, (4,))

    found = training.evaluate(model, splits, priors=priors)
    assert [level["grid"] for level in found["levels"]] == [[2, 2], [4, 4]]
    assert [level["codebook_size"] for level in found["levels"]] == [4, 8]
    top, bottom = (level["bits_per_code"]["prior"] for level in found["levels"])
    assert found["bits"]["prior"] == pytest.approx(4 * top + 16 * bottom)
    assert found["bits"]["nominal"] == 4 * 2 + 16 * 3
    partly = training.evaluate(model, splits, priors=priors[:1])
    assert "prior" not in partly["bits"]
    assert [len(level["bits_per_code"]) for level in partly["levels"]] == [3, 2]
    # the lower prior is another distribution when the codes above are others
    rows = codes.part("test")
    labels = codes.labels[rows]
    grids = tuple(grid[rows] for grid in codes.grids)
    other = ((grids[0] + torch.randint(1, 4, grids[0].shape)) % 4, grids[1])
    bits = [training.prior_bits(priors[1].prior, 1, each, labels) for each in (grids, other)]
    assert bits[0] != bits[1]

    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(generation, "sample", spied(generation.sample, calls))
        options = {"temperature": 0.5, "top_k": 3, "top_p": 0.9}
        training.sample_examples(model, priors, 1, **options)
    (top, _), (_, below) = calls
    assert below["context"][0] is top
    assert options.items() <= below.items()
    images, labels = training.sample_examples(model, priors, 2, classes=["3"], seed=1)
    assert images.shape == (2, 1, 8, 8)
    again, _ = training.sample_examples(model, priors, 2, classes=["3"], seed=1)
    assert torch.equal(images, again)
    with pytest.raises(ValueError, match=r"one for each of the 2 levels.*got those of \[1\]"):
        training.sample_examples(model, priors[1:], 1)
    with pytest.raises(
        ValueError, match="prior of level 1 must be given the 1 levels above, got 0"
    ):
        training.train_prior(codes, priors[0].prior.config, PRIOR_TRAINING, tmp_path / "x", level=1)
    wrong = dataclasses.replace(lower, above=dataclasses.replace(lower.above, codebook_sizes=(8,)))
    with pytest.raises(ValueError, match=r"codebook_size of level 0 must be 4, .* got 8"):
        training.train_prior(codes, wrong, PRIOR_TRAINING, tmp_path / "x", level=1)
    with pytest.raises(ValueError, match=r"level must be in \[0, 2\), got 2"):
        training.prior_config_for(codes, 2)
    others = priors[1]._replace(classes=tuple("abcdefghij"))
    with pytest.raises(ValueError, match="priors must have the same classes"):
        training.sample_examples(model, [priors[0], others], 1)
    for level in (0, 1):
        folder = runs.prior_folder(tmp_path / "run", level)
        assert training.resume_prior(folder, report=silent).level == level
    assert runs.prior_folders(tmp_path / "run") == [
        tmp_path / "run" / "prior",
        tmp_path / "run" / "prior-1",
    ]
    again = training.resume_model(tmp_path / "run", report=silent)
    assert model_name(again.config) == "vqvae2"


def test_bits_per_dim_of_the_whole_system(tmp_path):
    """Decoder and prior: what is reported is the sum of what each says of the same data."""
    values = {"likelihood": "softmax", "strides": (2, 2), "codebooks": 2, **SMALL}
    model = trained(tmp_path, DataConfig(), "vqvae", **values)
    assert model.config.levels == 17
    priors, codes, splits = priors_of(tmp_path, model, [("transformer", {})])
    # the two codes of a position are neighbours for the prior
    assert priors[0].shape == (2, 4)
    found = training.evaluate(model, splits, priors=priors)
    x = splits.test.batch(torch.arange(360))
    bits = model.bits_per_dim(x)
    per_dim = found["bits_per_dim"]
    assert per_dim["reconstruction"] == pytest.approx(float(bits.reconstruction.mean()), rel=1e-5)
    assert per_dim["nominal"] == pytest.approx(float(bits.total.mean()), rel=1e-5)
    (level,) = found["levels"]
    books = model.encode(x).unbind(-1)
    assert level["bits_per_code"]["order0"] == pytest.approx(
        sum(entropy_bits(book, 8) for book in books) / 2
    )
    assert level["codes_used"] == sum(len(book.unique()) for book in books)
    assert found["bits"]["order0"] == pytest.approx(8 * level["bits_per_code"]["order0"])
    rows = codes.part("test")
    nats = priors[0].prior.nll(codes.level(0)[rows], codes.labels[rows]).sum(dim=(1, 2))
    whole = model.bits_per_dim(x, nats.detach() / math.log(2)).total.mean()
    assert per_dim["prior"] == pytest.approx(float(whole), rel=1e-5)
    images, _ = training.sample_examples(model, priors, 1)
    assert images.shape == (10, 1, 8, 8)
    log = [line for line in training.read_metrics(tmp_path / "run") if "bits_per_dim" in line]
    assert [line["step"] for line in log] == [3, 6]


def test_moved_images_keep_to_the_levels_of_a_discrete_likelihood(tmp_path):
    moved = dataclasses.replace(TRAINING, rotate=8.0, shift=0.5)
    model = training.train_model(
        DataConfig(),
        lambda examples: config_for(examples, "vqvae", {"likelihood": "softmax", **SMALL}),
        moved,
        tmp_path / "run",
        report=silent,
    )
    splits = training.load_data(tmp_path / "run", model)
    codes = training.encode_splits(model, splits, copies=1, jitter=moved)
    assert len(codes) == 1797 + 1257
    pixels = splits.train.batch(torch.arange(256))
    snapped = jittered(pixels, moved, torch.Generator().manual_seed(0), peak=16)
    with torch.no_grad():
        assert torch.equal(codes.grids[0][1797 : 1797 + 256], model.encode(snapped))


def test_speech_and_who_speaks(tmp_path, speech, monkeypatch):
    """Encoder, codes and a WaveNet that is told the speaker; WAV files of what it says."""
    model = trained(tmp_path, speech, "wavenet_vqvae", **WAVENET)
    assert isinstance(model, WaveNetVQVAE)
    assert (model.config.num_speakers, model.config.levels) == (2, 256)
    small = {"channels": 8, "layers": 2}
    priors, _, splits = priors_of(tmp_path, model, [("wavenet", small)])
    found = training.evaluate(model, splits, priors=priors)
    assert found["mse"] is None
    assert found["bits_per_dim"]["reconstruction"] < found["bits_per_dim"]["nominal"]
    x = splits.test.batch(torch.arange(len(splits.test)))
    bits = model.bits_per_dim(x, splits.test.labels)
    for name, each in (("reconstruction", bits.reconstruction), ("nominal", bits.total)):
        assert found["bits_per_dim"][name] == pytest.approx(float(each.mean()), rel=1e-5)
    originals, kept = training.reconstruct_examples(model, splits.test, 2)
    assert originals.shape == kept.shape == (2, 1, 64)
    folder = tmp_path / "sound"
    media.save_reconstructions(originals, kept, "audio", folder, rate=splits.test.rate)
    with wave.open(str(folder / "0000-original.wav")) as file:
        assert (file.getframerate(), file.getnframes(), file.getsampwidth()) == (8000, 64, 2)
        samples = np.frombuffer(file.readframes(64), "<i2")
    expected = media.sound(originals)[0, 0].numpy() * 32767
    assert np.abs(samples - expected).max() <= 0.5
    assert (folder / "waves.png").is_file()
    sounds, labels = training.sample_examples(model, priors, 1)
    assert sounds.shape == (2, 1, 64)
    assert labels.tolist() == [0, 1]
    # of the same codes, what the seed changes is how they are spoken
    with monkeypatch.context() as patch:
        same = torch.zeros(2, 16, dtype=torch.int64)
        patch.setattr(generation, "sample", lambda *_, **__: same)
        spoken = [training.sample_examples(model, priors, 1, seed=seed)[0] for seed in (0, 1, 0)]
    assert not torch.equal(spoken[0], spoken[1])
    assert torch.equal(spoken[0], spoken[2])
    nobody = priors[0]._replace(classes=())
    with pytest.raises(ValueError, match=r"must have the 2 speakers of the model .* got 0"):
        training.sample_examples(model, [nobody], 1)
    wrong = dataclasses.replace(model.config, num_speakers=3)
    with pytest.raises(ValueError, match="num_speakers must be 2, that of the audio data, got 3"):
        training.train_model(speech, wrong, TRAINING, tmp_path / "x", report=silent)
    assert not (tmp_path / "x").exists()


def test_a_signal_of_four_channels(tmp_path):
    model = trained(tmp_path, DataConfig(source="eeg"), "vqvae", **SMALL)
    assert (model.config.spatial_dims, model.config.in_channels) == (1, 4)
    priors, _, splits = priors_of(tmp_path, model, [("wavenet", {"channels": 8, "layers": 2})])
    signals, labels = training.sample_examples(model, priors, 3)
    assert signals.shape == (3, 4, 32)
    assert labels is None
    # read again by its name, with the channels that it has
    assert training.load_data(tmp_path / "run", model, "eeg", report=silent).test.channels == 4
    media.save_examples(signals, splits.test.kind, tmp_path / "s.png", rate=splits.test.rate)
    with Image.open(tmp_path / "s.png") as picture:
        picture.load()


def test_video(tmp_path):
    source = DataConfig(source="clips", frames=4, image_size=16, channels=1)
    values = {"strides": (2, 2), "time_strides": (2, 1), **SMALL}
    model = trained(tmp_path, source, "vqvae", **values)
    small = {"channels": 8, "layers": 2}
    priors, codes, splits = priors_of(tmp_path, model, [("video_pixelcnn", small)])
    assert codes.grids[0].shape[1:] == (2, 4, 4)
    clips, _ = training.sample_examples(model, priors, 2)
    assert clips.shape == (2, 1, 4, 16, 16)
    media.save_examples(clips, "video", tmp_path / "s.gif", rate=8.0)
    # frames that do not differ are one in a GIF
    with Image.open(tmp_path / "s.gif") as moving:
        moving.load()
    originals, kept = training.reconstruct_examples(model, splits.test, 3)
    media.save_reconstructions(originals, kept, "video", tmp_path / "r.gif")
    with Image.open(tmp_path / "r.gif") as moving:
        assert moving.n_frames == 4


def test_what_does_not_fit_is_refused(tmp_path, speech):
    moved = dataclasses.replace(TRAINING, shift=1.0)
    with pytest.raises(ValueError, match="rotate, zoom and shift must be 0 for audio"):
        training.train_model(
            speech,
            lambda examples: config_for(examples, "wavenet_vqvae", WAVENET),
            moved,
            tmp_path / "x",
            report=silent,
        )
    with pytest.raises(ValueError, match=r"model must be one of .* did you mean 'vqvae2'"):
        config_for(data.digits().train, "vqva2", {})
    with pytest.raises(ValueError, match=r"did you mean 'codebook_size'"):
        config_for(data.digits().train, "vqvae", {"codebok_size": 3})
    (tmp_path / "config.json").write_text('{"format_version": 1, "kind": "GAN", "config": {}}')
    with pytest.raises(ValueError, match=r"kind in .* must be one of VQVAE, VQVAE2.* got 'GAN'"):
        load_pretrained(tmp_path)
    assert not (tmp_path / "x").exists()


def test_sounds_without_a_rate_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rate must be a whole number .* got None"):
        media.save_sounds(torch.zeros(1, 1, 8), ["a"], tmp_path, rate=None)
    with pytest.raises(ValueError, match="sounds must have 1 channel, got 2"):
        media.save_sounds(torch.zeros(1, 2, 8), ["a"], tmp_path, rate=8000)
    assert isinstance(data.digits(), Splits)
