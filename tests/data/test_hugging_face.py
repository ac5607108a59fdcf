# SPDX-License-Identifier: Apache-2.0
"""The reader of Hugging Face's format against objects of the shape that its library gives."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image as pil

from fastvq import data


def feature(name, **attributes):
    """An instance of a class of that name: what features are known by."""
    return type(name, (), attributes)()


IMAGE, AUDIO, TEXT = feature("Image"), feature("Audio"), feature("Value")
LABEL = feature("ClassLabel", names=["ant", "bee"])


class Table:
    """One split: rows by position, columns by name, features."""

    def __init__(self, features, count, **columns):
        self.features, self._count, self._columns = features, count, columns

    def __len__(self):
        return self._count

    def __getitem__(self, key):
        if isinstance(key, str):
            return (self._columns[key](i) for i in range(self._count))
        assert type(key) is int
        return {name: column(key) for name, column in self._columns.items()}


def pictures(count, start=0, **more):
    return Table(
        {"image": IMAGE, "label": LABEL},
        count,
        image=lambda i: pil.new("RGB", (8, 6), (start + i, 0, 0)),
        label=lambda i: (start + i) % 2,
        **more,
    )


def sounds(rates=(8000,), length=10):
    """A channel of level and one of silence, so that the mean is half."""
    return Table(
        {"audio": AUDIO},
        6,
        audio=lambda i: {
            "array": np.stack([np.full(length, i / 8), np.zeros(length)]),
            "sampling_rate": rates[i % len(rates)],
        },
    )


@pytest.fixture
def hub(monkeypatch):
    """A library ``datasets`` that knows the names it is given."""
    known, asked = {}, []

    def load(kind):
        def loaded(name):
            asked.append((kind, name))
            return known[name]

        return loaded

    module = types.ModuleType("datasets")
    module.load_dataset, module.load_from_disk = load("hub"), load("disk")
    monkeypatch.setitem(sys.modules, "datasets", module)
    known["asked"] = asked
    return known


def everything(part):
    return part.read(torch.arange(len(part)))


def test_images_labels_and_parts(hub):
    hub["x"] = {"train": pictures(10), "test": pictures(3, 100), "extra": pictures(1)}
    lines = []
    splits = data.load(data.DataConfig(source="hf:x"), report=lines.append)
    assert hub["asked"] == [("hub", "x")]
    assert lines == [
        "hf:x is read as a Hugging Face data set",
        "x: left out, being no part for training or testing: extra",
    ]
    assert [len(part) for part in splits] == [9, 1, 3]
    assert (splits.train.kind, splits.train.size) == ("image", (6, 8))
    assert everything(splits.test)[:, 0, 0, 0].tolist() == [100, 101, 102]
    assert splits.train.classes == ("ant", "bee")
    for part in splits:
        assert (everything(part)[:, 0, 0, 0] % 2).tolist() == part.labels.tolist()


def test_one_table_is_split(hub):
    hub["x"] = pictures(20)
    splits = data.from_hugging_face("x", image_size=4, channels=1)
    assert [len(part) for part in splits] == [16, 2, 2]
    assert (splits.train.channels, splits.train.size) == (1, (4, 4))


def test_a_folder_saved_to_disk(hub, tmp_path):
    (tmp_path / "dataset_dict.json").touch()
    hub[str(tmp_path)] = {"train": pictures(3)}
    lines = []
    splits = data.load(data.DataConfig(source=str(tmp_path)), report=lines.append)
    assert hub["asked"] == [("disk", str(tmp_path))]
    assert lines == [f"{tmp_path} is read as a Hugging Face data set"]
    assert sum(map(len, splits)) == 3


def test_sound_is_cut_to_chunks_and_split_by_row(hub):
    hub["x"] = sounds()
    config = data.DataConfig(source="hf:x", length=4)
    splits = data.load(config, report=[].append)
    assert (splits.train.kind, splits.train.rate) == ("audio", 8000)
    assert [len(part) for part in splits] == [12, 3, 3]
    levels = {int(x) for part in splits for x in everything(part)[:, 0, 0]}
    expected = data.mu_law_encode(torch.arange(6, dtype=torch.float64) / 16)
    assert levels == set(expected.tolist())
    assert everything(splits.test)[2, 0].tolist()[2:] == [128, 128]
    other = data.from_hugging_face("x", length=20, sample_rate=16000)
    assert (len(other.train), other.train.rate) == (4, 16000)


def test_columns_by_name(hub):
    table = pictures(4, mask=lambda i: pil.new("L", (8, 6), 200), name=lambda i: "zy"[i % 2])
    table.features |= {"mask": IMAGE, "name": TEXT}
    hub["x"] = table
    with pytest.raises(ValueError, match="array_key must be given for x: one of image, mask"):
        data.from_hugging_face("x")
    splits = data.from_hugging_face("x", array_key="mask", labels_key="name")
    assert splits.train.classes == ("y", "z")
    assert set(everything(splits.train).flatten().tolist()) == {200}
    with pytest.raises(ValueError, match="labels_key must be one of image, label, mask, name"):
        data.from_hugging_face("x", array_key="mask", labels_key="class")
    with pytest.raises(ValueError, match="must hold a column of images or sound, got name"):
        data.from_hugging_face("x", array_key="name")


@pytest.mark.parametrize(
    ("loaded", "options", "message"),
    [
        ({"test": pictures(3)}, {}, "x: must have a split named train, got test"),
        (Table({"text": TEXT}, 1), {}, "must hold a column of images or sound, got text"),
        (sounds(), {}, "length must be given for the sound of x, got None"),
        (
            sounds((8000, 16000)),
            {"length": 4},
            r"train\[1\] must have the sample rate .* 8000 and 16000",
        ),
        (sounds(), {"length": 11, "tail": "drop"}, "x: no row holds an example"),
        (pictures(0), {}, "x: no row holds an example"),
    ],
)
def test_refused_data(hub, loaded, options, message):
    hub["x"] = loaded
    with pytest.raises(ValueError, match=message):
        data.from_hugging_face("x", **options)


def test_the_library_may_be_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ModuleNotFoundError):
        data.from_hugging_face("x")
