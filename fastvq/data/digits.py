# SPDX-License-Identifier: Apache-2.0
"""The handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

import torch

from fastvq.data.examples import Splits, in_memory, permutation

TRAIN, VALIDATION = 1257, 180


def digits() -> Splits:
    """1,797 grey images of 8x8 pixels with 17 levels, ten classes, split 1257 / 180 / 360.

    The split is fixed: a permutation with seed 0, cut in that order.

    Raises:
        ModuleNotFoundError: scikit-learn is absent (it comes with the ``train`` extra).

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).to(torch.uint8)[:, None]  # [N, 1, 8, 8], 0 to 16
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    whole = in_memory(pixels, labels, peak=16, classes=tuple("0123456789"))
    order = permutation(len(whole))
    return Splits(
        whole.subset(order[:TRAIN]),
        whole.subset(order[TRAIN : TRAIN + VALIDATION]),
        whole.subset(order[TRAIN + VALIDATION :]),
    )
