# SPDX-License-Identifier: Apache-2.0
import torch

from fastvq import data


def test_the_split_is_fixed_and_covers_every_digit_once():
    splits = data.digits()
    assert [len(part) for part in splits] == [1257, 180, 360]
    # the permutation of seed 0, written out: a change would make every published figure another
    assert splits.train.labels[:8].tolist() == [2, 8, 2, 6, 6, 7, 1, 9]
    images = torch.cat([part.batch(torch.arange(len(part))) for part in splits])
    assert images.shape == (1797, 1, 8, 8)
    assert len(images.flatten(1).unique(dim=0)) == 1797


def test_pixels_are_sixteenths_in_the_unit_interval():
    images = data.digits().test.batch(torch.arange(360))
    assert images.dtype == torch.float32
    assert torch.equal((images * 16).unique(), torch.arange(17.0))


def test_padding_repeats_the_last_row_and_column_and_is_announced():
    lines = []
    splits = data.load(data.DataConfig(), multiple=3, report=lines.append)
    assert lines == ["images of 8x8 are padded to 9x9, a multiple of 3"]
    plain, padded = data.digits().train.batch(torch.arange(4)), splits.train.batch(torch.arange(4))
    assert padded.shape == (4, 1, 9, 9)
    assert torch.equal(padded[..., :8, :8], plain)
    assert torch.equal(padded[..., 8, :8], plain[..., 7, :])
    assert torch.equal(padded[..., :8, 8], plain[..., :, 7])


def test_all_is_the_three_splits_after_one_another():
    splits = data.digits()
    whole = splits.part("all")
    at = torch.tensor([0, 1257, 1436, 1437, 1796, 3])
    images = whole.batch(at)
    assert torch.equal(images[1], splits.validation.batch(torch.tensor([0]))[0])
    assert torch.equal(images[2], splits.validation.batch(torch.tensor([179]))[0])
    assert torch.equal(images[3:5], splits.test.batch(torch.tensor([0, 359])))
    assert torch.equal(images[5], splits.train.batch(torch.tensor([3]))[0])
    assert torch.equal(whole.labels[at[1:4]], torch.cat([part.labels for part in splits])[at[1:4]])
