# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from fastvq import data
from fastvq.data import files


class Items(list):
    """A map-style data set in one line."""


def everything(part):
    return part.read(torch.arange(len(part)))


@pytest.mark.parametrize("shape", [(2, 9), (3, 5, 6), (1, 4, 5, 6)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_tensors(shape, dtype):
    levels = torch.randint(0, 256, (20, *shape), dtype=torch.uint8)
    values = levels if dtype == torch.uint8 else levels.to(dtype) / 255
    splits = data.from_torch(TensorDataset(values, torch.arange(20) % 3))
    assert [len(part) for part in splits] == [16, 2, 2]
    assert splits.train.kind == {1: "signal", 2: "image", 3: "video"}[len(shape) - 1]
    assert splits.train.size == shape[1:]
    assert splits.train.classes == ("0", "1", "2")
    by_value = {bytes(row.numpy()): i for i, row in enumerate(levels)}
    for part in splits:
        numbers = [by_value[bytes(row.numpy())] for row in everything(part)]
        assert [n % 3 for n in numbers] == part.labels.tolist()


def test_pil_images_names_of_classes_and_given_parts():
    class Named(Items):
        classes = ("ant", "bee")

    train = Named((Image.new("RGB", (8, 6), (i, 0, 0)), i % 2) for i in range(10))
    test = Items((Image.new("L", (8, 6), 100 + i), 1) for i in range(3))
    splits = data.from_torch(train, test=test, image_size=4)
    assert [len(part) for part in splits] == [9, 1, 3]
    assert splits.train.classes == ("ant", "bee")
    assert (splits.train.channels, splits.train.size) == (3, (4, 4))
    assert everything(splits.test)[:, :, 0, 0].tolist() == [[100 + i] * 3 for i in range(3)]
    assert splits.test.labels.tolist() == [1, 1, 1]
    assert data.from_torch(train, channels=1).train.channels == 1


def test_without_labels():
    splits = data.from_torch(Items(torch.rand(5, 1, 8)))
    assert splits.train.labels.tolist() == [-1] * 3
    assert splits.train.classes == ()


def test_floats_become_the_nearest_levels():
    items = Items([torch.tensor([[0.0, 0.5019, 1.0]])])  # 127.98 of 255
    assert everything(data.from_torch(items).train).tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize("label", [1, np.int64(1), torch.tensor(1), torch.tensor([1])])
def test_labels_of_every_sort(label):
    item = torch.zeros(1, 8, dtype=torch.uint8)
    assert data.from_torch(Items([(item, label)])).train.labels.tolist() == [1]


def test_items_too_many_for_memory_are_read_anew(monkeypatch):
    class Counted(Items):
        reads = 0

        def __getitem__(self, at):
            self.reads += 1
            return super().__getitem__(at)

    items = Counted((row, 0) for row in torch.rand(12, 1, 8))
    held = data.from_torch(items)
    assert everything(held.train).shape == (10, 1, 8)
    assert items.reads == 12
    monkeypatch.setattr(files, "MEMORY_BYTES", 0)
    read = data.from_torch(items)
    assert torch.equal(everything(read.train), everything(held.train))
    assert items.reads == 12 + 12 + 10


GOOD = torch.zeros(1, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([], ValueError, "must hold at least one example, got none"),
        ([GOOD, "text"], TypeError, r"train\[1\] must be a PIL image or a tensor, got str"),
        ([GOOD[0, 0]], ValueError, r"train\[0\] must be \[C, L\], .*, got \[4\]"),
        ([GOOD, GOOD[:, :3]], ValueError, r"train\[0\] is 4x4, train\[1\] is 4x3"),
        ([GOOD, GOOD.repeat(3, 1, 1)], ValueError, r"of 1 channels as train\[0\], .* is of 3"),
        ([GOOD.long()], TypeError, r"train\[0\] must be float32"),
        ([GOOD - 0.5], ValueError, r"floats must be in \[0, 1\], got \[-0.5, -0.5\]"),
        ([GOOD * torch.nan], ValueError, r"floats must be in \[0, 1\], got \[nan, nan\]"),
        ([(GOOD,)], TypeError, r"must be an example or \(example, label\), got 1 entries"),
        ([(GOOD, "cat")], TypeError, r"the label of train\[0\] must be an int, got 'cat'"),
        ([(GOOD, 0.5)], TypeError, r"must be an int, got 0.5"),
        ([(GOOD, torch.zeros(2))], TypeError, r"must be an int, got tensor"),
        ([(GOOD, -1)], ValueError, r"must be at least 0, got -1"),
        ([(GOOD, 2), GOOD], ValueError, r"train\[0\] has 2, train\[1\] has none"),
    ],
)
def test_refused_items(items, error, message):
    with pytest.raises(error, match=message):
        data.from_torch(Items(items))


def test_refused_data_sets():
    with pytest.raises(TypeError, match=r"test must be a map-style data set, .* got generator"):
        data.from_torch(Items([GOOD]), test=(x for x in ()))
