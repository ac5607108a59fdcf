# SPDX-License-Identifier: Apache-2.0
"""CIFAR's batches as Python 2 pickled them, opcode by opcode, and its binary records."""

import io
import os
import pickle
import struct
import subprocess

import numpy as np
import pytest
import torch

from fastvq import data

BATCH = 4
TRAIN10 = [f"data_batch_{i}" for i in range(1, 6)]


def rows(seed, count=BATCH):
    return np.random.RandomState(seed).randint(0, 256, (count, 3072)).astype(np.uint8)


def python2(value):
    """A pickle of protocol 2 as Python 2 with numpy wrote it: its text is SHORT_BINSTRING."""

    def text(content):
        return b"U" + bytes([len(content)]) + content

    def put(value):
        if isinstance(value, bytes):
            return text(value)
        if isinstance(value, int):
            return b"K" + bytes([value])
        if isinstance(value, list):
            return b"](" + b"".join(map(put, value)) + b"e"
        if isinstance(value, dict):
            return b"}(" + b"".join(put(k) + put(v) for k, v in value.items()) + b"u"
        dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
        dtype += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        shape = b"".join(b"M" + struct.pack("<H", n) for n in value.shape) + b"\x86"
        array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b")
        array += b"\x87R(K\x01" + shape + dtype + b"\x89"
        content = value.tobytes()
        return array + b"T" + struct.pack("<I", len(content)) + content + b"tb"

    return b"\x80\x02" + put(value) + b"."


def python3(value):
    """What `pickle` writes today for keys of text."""
    return pickle.dumps({key.decode(): item for key, item in value.items()}, protocol=2)


def write_python10(folder, dump=python2):
    for seed, name in enumerate([*TRAIN10, "test_batch"]):
        labels = [(seed + i) % 10 for i in range(BATCH)]
        batch = {b"batch_label": b"x", b"labels": labels, b"data": rows(seed), b"filenames": [b"a"]}
        (folder / name).write_bytes(dump(batch))
    names = [b"airplane", *(b"c%d" % i for i in range(9))]
    (folder / "batches.meta").write_bytes(dump({b"num_cases_per_batch": 4, b"label_names": names}))


def everything(part):
    return part.read(torch.arange(len(part)))


@pytest.mark.parametrize("dump", [python2, python3])
def test_python_batches_of_cifar_10(tmp_path, dump):
    write_python10(tmp_path, dump)
    splits = data.cifar(tmp_path)
    assert [len(part) for part in splits] == [18, 2, 4]
    assert np.array_equal(everything(splits.test).numpy().reshape(4, -1), rows(5))
    assert splits.test.labels.tolist() == [5, 6, 7, 8]
    assert splits.train.classes[:2] == ("airplane", "c0")
    assert (splits.train.channels, splits.train.size) == (3, (32, 32))
    # all training batches, each image with its label
    found = {
        bytes(image): int(label)
        for part in splits[:2]
        for image, label in zip(everything(part).numpy(), part.labels, strict=True)
    }
    assert found == {
        bytes(row): (seed + i) % 10 for seed in range(5) for i, row in enumerate(rows(seed))
    }


@pytest.mark.parametrize(("coarse", "test_labels"), [(False, [9, 8]), (True, [1, 0])])
def test_python_batches_of_cifar_100(tmp_path, coarse, test_labels):
    for name, count in (("train", 9), ("test", 2)):
        labels = {b"fine_labels": [9, 8, 7] * 3, b"coarse_labels": [1, 0, 0] * 3}
        cut = {key: value[:count] for key, value in labels.items()}
        (tmp_path / name).write_bytes(python2({**cut, b"data": rows(count, count)}))
    names = {b"fine_label_names": [b"f"] * 10, b"coarse_label_names": [b"c"] * 2}
    (tmp_path / "meta").write_bytes(python2(names))
    splits = data.cifar(tmp_path, coarse=coarse)
    assert [len(part) for part in splits] == [8, 1, 2]
    assert splits.test.labels.tolist() == test_labels
    assert splits.test.classes == (("c",) * 2 if coarse else ("f",) * 10)
    assert np.array_equal(everything(splits.test).numpy().reshape(2, -1), rows(2, 2))


def test_binary_records_of_cifar_10(tmp_path):
    for seed, name in enumerate([*TRAIN10, "test_batch"]):
        records = b"".join(bytes([seed]) + row.tobytes() for row in rows(seed))
        (tmp_path / f"{name}.bin").write_bytes(records)
    (tmp_path / "batches.meta.txt").write_text("a\nb\nc\nd\ne\nf\n\n")
    splits = data.cifar(tmp_path)
    assert [len(part) for part in splits] == [18, 2, 4]
    assert np.array_equal(everything(splits.test).numpy().reshape(4, -1), rows(5))
    assert splits.test.labels.tolist() == [5] * 4
    assert splits.test.classes == tuple("abcdef")


@pytest.mark.parametrize(("coarse", "label"), [(False, 3), (True, 1)])
def test_binary_records_of_cifar_100(tmp_path, coarse, label):
    for name, count in (("train", 9), ("test", 2)):
        records = b"".join(b"\x01\x03" + row.tobytes() for row in rows(count, count))
        (tmp_path / f"{name}.bin").write_bytes(records)
    (tmp_path / "fine_label_names.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / "coarse_label_names.txt").write_text("x\ny\n")
    splits = data.cifar(tmp_path, coarse=coarse)
    assert splits.test.labels.tolist() == [label] * 2
    assert splits.test.classes == (("x", "y") if coarse else tuple("abcd"))
    assert np.array_equal(everything(splits.test).numpy().reshape(2, -1), rows(2, 2))


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def pickled(value, protocol=2):
    file = io.BytesIO()
    pickle.Pickler(file, protocol).dump(value)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickled(Call(os.system, "touch {canary}")), "(posix|nt).system is refused"),
        (pickled(Call(subprocess.getoutput, "touch x"), 4), "subprocess.getoutput is refused"),
        (pickled(Call(eval, "1")), "eval is refused"),
        (pickled(Call(getattr, 1, "real")), "getattr is refused"),
        (pickled(Call(np.load, "x")), "numpy.load is refused"),
        (pickled({"data": np.zeros(2)}), "an array of 'f8' is refused, u1 was expected"),
        (pickled({"data": np.array([None])}), "an array of 'O8' is refused"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "'rot13'"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nK\x01\x85R.", "type 1 is refused"),
        (b"not a pickle", "not a whole pickle"),
        (b"", "not a whole pickle"),
        (python2({b"labels": [1], b"data": rows(0, 1)})[:-40], "not a whole pickle"),
        (python2({b"labels": [1]}), "must be a CIFAR batch with 'data'"),
        (python2([1, 2]), "must be a CIFAR batch with 'data'"),
        (python2({b"labels": [b"a"], b"data": rows(0, 1)}), "a CIFAR batch with 'labels'"),
        (python2({b"labels": [1], b"data": rows(0, 2)}), r"uint8 \[1, 3072\], .* \[2, 3072\]"),
    ],
)
def test_refused_batches(tmp_path, content, message):
    write_python10(tmp_path)
    file = tmp_path / "data_batch_3"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        data.cifar(tmp_path)
    assert str(file) in str(caught.value)


def test_a_pickle_cannot_change_what_it_is_read_with(tmp_path):
    write_python10(tmp_path)
    # BUILD with the state (None, {"__func__": 1}) sets attributes of the object before it
    setting = b"\x80\x02cnumpy\ndtype\nN}U\x08__func__K\x01s\x86b."
    (tmp_path / "data_batch_1").write_bytes(setting)
    with pytest.raises(ValueError, match="not a whole pickle"):
        data.cifar(tmp_path)
    write_python10(tmp_path)
    assert len(data.cifar(tmp_path).test) == 4


def test_other_refusals(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        data.cifar(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no files of CIFAR"):
        data.cifar(tmp_path)
    write_python10(tmp_path)
    with pytest.raises(ValueError, match="coarse labels are of CIFAR-100, got CIFAR-10"):
        data.cifar(tmp_path, coarse=True)
    (tmp_path / "batches.meta").write_bytes(python2({b"label_names": [b"a", b"b"]}))
    with pytest.raises(ValueError, match="must name a class for each label up to 8, got 2"):
        data.cifar(tmp_path)
    (tmp_path / "data_batch_1").unlink()
    with pytest.raises(FileNotFoundError, match="CIFAR's file data_batch_1 is not in this folder"):
        data.cifar(tmp_path)


def test_a_binary_file_cut_short(tmp_path):
    for name in ("train.bin", "test.bin"):
        (tmp_path / name).write_bytes(bytes(3074 * 2 - 1))
    (tmp_path / "fine_label_names.txt").write_text("a")
    with pytest.raises(ValueError, match=r"train.bin: must be a multiple of 3074 bytes, .* 6147"):
        data.cifar(tmp_path)
