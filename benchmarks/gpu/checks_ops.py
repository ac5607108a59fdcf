# SPDX-License-Identifier: Apache-2.0
"""``quantize``, ``statistics`` and ``residual`` on the device, against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import fastvq
from benchmarks.gpu.running import Work
from benchmarks.gpu.setting import Setting
from fastvq import testing
from fastvq.ops import quantize, residual, statistics

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# (N, K, D)
SHAPES = ((1, 1, 1), (7, 1, 3), (33, 16, 2), (129, 257, 100), (1000, 300, 64), (70, 40, 1100))
QUICK_SHAPES = ((1, 1, 1), (33, 16, 20))
LARGE = (100_000, 1024, 64)


def works(setting: Setting) -> Iterator[Work]:
    for backend in setting.backends:
        for name, run in _checks(setting):
            yield Work(
                f"{name.replace(' ', f' {backend}: ', 1)}", partial(setting.on, backend, run)
            )


def _checks(setting: Setting) -> Iterator[tuple[str, Callable[[], None]]]:
    device = setting.device
    shapes = QUICK_SHAPES if setting.quick else (*SHAPES, LARGE)
    for shape in shapes:
        for dtype in DTYPES[: 1 if setting.quick else 4]:
            name = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
            yield f"quantize {name}", partial(_quantize, device, shape, dtype)
            yield f"statistics {name}", partial(_statistics, device, shape, dtype)
    yield "quantize channels first", partial(_quantize_view, device)
    yield "quantize index out of range", partial(_out_of_range, device)
    yield "statistics one code takes all", partial(_hot_code, device, setting.quick)
    yield "statistics bad rows", partial(_bad_rows, device)
    yield "statistics same bits", partial(_same_bits, device, setting.quick)
    for dtype in DTYPES[: 1 if setting.quick else 4]:
        name = f"residual levels, {str(dtype).removeprefix('torch.')}"
        yield name, partial(_residual, device, dtype, 20 if setting.quick else 3000)


def _inputs(
    device: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    x, codebook = (t.to(device) for t in testing.gaussian(*shape, dtype=dtype))
    generator = torch.Generator().manual_seed(1)
    indices = torch.randint(shape[1], (shape[0],), generator=generator).to(device)
    # positions without a code
    indices[2::7] = -1
    return x, codebook, indices


def _quantize(device: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Values, losses and both gradients against their formulas in float64."""
    x, codebook, indices = _inputs(device, shape, dtype)
    x.requires_grad_()
    codebook.requires_grad_()
    out = quantize(x, codebook, indices)
    has = (indices >= 0).unsqueeze(-1)
    codes = torch.where(has, codebook.detach()[indices.clamp_min(0)].double(), 0.0)
    difference = torch.where(has, x.detach().double() - codes, 0.0)
    elements = has.sum() * shape[2]
    unit = torch.finfo(dtype).eps
    assert torch.equal(out.quantized.detach(), codes.to(dtype)), "quantized is not the codes"
    loss = difference.square().sum() / elements
    for actual in (out.commitment_loss, out.codebook_loss):
        testing.assert_within(actual.detach(), loss, 1e-5 * loss)
    cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    cotangent = cotangent.to(device, dtype)
    total = (out.quantized * cotangent).sum() + 0.5 * out.commitment_loss + 3 * out.codebook_loss
    total.backward()
    wanted = torch.where(has, cotangent.double() + difference / elements, 0.0)
    # one rounding to the dtype of x, and float32 before it
    budget = (unit + 1e-6) * (wanted.abs() + 1)
    testing.assert_within(x.grad, wanted, budget)
    scattered = torch.zeros_like(codebook, dtype=torch.float64)
    scattered.index_add_(0, indices.clamp_min(0), difference)
    wanted = -6 * scattered / elements
    testing.assert_within(
        codebook.grad, wanted, (unit + 1e-5) * (wanted.abs() + wanted.abs().max())
    )


def _quantize_view(device: str) -> None:
    x, codebook, indices = _inputs(device, (60, 30, 24), torch.float32)
    view = testing.channels_first(x, 4, 5)
    out = quantize(view, codebook, indices.reshape(3, 4, 5))
    flat = quantize(x, codebook, indices)
    assert out.quantized.stride() == view.stride(), "the layout of x is lost"
    assert torch.equal(out.quantized.reshape(60, 24), flat.quantized)


def _out_of_range(device: str) -> None:
    """A row of NaN where nobody can look; an error where somebody can."""
    x, codebook, indices = _inputs(device, (60, 30, 24), torch.float32)
    indices[5] = 30
    if device == "cpu":
        try:
            quantize(x, codebook, indices)
        except IndexError:
            return
        raise AssertionError("an index out of range went unnoticed")
    out = quantize(x, codebook, indices)
    assert out.quantized[5].isnan().all()
    assert torch.isfinite(out.quantized[indices < 30]).all()


def _statistics(device: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    n, k, d = shape
    x, codebook, indices = _inputs(device, shape, dtype)
    has = indices >= 0
    for codes in (None, codebook):
        counts, sums = statistics(x, indices, k, codebook=codes)
        values = x.double() if codes is None else x.double() - codes.double()[indices.clamp_min(0)]
        wanted = torch.zeros(k, d, dtype=torch.float64, device=device)
        wanted.index_add_(0, indices[has], values[has])
        size = torch.zeros_like(wanted).index_add_(0, indices[has], values[has].abs())
        assert torch.equal(counts, torch.bincount(indices[has], minlength=k).to(counts.dtype))
        # float32 sums in blocks: a few units of the sum of magnitudes
        testing.assert_within(sums, wanted, 2e-6 * size + 1e-30)


def _hot_code(device: str, quick: bool) -> None:
    n = 500 if quick else 1_000_000
    x = torch.randn(n, 8).to(device)
    counts, sums = statistics(x, torch.full((n,), 3, device=device), 5)
    assert counts.tolist() == [0, 0, 0, n, 0]
    testing.assert_within(sums[3], x.double().sum(0), 2e-6 * x.double().abs().sum(0))


def _bad_rows(device: str) -> None:
    x, _, indices = _inputs(device, (300, 20, 24), torch.float32)
    clean = x.clone()
    x[4, 3], x[250, 23] = torch.nan, torch.inf
    without = indices.clone()
    without[4] = without[250] = -1
    for one, other in zip(statistics(x, indices, 20), statistics(clean, without, 20), strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-5), "a bad row reached the sums"


def _same_bits(device: str, quick: bool) -> None:
    x, codebook, indices = _inputs(device, (300 if quick else 200_000, 20, 24), torch.float32)
    x.requires_grad_()

    def all_bits() -> list[Tensor]:
        x.grad = None
        out = quantize(x, codebook, indices)
        out.commitment_loss.backward()
        return [*statistics(x, indices, 20), out.quantized.detach(), out.commitment_loss, x.grad]

    first = all_bits()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, all_bits(), strict=True))


def _residual(device: str, dtype: torch.dtype, rows: int) -> None:
    """Equals the loop over its levels, bit for bit, and its gradient the formula."""
    x, _ = testing.gaussian(rows, 1, 48, dtype=dtype)
    codebooks = torch.randn(4, 40, 48, generator=torch.Generator().manual_seed(3)).to(dtype)
    x, codebooks = x.to(device), codebooks.to(device)
    out = residual(x, codebooks)
    rest = x.to(torch.promote_types(dtype, torch.float32))
    for q in range(4):
        found = fastvq.ops.nearest(rest, codebooks[q]).indices
        assert torch.equal(out.indices[:, q], found), f"level {q} differs from the loop"
        rest = rest - codebooks[q][found].to(rest.dtype)
        wanted = rest.double().square().mean()
        testing.assert_within(out.commitment_losses[q].detach(), wanted, 1e-5 * wanted)
    total = sum(codebooks[q][out.indices[:, q]].double() for q in range(4))
    unit = torch.finfo(dtype).eps
    testing.assert_within(out.quantized, total, (unit + 1e-6) * (total.abs() + 4))
