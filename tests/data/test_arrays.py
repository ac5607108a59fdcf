# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from fastvq import data
from fastvq.data import arrays

SHAPES = {
    "NL": (20, 30),
    "NCL": (20, 2, 30),
    "NHW": (20, 5, 6),
    "NHWC": (20, 5, 6, 3),
    "NCHW": (20, 3, 5, 6),
    "NTHW": (20, 7, 5, 6),
    "NTHWC": (20, 2, 5, 6, 3),
}


def silent(_):
    pass


def values(shape):
    return np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)


def everything(splits):
    """All examples in the order of the file, whose first value numbers them."""
    whole = splits.part("all")
    read = whole.read(torch.arange(len(whole)))
    return read[read.flatten(1)[:, 0].argsort()]


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("layout", SHAPES)
def test_every_layout_becomes_channels_first(tmp_path, layout, told):
    array = values(SHAPES[layout])
    array.reshape(20, -1)[:, 0] = np.arange(20)
    np.save(tmp_path / "x.npy", array)
    splits = data.array_file(tmp_path / "x.npy", layout=None if told else layout)
    letters = layout.lower()
    channels_first = (
        "n" + ("c" if "C" in layout else "") + letters.replace("n", "").replace("c", "")
    )
    expected = np.einsum(f"{letters}->{channels_first}", array)
    if "C" not in layout:
        expected = expected[:, None]
    assert np.array_equal(everything(splits).numpy(), expected)
    assert [len(part) for part in splits] == [16, 2, 2]
    kind = {1: "signal", 2: "image", 3: "video"}[expected.ndim - 2]
    assert (splits.train.kind, splits.train.size) == (kind, expected.shape[2:])
    assert splits.train.classes == ()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_become_the_nearest_levels(tmp_path, dtype):
    levels = np.tile(np.arange(256), (3, 1))
    np.save(tmp_path / "x.npy", (levels / 255).astype(dtype))
    splits = data.array_file(tmp_path / "x.npy")
    assert np.array_equal(splits.train.read(torch.arange(1))[0, 0].numpy(), np.arange(256))
    np.save(tmp_path / "x.npy", np.full((3, 5), 0.5019, dtype))  # 127.98 of 255
    read = data.array_file(tmp_path / "x.npy").train.read(torch.arange(1))
    assert read.tolist() == [[[128] * 5]]


def test_npy_is_memory_mapped_and_npz_said_to_be_not(tmp_path):
    array = values((20, 5, 6))
    np.save(tmp_path / "x.npy", array)
    lines = []
    splits = data.array_file(tmp_path / "x.npy", report=lines.append)
    assert lines == []
    before = splits.train.read(torch.tensor([0]))
    # what is written to the file after opening is read: nothing was copied
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r+")
    mapped[:] = 255 - array
    mapped.flush()
    assert torch.equal(splits.train.read(torch.tensor([0])), 255 - before)
    np.savez(tmp_path / "x.npz", x=array)
    data.array_file(tmp_path / "x.npz", report=lines.append)
    assert lines == [
        f"{tmp_path / 'x.npz'}: read whole into memory (600 bytes); a .npy is memory-mapped"
    ]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [([3, 7] * 10, ("3", "7")), (["cat", "ant"] * 10, ("ant", "cat"))],
)
def test_labels(tmp_path, labels, classes):
    array = values((20, 5, 6))
    array[:, 0, 0] = np.arange(20)
    for key in ("labels", "y"):
        np.savez_compressed(tmp_path / "x.npz", pixels=array, **{key: labels})
        named = {} if key == "labels" else {"labels_key": key}
        splits = data.array_file(tmp_path / "x.npz", **named, report=silent)
        assert splits.train.classes == classes
        for part in splits:
            number = part.read(torch.arange(len(part)))[:, 0, 0, 0].tolist()
            assert [classes[i] for i in part.labels] == [str(labels[n]) for n in number]


def test_one_array_of_several(tmp_path):
    np.savez(tmp_path / "x.npz", a=values((20, 5, 6)), b=values((20, 9)))
    with pytest.raises(ValueError, match="one array beside 'labels', got a, b"):
        data.array_file(tmp_path / "x.npz", report=silent)
    assert data.array_file(tmp_path / "x.npz", array_key="b", report=silent).train.size == (9,)
    for key in ("array_key", "labels_key"):
        with pytest.raises(ValueError, match=f"{key} must be one of a, b, got 'c'"):
            data.array_file(tmp_path / "x.npz", **{key: "c"}, report=silent)


@pytest.mark.parametrize("shape", [(9,), (9, 2, 2), (9, 5, 6, 5, 6), (9, 3, 4, 3), (9, 1, 1, 3)])
def test_an_unclear_layout_must_be_given(tmp_path, shape):
    np.save(tmp_path / "x.npy", np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match=r"is of no clear layout, none of NL, .*: give the layout"):
        data.array_file(tmp_path / "x.npy")


def test_a_given_layout_decides(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((9, 2, 2), np.uint8))
    assert data.array_file(tmp_path / "x.npy", layout="NHW").train.size == (2, 2)
    assert data.array_file(tmp_path / "x.npy", layout="NCL").train.channels == 2
    with pytest.raises(ValueError, match=r"must be \[N, H, W, C\] .*, got \[9, 2, 2\]"):
        data.array_file(tmp_path / "x.npy", layout="NHWC")
    with pytest.raises(ValueError, match="layout must be one of NL, NCL"):
        data.array_file(tmp_path / "x.npy", layout="HWN")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((9, 8), 1.5), r"floats must be in \[0, 1\], got \[1.5, 1.5\]"),
        (np.full((9, 8), -0.5), r"floats must be in \[0, 1\], got \[-0.5, -0.5\]"),
        (np.full((9, 8), np.nan), r"floats must be in \[0, 1\], got \[nan, nan\]"),
        (np.zeros((9, 8), np.int64), "values must be uint8 or floats in .*, got int64"),
        (np.full((9, 8), None), "Python objects in dtype"),
        (
            np.zeros((0, 8), np.uint8),
            r"must be \[N, L\] with at least one entry each, got \[0, 8\]",
        ),
    ],
)
def test_refused_values(tmp_path, array, message, monkeypatch):
    # several passes over nine rows
    monkeypatch.setattr(arrays, "_CHUNK", 16)
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=message) as caught:
        data.array_file(tmp_path / "x.npy", layout="NL")
    assert "x.npy" in str(caught.value)


@pytest.mark.parametrize(
    "labels", [np.zeros(19, int), np.zeros((20, 1), int), np.zeros(20), np.full(20, None)]
)
def test_refused_labels(tmp_path, labels):
    np.savez(tmp_path / "x.npz", x=values((20, 5, 6)), labels=labels)
    with pytest.raises(ValueError, match=r"labels must be \[20\] integers or text|allow_pickle"):
        data.array_file(tmp_path / "x.npz", report=silent)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_refused_files(tmp_path, suffix):
    file = tmp_path / f"x.{suffix}"
    with pytest.raises(FileNotFoundError, match="no such file"):
        data.array_file(file)
    {"npy": np.save, "npz": lambda f, x: np.savez(f, x=x)}[suffix](file, values((20, 5, 6)))
    whole = file.read_bytes()
    for content in (b"", b"text", whole[:-200], whole[:50]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=f"x.{suffix}: "):
            data.array_file(file, report=silent)
