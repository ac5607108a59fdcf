"""The softmax over the codes: values and gradients against the plain form, and what it keeps."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastvq import testing
from fastvq.nn import _soft_codes
from fastvq.nn._soft_codes import soft_choice


def inputs(n=40, k=13, d=5, v=3):
    return tuple(
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((n, d), (k, d), (k, v))
    )


def noise_of(seed, n, k):
    generator = torch.Generator().manual_seed(seed)
    waits = torch.empty(n, k, dtype=torch.float64).exponential_(generator=generator)
    return -waits.log()


def test_choice_is_the_softmax():
    x, keys, values = inputs()
    means, indices = soft_choice(x, keys, values, torch.tensor(7), 0.3)
    noise = noise_of(7, 40, 13)
    p = torch.softmax((x @ keys.T + noise) / 0.3, dim=-1)
    assert torch.equal(indices, p.argmax(-1))
    testing.assert_within(means, (p @ values).detach(), 1e-12)
    cotangent = torch.randn_like(means)
    actual = torch.autograd.grad(means, (x, keys, values), cotangent)
    expected = torch.autograd.grad(p @ values, (x, keys, values), cotangent)
    for a, b in zip(actual, expected, strict=True):
        testing.assert_within(a, b, 1e-11)


def test_chunks_change_nothing(monkeypatch):
    x, keys, values = inputs()
    seed = torch.tensor(3)

    def everything():
        means, indices = soft_choice(x, keys, values, seed, 0.5)
        total = means.square().sum()
        return [means, *torch.autograd.grad(total, (x, keys, values))]

    whole = everything()
    monkeypatch.setattr(_soft_codes, "_WORKSPACE", 3 * 13)
    for a, b in zip(everything(), whole, strict=True):
        testing.assert_within(a.detach(), b.detach(), 1e-11)


@pytest.mark.parametrize("n", [6, 0])
def test_are_ops(n):
    x, keys, values = inputs(n)
    torch.library.opcheck(soft_choice, (x, keys, values, torch.tensor(1), 0.5))


def test_memory_does_not_grow_with_vectors_times_codes(monkeypatch):
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, list | tuple) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.numel = max(self.numel, tensor.numel())
            return out

    monkeypatch.setattr(_soft_codes, "_WORKSPACE", 1 << 16)
    x, keys, values = torch.randn(3000, 8), torch.randn(1000, 8), torch.randn(1000, 4)
    seed = torch.tensor(1)
    with Largest() as largest:
        soft_choice._init_fn(x, keys, values, seed, 1.0)
        _soft_codes._soft_choice_backward._init_fn(torch.ones(3000, 4), x, keys, values, seed, 1.0)
    # N K would be 3e6
    assert largest.numel <= 1 << 16
