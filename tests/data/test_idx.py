# SPDX-License-Identifier: Apache-2.0
"""MNIST's format, from files written byte by byte."""

import gzip
import struct

import numpy as np
import pytest
import torch

from fastvq import data

TRAIN, TEST = 20, 4
COUNT = {"train": TRAIN, "t10k": TEST, "test": TEST}


def images(count, height=3, width=5, start=0):
    return (np.arange(count * height * width) + start).astype(np.uint8).reshape(-1, height, width)


def idx(values):
    """IDX: two zero bytes, 8 for unsigned bytes, the number of axes, big-endian sizes, values."""
    head = b"\x00\x00\x08" + bytes([values.ndim])
    return head + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write(folder, name="{part}-{what}-idx{axes}-ubyte", pack=bytes, parts=("train", "t10k")):
    folder.mkdir(exist_ok=True)
    for part in parts:
        pixels = images(COUNT[part], start=7 * len(part))
        labels = (np.arange(COUNT[part]) % 10).astype(np.uint8)
        for what, axes, values in (("images", 3, pixels), ("labels", 1, labels)):
            file = folder / name.format(part=part, what=what, axes=axes)
            file.write_bytes(pack(idx(values)))
    return folder


def everything(part):
    return part.read(torch.arange(len(part)))


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("{part}-{what}-idx{axes}-ubyte", bytes),
        ("{part}-{what}.idx{axes}-ubyte", bytes),
        ("{part}-{what}-idx{axes}-ubyte.gz", gzip.compress),
    ],
)
def test_bytes_arrive_as_they_are(tmp_path, name, pack):
    splits = data.mnist(write(tmp_path, name, pack))
    assert [len(part) for part in splits] == [18, 2, 4]
    assert torch.equal(everything(splits.test)[:, 0], torch.from_numpy(images(TEST, start=28)))
    assert splits.test.labels.tolist() == [0, 1, 2, 3]
    assert splits.train.classes == tuple("0123456789")
    assert (splits.train.kind, splits.train.size, splits.train.peak) == ("image", (3, 5), 255)
    # training and validation are the training file, and images keep their labels
    pixels = torch.cat([everything(part) for part in splits[:2]])[:, 0]
    labels = torch.cat([part.labels for part in splits[:2]])
    first = {
        tuple(image.flatten().tolist()): int(n) for image, n in zip(pixels, labels, strict=True)
    }
    expected = images(TRAIN, start=35).reshape(TRAIN, -1)
    assert first == {tuple(image.tolist()): i % 10 for i, image in enumerate(expected)}


def test_emnist_is_turned_upright_and_named_where_there_are_several(tmp_path):
    for name in ("letters", "digits"):
        pattern = f"emnist-{name}-{{part}}-{{what}}-idx{{axes}}-ubyte"
        write(tmp_path, pattern, parts=("train", "test"))
    with pytest.raises(ValueError, match="holds the sets emnist-digits, emnist-letters: name one"):
        data.mnist(tmp_path)
    splits = data.mnist(tmp_path / "emnist-letters")
    expected = torch.from_numpy(images(TEST, start=28)).transpose(1, 2)
    assert torch.equal(everything(splits.test)[:, 0], expected)
    assert splits.test.size == (5, 3)


def test_labels_that_do_not_begin_at_0(tmp_path):
    write(tmp_path)
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        labels = (1 + np.arange(count) % 26).astype(np.uint8)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    splits = data.mnist(tmp_path)
    assert splits.test.labels.tolist() == [0, 1, 2, 3]
    assert splits.test.classes[:2] == ("1", "2")


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, idx(images(TRAIN))[:-1], "must be 316 bytes to hold .20, 3, 5. of them, got 315"),
        (IMAGES, idx(images(TRAIN)) + b"x", "must be 316 bytes .* got 317"),
        (IMAGES, idx(images(TRAIN))[:9], "must have a header of 16 bytes, got 9"),
        (IMAGES, b"", "must begin with the magic number 0x803 of IDX images, got an empty file"),
        (IMAGES, idx(images(TRAIN)[0, 0]), "magic number 0x803 of IDX images, got 00000801"),
        (LABELS, b"\x00\x00\x0d\x01" + bytes(100), "magic number 0x801 .* got 00000d01"),
        (LABELS, idx(np.zeros(19, np.uint8)), "must hold 20 labels, one for each image"),
        (IMAGES, idx(images(TRAIN, 3, 4)), r"t10k.*must be of \[3, 4\], as those for training"),
        (IMAGES, gzip.compress(idx(images(TRAIN)), mtime=0)[:40], "not a whole gzip file"),
    ],
)
def test_refused_files(tmp_path, name, content, message):
    write(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        data.mnist(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no IDX files such as"):
        data.mnist(tmp_path)
    write(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels is not among t10k-images-idx3-ubyte"):
        data.mnist(tmp_path)
