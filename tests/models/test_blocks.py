# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from fastvq.models import blocks


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("stride", [2, 3, 4, 5])
def test_down_divides_and_up_multiplies_every_axis(dims, stride):
    sizes = [stride * (i + 1) for i in range(dims)]
    x = torch.randn(2, 3, *sizes)
    small = blocks.down(dims, 3, 5, stride)(x)
    assert small.shape == (2, 5, *(i + 1 for i in range(dims)))
    assert blocks.up(dims, 5, 4, stride)(small).shape == (2, 4, *sizes)


def test_each_output_of_down_sees_two_strides():
    x = torch.zeros(1, 1, 16, requires_grad=True)
    blocks.down(1, 1, 1, 4)(x)[0, 0, 1].backward()
    assert x.grad[0, 0].nonzero().flatten().tolist() == list(range(2, 10))


def test_a_residual_block_is_the_written_formula():
    block = blocks.ResidualBlock(2, 4, 3)
    x = torch.randn(2, 4, 5, 6)
    _, wide, _, narrow = block.body
    inner = torch.conv2d(x.relu(), wide.weight, wide.bias, padding=1)
    outer = torch.conv2d(inner.relu(), narrow.weight, narrow.bias)
    torch.testing.assert_close(block(x), x + outer)


def test_the_stack_ends_in_a_relu_even_when_empty():
    x = torch.randn(1, 4, 3)
    assert torch.equal(blocks.residual_stack(1, 4, 2, 0)(x), x.relu())
