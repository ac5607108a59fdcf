# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from fastvq.models.attention import SelfAttention, grid_angles, rotated


def test_it_is_the_written_formula():
    layer = SelfAttention(2, 16, 2).double()
    x = torch.randn(2, 16, 3, 5).double()
    rows = layer.norm(x.flatten(2).mT)
    queries, keys, values = (
        part.view(2, 15, 2, 8).transpose(1, 2) for part in (rows @ layer.qkv.weight.T).chunk(3, -1)
    )
    angles = grid_angles(x.shape[2:], 8, x.device)
    scores = rotated(queries, angles) @ rotated(keys, angles).mT / 8**0.5
    mixed = (scores.softmax(-1) @ values).transpose(1, 2).reshape(2, 15, 16)
    expected = x + layer.out(mixed).mT.view(2, 16, 3, 5)
    torch.testing.assert_close(layer(x), expected)


def test_scores_depend_on_the_offset_in_each_axis():
    angles = grid_angles(torch.Size([4, 6]), 8, torch.device("cpu"))
    query, key = torch.randn(2, 8)
    scores = (rotated(query, angles) @ rotated(key, angles).mT).view(4, 6, 4, 6)
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[2, 3, 3, 5])
    torch.testing.assert_close(scores[1, 4, 0, 2], scores[3, 5, 2, 3])
    # up and left are told apart, and from down and right
    seen = torch.stack([scores[1, 1, 0, 1], scores[1, 1, 1, 0], scores[1, 1, 2, 1],
                        scores[1, 1, 1, 2]])  # fmt: skip
    assert len(seen.unique()) == 4


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_position_sees_every_other_and_knows_where_it_is(dims):
    layer = SelfAttention(dims, 24, 2)
    size = (3, 2, 4)[:dims]
    x = torch.randn(1, 24, *size, requires_grad=True)
    first = layer(x).flatten(2)[0, :, 0].square().sum()
    (gradient,) = torch.autograd.grad(first, x)
    assert (gradient[0].abs().sum(0) > 0).all()
    # without positions, shuffling the others would change nothing for the first
    shuffled = torch.cat([x.flatten(2)[..., :1], x.flatten(2)[..., 1:].flip(-1)], -1)
    other = layer(shuffled.view_as(x)).flatten(2)[0, :, 0].square().sum()
    assert abs(other - first) > 1e-5
