# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch

from fastvq.data import ExampleSet
from fastvq.data.examples import in_memory


def some(*shape, **options):
    values = torch.randint(0, 256, shape, dtype=torch.uint8)
    return in_memory(values, torch.full(shape[:1], -1), peak=255, classes=(), **options), values


@pytest.mark.parametrize(
    ("shape", "kind"), [((2, 7), "signal"), ((3, 5, 6), "image"), ((1, 3, 5, 6), "video")]
)
def test_every_kind_pads_the_end_of_each_axis_with_its_last_values(shape, kind):
    examples, values = some(4, *shape)
    assert (examples.kind, examples.channels, examples.size) == (kind, shape[0], shape[1:])
    assert examples.levels == 256
    padded = examples.padded(4)
    assert padded.size == examples.size
    expected = values[torch.tensor([2, 0])].float() / 255
    for axis, length in enumerate(shape[1:], start=2):
        at = torch.arange(length + (-length % 4)).clamp(max=length - 1)
        expected = expected.index_select(axis, at)
    assert torch.equal(padded.batch(torch.tensor([2, 0])), expected)


def test_a_multiple_for_each_axis():
    examples, _ = some(2, 3, 4, 5, 6)
    assert examples.padded((3, 1, 5)).padding == (2, 0, 4)
    assert examples.padded((3, 1, 5)).batch(torch.tensor([1])).shape == (1, 3, 6, 5, 10)
    assert not any(examples.padded(1).padding)
    with pytest.raises(ValueError, match="an int or 3 of them, one for each axis of video"):
        examples.padded((2, 2))
    with pytest.raises(ValueError, match="multiple must be at least 1, got 0"):
        examples.padded((1, 0, 1))


def test_subsets_of_subsets_keep_values_labels_and_rate():
    examples, values = some(6, 1, 8, rate=80.0)
    examples = dataclasses.replace(examples, labels=torch.arange(6), classes=tuple("abcdef"))
    inner = examples.subset(torch.tensor([5, 3, 1])).subset(torch.tensor([2, 0]))
    assert inner.labels.tolist() == [1, 5]
    assert inner.rate == 80.0
    assert torch.equal(inner.read(torch.tensor([0, 1])), values[[1, 5]])


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("image", (3,), r"size of image must have 2 axes, got \[3\]"),
        ("picture", (3, 3), "kind must be one of signal, audio, image, video, got 'picture'"),
    ],
)
def test_refused_sets(kind, size, message):
    with pytest.raises(ValueError, match=message):
        ExampleSet(kind=kind, read=None, peak=255, channels=1, size=size, labels=torch.zeros(1))
