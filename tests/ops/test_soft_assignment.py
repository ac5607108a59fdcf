"""The mean code, or value, under the softmax over the codes."""

import pytest
import torch

from fastvq import ops, testing

from ..conftest import using
from .dense import METRICS, close, dense, leaves


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 20, 17), (5, 70, 2), (5, 20, 70)], ids=str)
def test_soft_assignment(backend, budgeted, shape, metric):
    dtype, relative = budgeted
    x, codebook = testing.gaussian(*shape, dtype=dtype)
    a, c = leaves(x, codebook)
    b, e = leaves(x.double(), codebook.double())
    actual = ops.soft_assignment(a, c, metric=metric, inverse_temperature=0.3)
    expected = dense(b, e, metric, 0.3).exp() @ e
    close(actual, expected, relative)
    cotangent = torch.randn_like(actual)
    actual.backward(cotangent)
    expected.backward(cotangent.double())
    testing.assert_within(a.grad, b.grad, relative * (1 + b.grad.abs().max()))
    testing.assert_within(c.grad, e.grad, relative * (1 + e.grad.abs().max()))


@pytest.mark.parametrize(("metric", "heads"), [("dot", None), ("cosine", None), ("euclidean", 2)])
def test_soft_assignment_of_other_values(backend, budgeted, metric, heads):
    """Places and values apart: each has its own gradient."""
    dtype, relative = budgeted
    shape = (24, 17) if heads is None else (heads, 24, 17)
    x = torch.randn(33, *shape[:-2], 17, dtype=dtype)
    leaf = leaves(x, torch.randn(shape, dtype=dtype), 9 + torch.randn(shape, dtype=dtype))
    wide = leaves(*(tensor.double() for tensor in leaf))
    options = {"metric": metric, "inverse_temperature": 0.3}
    actual = ops.soft_assignment(*leaf[:2], values=leaf[2], **options)
    if heads is None:
        expected = dense(*wide[:2], metric, 0.3).exp() @ wide[2]
    else:
        each = [dense(wide[0][:, h], wide[1][h], metric, 0.3).exp() for h in range(heads)]
        expected = torch.stack([p @ wide[2][h] for h, p in enumerate(each)], 1)
    close(actual, expected, relative)
    cotangent = torch.randn_like(actual)
    actual.backward(cotangent)
    expected.backward(cotangent.double())
    for mine, plain in zip(leaf, wide, strict=True):
        testing.assert_within(mine.grad, plain.grad, relative * (1 + plain.grad.abs().max()))


@pytest.mark.parametrize("channels", [4, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_of_every_number_of_panels(channels, dtype):
    """What fills no whole panel of channels of an instruction set is one vector of it or two."""
    x, codebook, values = (torch.randn(n, channels, dtype=dtype) for n in (9, 400, 400))
    with using("native"):
        actual = ops.soft_assignment(
            x, codebook, values=values, metric="dot", inverse_temperature=0.1
        )
    expected = dense(x.double(), codebook.double(), "dot", 0.1).exp() @ values.double()
    close(actual, expected, 1e-5 if dtype == torch.float32 else 1e-12)


def test_values_unlike_the_codebook_are_refused():
    x, codebook = testing.gaussian(4, 5, 3)
    with pytest.raises(
        ValueError, match=r"values must be \[5, 3\], the shape of the codebook, got"
    ):
        ops.soft_assignment(x, codebook, values=codebook[1:])
    with pytest.raises(TypeError, match="values must be float32, float16, bfloat16 or float64"):
        ops.soft_assignment(x, codebook, values=codebook.long())
