# SPDX-License-Identifier: Apache-2.0
"""What a source is taken for. The readers have tests of their own."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from fastvq import data


def write_images(path, count=3):
    path.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (8, 6), (i, 0, 0)).save(path / f"{i}.png")


def write_sound(path):
    path.mkdir(parents=True, exist_ok=True)
    head = struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", 40) + bytes(40)
    (path / "x.WAV").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


def write_idx(path):
    path.mkdir(parents=True, exist_ok=True)
    for part in ("train", "t10k"):
        images = b"\0\0\x08\x03" + struct.pack(">III", 3, 2, 2) + bytes(12)
        labels = b"\0\0\x08\x01" + struct.pack(">I", 3) + bytes(3)
        (path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def write_cifar(path):
    path.mkdir(parents=True, exist_ok=True)
    for name in ("train.bin", "test.bin"):
        (path / name).write_bytes(b"\x01\x00" + bytes(3072))
    (path / "fine_label_names.txt").write_text("a\n")
    (path / "coarse_label_names.txt").write_text("a\nb\n")


def write_array(path):
    np.save(path, np.zeros((9, 5, 6), np.uint8))


@pytest.mark.parametrize(
    ("write", "options", "what", "kind", "size"),
    [
        (write_images, {}, "images", "image", (6, 8)),
        (write_images, {"image_size": 4, "channels": 1}, "images", "image", (4, 4)),
        (write_images, {"frames": 2}, "videos", "video", (2, 6, 8)),
        (write_sound, {"length": 5, "sample_rate": 4000}, "WAV files", "audio", (5,)),
        (write_idx, {}, "IDX files", "image", (2, 2)),
        (write_cifar, {"coarse": True}, "CIFAR", "image", (32, 32)),
    ],
)
def test_a_folder_is_known_by_what_is_in_it(tmp_path, write, options, what, kind, size):
    write(tmp_path / "x" if what == "videos" else tmp_path)
    lines = []
    splits = data.load(data.DataConfig(source=str(tmp_path), **options), report=lines.append)
    assert lines == [f"{tmp_path} is read as {what}"]
    assert (splits.train.kind, splits.train.size) == (kind, size)


@pytest.mark.parametrize(
    ("source", "options", "kind", "size"),
    [
        ("digits", {"channels": 1}, "image", (8, 8)),
        ("photos", {"image_size": 64, "channels": 1}, "image", (64, 64)),
        ("eeg", {"length": 16}, "signal", (16,)),
        ("clips", {"frames": 3, "image_size": 8}, "video", (3, 8, 8)),
    ],
)
def test_names(source, options, kind, size):
    splits = data.load(data.DataConfig(source=source, **options), report=pytest.fail)
    assert (splits.train.kind, splits.train.size) == (kind, size)


def test_an_array_file_and_its_layout(tmp_path):
    write_array(tmp_path / "x.npy")
    config = data.DataConfig(source=str(tmp_path / "x.npy"), layout="NCL")
    assert data.load(config, report=[].append).train.channels == 5


def test_an_mnist_like_set_is_named_at_the_end_of_its_folder(tmp_path):
    write_idx(tmp_path)
    for file in list(tmp_path.iterdir()):
        file.rename(tmp_path / f"emnist-letters-{file.name}")
    config = data.DataConfig(source=str(tmp_path / "emnist-letters"))
    assert len(data.load(config, report=[].append).test) == 3


def test_padding_by_axis_is_announced():
    config = data.DataConfig(source="clips", frames=3, image_size=10)
    lines = []
    splits = data.load(config, multiple=(2, 4, 4), report=lines.append)
    assert lines == ["clips of 3x10x10 are padded to 4x12x12, a multiple of 2x4x4"]
    assert splits.test.batch(torch.arange(1)).shape == (1, 3, 4, 12, 12)


def test_an_unknown_source_lists_the_names(tmp_path):
    for source in ("digts", str(tmp_path / "absent")):
        with pytest.raises(
            FileNotFoundError,
            match=f"{source}: no such folder or file, and no data set of that name: "
            "digits, photos, eeg, ecg, clips, hf:NAME",
        ):
            data.load(data.DataConfig(source=source))


def test_a_file_of_another_sort(tmp_path):
    (tmp_path / "x.zip").touch()
    with pytest.raises(ValueError, match=r"x.zip: a file must be .npy or .npz, got .zip"):
        data.load(data.DataConfig(source=str(tmp_path / "x.zip")))


def test_sound_and_images_in_one_folder(tmp_path):
    write_images(tmp_path / "a")
    write_sound(tmp_path / "b")
    with pytest.raises(ValueError, match=r"must hold images or WAV files, got both \(.png, .wav\)"):
        data.load(data.DataConfig(source=str(tmp_path)))


def test_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no image in this folder"):
        data.load(data.DataConfig(source=str(tmp_path)), report=[].append)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("digits", {"frames": 4}, r"frames is not used by digits, .* \(no field may be set\)"),
        ("eeg", {"sample_rate": 4}, r"sample_rate is not used by eeg, .* \(length may be set\)"),
        ("digits", {"unreadable": "skip"}, "unreadable is not used by digits"),
        ("images", {"length": 4}, "length is not used by .*, which is read as images"),
        ("sound", {"image_size": 4}, "image_size is not used by .*, which is read as WAV files"),
        ("sound", {}, "length must be given for the WAV files of"),
        ("eeg", {"channels": 1}, "channels of an EEG cannot be chosen: must be 4, got 1"),
        ("sound", {"length": 4, "channels": 3}, None),
    ],
)
def test_fields_that_a_source_does_not_use_or_needs(tmp_path, source, options, message):
    if source in ("images", "sound"):
        {"images": write_images, "sound": write_sound}[source](tmp_path)
        source = str(tmp_path)
    config = data.DataConfig(source=source, **options)
    if message is None:
        assert data.load(config, report=[].append).train.channels == 1
        return
    with pytest.raises(ValueError, match=message):
        data.load(config, report=[].append)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tail": "cut"}, "tail must be one of pad, drop, got 'cut'"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"sample_rate": -1}, "sample_rate must be at least 1, got -1"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"frame_stride": 0}, "frame_stride must be at least 1, got 0"),
        ({"layout": "NCWH"}, "layout must be one of .*; did you mean 'NCHW'"),
    ],
)
def test_refused_configs(options, message):
    with pytest.raises(ValueError, match=message):
        data.DataConfig(**options)
