# SPDX-License-Identifier: Apache-2.0
import copy
import dataclasses

import numpy as np
import pytest
import torch

from fastvq import _pretrained, data, training
from fastvq.models import VQVAE
from fastvq.priors import GatedPixelCNNConfig
from fastvq.training import Codes

from .conftest import MODEL, TRAINING, silent


def test_encoded_saved_loaded_and_decoded_everything_is_the_same(tmp_path, run, model, codes):
    codes.save(tmp_path / "codes.npz")
    loaded = Codes.load(tmp_path / "codes.npz")
    assert torch.equal(loaded.codes, codes.codes)
    assert torch.equal(loaded.labels, codes.labels)
    assert torch.equal(loaded.split, codes.split)
    assert loaded.classes == codes.classes == tuple("0123456789")
    assert (loaded.codebook_size, loaded.image_size, loaded.grid) == (16, (8, 8), (4, 4))
    again = training.load_vqvae(run)
    images = training.decode_codes(again, loaded)
    assert torch.equal(images, training.decode_codes(model, codes))
    originals = data.digits().part("all").batch(torch.arange(1797))
    with torch.no_grad():
        direct = torch.cat([model.reconstruct(part) for part in originals.split(256)]).clamp(0, 1)
    # batches of other sizes may differ in the last bits of a convolution, the codes may not
    torch.testing.assert_close(images, direct, rtol=0, atol=1e-5)
    assert torch.equal(training.decode_codes(again, loaded), images)


def test_the_splits_keep_their_images(codes):
    for name, count in (("train", 1257), ("validation", 180), ("test", 360)):
        grids, labels = codes.part(name)
        assert len(grids) == len(labels) == count
        assert torch.equal(labels, getattr(data.digits(), name).labels)
    with pytest.raises(ValueError, match="did you mean 'train'"):
        codes.part("trian")


def test_copies_are_training_images_moved_at_random_by_a_seed(run, model, codes):
    splits, jitter = training.load_data(run, model), training.Jitter(shift=1.0)
    more = training.encode_splits(model, splits, copies=2, jitter=jitter, seed=1)
    assert torch.equal(more.codes[:1797], codes.codes)
    assert len(more.codes) == 1797 + 2 * 1257
    assert more.split[1797:].max() == 0
    assert torch.equal(more.labels[1797:], splits.train.labels.repeat(2))
    first, second = more.codes[1797:].split(1257)
    assert not torch.equal(first, codes.codes[:1257])
    assert not torch.equal(first, second)
    again = training.encode_splits(model, splits, copies=2, jitter=jitter, seed=1)
    assert torch.equal(again.codes, more.codes)
    with pytest.raises(ValueError, match="copies must be 0 where no jitter moves them, got 3"):
        training.encode_splits(model, splits, copies=3, jitter=training.Jitter())


def test_padding_is_cut_off_again(tmp_path):
    strided = dataclasses.replace(MODEL, strides=(3,))
    model = training.train_vqvae(
        data.DataConfig(), strided, TRAINING, tmp_path / "x", report=silent
    )
    codes = training.encode_splits(model, training.load_data(tmp_path / "x", model, report=silent))
    assert codes.grid == (3, 3)
    assert training.decode_codes(model, codes).shape == (1797, 1, 8, 8)
    settings = training.PriorTraining(steps=2)
    small = GatedPixelCNNConfig(codebook_size=16, channels=8, layers=1)
    prior = training.train_prior(codes, small, settings, tmp_path / "p", report=silent)
    assert training.sample_images(model, prior, 2)[0].shape == (2, 1, 8, 8)


def test_the_codes_of_another_model_are_refused(model, codes):
    other = VQVAE(model.config)
    with pytest.raises(ValueError, match="codes must be of the model with fingerprint"):
        codes.check_made_by(other)
    with pytest.raises(ValueError, match="codes must be of the model with fingerprint"):
        training.decode_codes(other, codes)
    codes.check_made_by(model)


def test_the_fingerprint_sees_every_bit_and_nothing_else(model):
    twin = copy.deepcopy(model).train()
    assert _pretrained.fingerprint(twin) == _pretrained.fingerprint(model)
    bias = twin.decoder.layers[0].bias
    with torch.no_grad():
        bias[0] = torch.nextafter(bias[0], torch.tensor(10.0))
    assert _pretrained.fingerprint(twin) != _pretrained.fingerprint(model)


def write(path, **changes):
    arrays = {
        "format_version": np.asarray(1),
        "codes": np.zeros((2, 3, 3), np.int32),
        "labels": np.array([-1, -1]),
        "split": np.array(["train", "test"]),
        "classes": np.array([], np.str_),
        "codebook_size": np.asarray(4),
        "image_size": np.array([6, 6]),
        "fingerprint": np.asarray("0" * 64),
    }
    arrays |= changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": np.full((2, 3, 3), 4)}, r"codes must be in \[0, 4\), got 4"),
        ({"codes": np.full((2, 3, 3), -1)}, r"codes must be in \[0, 4\), got -1"),
        ({"codes": np.zeros((2, 3))}, r"codes must be \[N, h, w\], got \[2, 3\]"),
        ({"codes": np.zeros((0, 3, 3))}, r"codes must be \[N, h, w\], got \[0, 3, 3\]"),
        ({"labels": np.array([0])}, r"labels must be \[2\], one per image, got \[1\]"),
        ({"labels": np.array([0, 1])}, r"labels must be in \[-1, 0\), got 1"),
        ({"classes": np.array(["a"])}, r"labels must be in \[0, 1\), got -1"),
        ({"split": np.array(["train", "tests"])}, "not a file of codes: 'tests'"),
        ({"format_version": np.asarray(2)}, "format_version must be 1, got 2"),
        ({"fingerprint": None}, "not a file of codes: it lacks fingerprint"),
        ({"codes": np.array([{}, {}])}, r"not a whole \.npz file of codes"),
    ],
)
def test_refused_files(tmp_path, changes, message):
    write(tmp_path / "x.npz", **changes)
    with pytest.raises(ValueError, match=message):
        Codes.load(tmp_path / "x.npz")


def test_refused_bytes(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        Codes.load(tmp_path / "x.npz")
    write(tmp_path / "x.npz")
    Codes.load(tmp_path / "x.npz")
    for content in (b"", b"PK", (tmp_path / "x.npz").read_bytes()[:-30], b"\x80\x04N."):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"not a whole \.npz file of codes"):
            Codes.load(tmp_path / "x.npz")
