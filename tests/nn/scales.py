"""Small ``MultiScaleVQ`` and what goes into them."""

import torch

from fastvq import MultiScaleVQ

SCALES = {
    1: [(1,), (2,), (5,), (8,)],
    2: [1, 2, 3, (5, 4), (6, 5)],
    3: [(1, 1, 1), (2, 3, 2), (3, 4, 5)],
}


def make(dims=2, dim=6, codebook_size=20, **kwargs):
    kwargs.setdefault("channel_dim", 1)
    return MultiScaleVQ(dim, codebook_size, SCALES[dims], **kwargs)


def shaken(vq):
    """With convolutions that are not the identity they start as."""
    for layer in vq.convolutions:
        layer.reset_parameters()
    return vq


def batch(dims=2, size=3, dim=6):
    last = SCALES[dims][-1]
    return torch.randn(size, dim, *last)
