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
    assert torch.equal(loaded.grids[0], codes.grids[0])
    assert torch.equal(loaded.labels, codes.labels)
    assert torch.equal(loaded.split, codes.split)
    assert loaded.classes == codes.classes == tuple("0123456789")
    assert (loaded.codebook_sizes, loaded.size, loaded.grids[0].shape[1:]) == (
        (16,),
        (8, 8),
        (4, 4),
    )
    again = training.load_model(run)
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
        rows = codes.part(name)
        assert len(rows) == count
        assert torch.equal(codes.labels[rows], getattr(data.digits(), name).labels)
    with pytest.raises(ValueError, match="did you mean 'train'"):
        codes.part("trian")


def test_copies_are_training_images_moved_at_random_by_a_seed(run, model, codes):
    splits, jitter = training.load_data(run, model), training.Jitter(shift=1.0)
    more = training.encode_splits(model, splits, copies=2, jitter=jitter, seed=1)
    assert torch.equal(more.grids[0][:1797], codes.grids[0])
    assert len(more) == 1797 + 2 * 1257
    assert more.split[1797:].max() == 0
    assert torch.equal(more.labels[1797:], splits.train.labels.repeat(2))
    first, second = more.grids[0][1797:].split(1257)
    assert not torch.equal(first, codes.grids[0][:1257])
    assert not torch.equal(first, second)
    again = training.encode_splits(model, splits, copies=2, jitter=jitter, seed=1)
    assert torch.equal(again.grids[0], more.grids[0])
    with pytest.raises(ValueError, match="copies must be 0 where no jitter moves them, got 3"):
        training.encode_splits(model, splits, copies=3, jitter=training.Jitter())


def test_padding_is_cut_off_again(tmp_path):
    strided = dataclasses.replace(MODEL, strides=(3,))
    model = training.train_model(
        data.DataConfig(), strided, TRAINING, tmp_path / "x", report=silent
    )
    codes = training.encode_splits(model, training.load_data(tmp_path / "x", model, report=silent))
    assert codes.grids[0].shape == (1797, 3, 3)
    assert training.decode_codes(model, codes).shape == (1797, 1, 8, 8)
    settings = training.PriorTraining(steps=2)
    small = GatedPixelCNNConfig(codebook_size=16, channels=8, layers=1)
    prior = training.train_prior(codes, small, settings, tmp_path / "p", report=silent)
    assert training.sample_examples(model, [prior], 2)[0].shape == (2, 1, 8, 8)


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
        "format_version": np.asarray(3),
        "codes_0": np.zeros((2, 3, 3), np.int32),
        "labels": np.array([-1, -1]),
        "split": np.array(["train", "test"]),
        "classes": np.array([], np.str_),
        "codebook_sizes": np.array([4]),
        "codebooks": np.asarray(1),
        "kind": np.asarray("image"),
        "size": np.array([6, 6]),
        "rate": np.asarray(np.nan),
        "fingerprint": np.asarray("0" * 64),
    }
    arrays |= changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes_0": np.full((2, 3, 3), 4)}, r"codes of level 0 must be in \[0, 4\), got 4"),
        ({"codes_0": np.full((2, 3, 3), -1)}, r"codes of level 0 must be in \[0, 4\), got -1"),
        ({"codes_0": np.zeros((2, 3))}, r"codes of level 0 must be \[N, .*2 axes.*got \[2, 3\]"),
        ({"codes_0": np.zeros((0, 3, 3))}, r"N = 2, at least 1, got \[0, 3, 3\]"),
        (
            {"codes_1": np.zeros((3, 3, 3)), "codebook_sizes": np.array([4, 2])},
            r"codes of level 1 must be .* N = 2.*got \[3, 3, 3\]",
        ),
        # each level has a size of its own
        (
            {"codes_1": np.full((2, 6, 6), 3), "codebook_sizes": np.array([4, 2])},
            r"codes of level 1 must be in \[0, 2\), got 3",
        ),
        (
            {"codes_1": np.zeros((2, 6, 6))},
            "codebook_sizes must have 2 levels as grids has, got 1",
        ),
        (
            {"labels": np.array([[0, 0]])},
            r"labels and split must be \[N\].* got \[1, 2\] and \[2\]",
        ),
        ({"labels": np.array([0, 1])}, r"labels must be in \[-1, 0\), got 1"),
        ({"classes": np.array(["a"])}, r"labels must be in \[0, 1\), got -1"),
        ({"split": np.array(["train", "tests"])}, "not a file of codes: 'tests'"),
        ({"format_version": np.asarray(4)}, "format_version must be 3, got 4"),
        (
            {"format_version": np.asarray(2), "codebook_sizes": None},
            "format_version must be 3, got 2: encode the data again with this version",
        ),
        ({"codebook_sizes": np.asarray(4)}, r"must be integers \[levels\], got int64 \[\]"),
        ({"codebook_sizes": np.array([4.0])}, r"integers \[levels\], got float64 \[1\]"),
        ({"fingerprint": None}, "not a file of codes: it lacks fingerprint"),
        ({"codes_0": np.array([{}, {}])}, r"not a whole \.npz file of codes"),
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
