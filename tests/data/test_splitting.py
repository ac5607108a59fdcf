# SPDX-License-Identifier: Apache-2.0
import numpy as np
import torch

from fastvq.data.splitting import cut, numbered


def test_what_the_data_do_not_say_is_cut_by_the_permutation_of_seed_0():
    train, validation, test = cut(torch.zeros(20, dtype=torch.int64))
    # written out: a change would make every published figure another
    assert validation.tolist() == [18, 1]
    rest = np.delete(np.arange(20), [1, 18])
    assert test.tolist() == rest[np.random.RandomState(0).permutation(18)[:2]].tolist()
    assert sorted([*train.tolist(), *validation.tolist(), *test.tolist()]) == list(range(20))
    assert train.tolist() == sorted(train.tolist())


def test_what_the_data_say_is_kept():
    train, validation, test = cut(torch.tensor([0] * 8 + [2] * 4))
    assert test.tolist() == [8, 9, 10, 11]
    # a tenth of all twelve, out of the eight for training
    assert len(validation) == 1
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(8))
    assert [part.tolist() for part in cut(torch.tensor([0, 1, 2]))] == [[0], [1], [2]]


def test_classes_are_numbered_in_their_order():
    labels, classes = numbered([10, 9, 10, 2])
    assert labels.tolist() == [2, 1, 2, 0]
    assert classes == ("2", "9", "10")
