# SPDX-License-Identifier: Apache-2.0
"""The data that come with libraries: no test value is ever trained on."""

import importlib

import numpy as np
import pytest
import torch

from fastvq import data
from fastvq.data.signals import _windows

# the functions of the same names hide them
photos_module, clips_module = map(
    importlib.import_module, ("fastvq.data.photos", "fastvq.data.clips")
)


def everything(part):
    return part.read(torch.arange(len(part)))


def numbered(width, height=96, first=0):
    """A picture of which every pixel is another, spread over three bytes."""
    number = first + np.arange(height * width)
    return (
        np.stack([number >> shift & 255 for shift in (0, 8, 16)])
        .astype(np.uint8)
        .reshape(3, height, width)
    )


def pixel_numbers(part):
    """Which pixels of `numbered` pictures a set shows."""
    tiles = everything(part).long().movedim(1, 0).flatten(1)
    return set((tiles[0] + (tiles[1] << 8) + (tiles[2] << 16)).tolist())


@pytest.fixture
def pictures(monkeypatch):
    """Two small pictures in the place of the photos, 7 and 4 columns of 32 pixels wide."""
    small = numbered(240), numbered(130, first=96 * 240)
    for module in (photos_module, clips_module):
        monkeypatch.setattr(module, "originals", lambda channels: small)
    return small


def test_tiles_of_the_photos():
    splits = data.photos()
    # the test tiles and the training columns in tiles are those of the published baselines
    assert [len(part) for part in splits] == [17287, 91, 445]
    assert (splits.train.kind, splits.train.channels, splits.train.size) == ("image", 3, (32, 32))
    assert splits.train.classes == ()
    china = photos_module.originals(3)[0]
    assert np.array_equal(splits.train.read(torch.tensor([54]))[0], china[:, 8:40, 8:40])
    assert np.array_equal(splits.validation.read(torch.tensor([1]))[0], china[:, 32:64, 448:480])
    assert np.array_equal(splits.test.read(torch.tensor([6]))[0], china[:, 32:64, 512:544])


def test_no_pixel_is_in_two_parts(pictures):
    splits = data.photos()
    seen = [pixel_numbers(part) for part in splits]
    assert len(set.union(*seen)) == sum(map(len, seen))
    # columns for training, validation and testing: 4, 1, 2 and 2, 1, 1; three rows of each
    assert [len(numbers) // 1024 for numbers in seen] == [18, 6, 9]
    assert [len(part) for part in splits] == [13 * 9 + 5 * 9, 6, 9]
    train = everything(splits.train)
    assert len(train.flatten(1).unique(dim=0)) == len(train)


def test_grey_tiles_of_another_size():
    splits = data.photos(image_size=64, channels=1)
    assert (splits.test.channels, splits.test.size) == (1, (64, 64))
    for size in (7, 151):
        with pytest.raises(ValueError, match=r"image_size must be in \[8, 151\)"):
            data.photos(image_size=size)
    assert min(map(len, data.photos(image_size=150))) > 0


def test_clips_move_and_share_no_pixel_with_another_part(pictures, monkeypatch):
    # without resampling, so that pixels keep their numbers
    monkeypatch.setattr("PIL.Image.Image.resize", whole_pixels)
    monkeypatch.setattr(
        clips_module, "_gif", lambda *_: torch.empty(0, 3, 8, 12, 12, dtype=torch.uint8)
    )
    splits = data.clips(image_size=12)
    first = set(range(96 * 240))
    seen = [pixel_numbers(part.subset(torch.arange(100))) for part in splits]
    assert len(set.union(*seen)) == sum(map(len, seen))
    assert min(map(len, seen)) > 1000
    # nor does the camera repeat its ways: another order of pictures in each part
    orders = {
        tuple(len(pixel_numbers(part.subset(torch.tensor([i]))) & first) == 0 for i in range(40))
        for part in splits
    }
    assert len(orders) == 3


def whole_pixels(image, size, resample, box):
    """The pixels that a window touches, nearest neighbours."""
    left, top, right, bottom = box
    across = (left + (np.arange(size[0]) + 0.5) * (right - left) / size[0]).astype(int)
    down = (top + (np.arange(size[1]) + 0.5) * (bottom - top) / size[1]).astype(int)
    return np.asarray(image)[down][:, across]


def test_clips_are_the_same_every_time_and_end_with_the_gif():
    splits = data.clips(frames=8, image_size=16)
    assert [len(part) for part in splits] == [2048 + 3, 128, 256]
    assert (splits.train.kind, splits.train.size) == ("video", (8, 16, 16))
    at = torch.tensor([2049, 5, 2047, 5, 2048])
    clips = splits.train.read(at)
    assert torch.equal(clips[1], clips[3])
    assert torch.equal(clips, data.clips(frames=8, image_size=16).train.read(at))
    # something moves in each
    assert (clips[:, :, 1:] != clips[:, :, :-1]).flatten(1).any(1).all()
    assert torch.equal(clips[4], splits.train.read(torch.tensor([2048]))[0])
    assert data.clips(frames=25, image_size=16).train.labels.shape == (2048,)
    grey = data.clips(frames=2, image_size=8, channels=1)
    assert grey.test.read(torch.arange(2)).shape == (2, 1, 2, 8, 8)
    with pytest.raises(ValueError, match=r"image_size must be in \[1, 67\)"):
        data.clips(image_size=67)


def test_windows_of_the_eeg():
    splits = data.eeg()
    assert [len(part) for part in splits] == [133, 2, 5]
    assert (splits.train.kind, splits.train.channels, splits.train.size) == ("signal", 4, (32,))
    assert splits.train.rate == 80.0
    train, validation, test = map(everything, splits)
    # training windows overlap by all but four samples
    assert torch.equal(train[1, :, :28], train[0, :, 4:])
    # each electrode fills the levels in the first 80 %
    known = torch.cat([train, validation])
    assert known.amin((0, 2)).tolist() == [0] * 4
    assert known.amax((0, 2)).tolist() == [255] * 4
    assert len(test.unique()) > 50


def test_windows_in_the_order_of_time_by_hand():
    # the last value lies beyond what the first 80 % reach
    signal = np.arange(100.0)[None]
    splits = _windows(signal, 5, rate=None)
    assert [len(part) for part in splits] == [66, 2, 4]
    levels = np.rint(np.minimum(signal / 79, 1) * 255).astype(int)[0].tolist()
    assert everything(splits.train)[[0, 1, 65], 0].tolist() == [
        levels[i : i + 5] for i in (0, 1, 65)
    ]
    assert everything(splits.validation).flatten().tolist() == levels[70:80]
    assert everything(splits.test).flatten().tolist() == [255] * 20
    with pytest.raises(ValueError, match=r"length must be at most 10, .* got 11"):
        _windows(signal, 11, rate=None)


def test_the_ecg_is_read_where_pywavelets_is(tmp_path, monkeypatch):
    (tmp_path / "pywt" / "data").mkdir(parents=True)
    (tmp_path / "pywt" / "__init__.py").touch()
    np.savez(tmp_path / "pywt" / "data" / "ecg.npz", data=np.arange(1024))
    monkeypatch.syspath_prepend(tmp_path)
    splits = data.ecg()
    assert [len(part) for part in splits] == [172, 3, 6]
    assert (splits.train.channels, splits.train.rate) == (1, None)
    assert everything(splits.validation)[0, 0, 0] == round(717 / 818 * 255)


@pytest.mark.parametrize("read", [data.photos, data.clips, data.ecg, data.eeg])
def test_an_absent_library_is_named(read, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    photos_module.originals.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="No module named"):
        read()
