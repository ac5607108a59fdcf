"""``MultiScaleVQ`` where cells hold padding or what is not finite: neither reaches anything."""

import copy

import pytest
import torch

from fastvq import EMA, Given

from .scales import batch, make


def test_mask():
    vq = make(1, revival=None)
    vq(batch(1))
    x = batch(1)
    mask = torch.arange(8) < torch.tensor([8, 5, 2]).unsqueeze(1)
    padded = torch.where(mask.unsqueeze(1), x, torch.nan).requires_grad_()
    state = copy.deepcopy(vq.state_dict())
    quantized, indices, loss = vq(padded, mask)
    (quantized.sum() + loss).backward()
    learned = copy.deepcopy(vq.state_dict())
    assert torch.isfinite(loss)
    assert torch.isfinite(padded.grad).all()
    assert (padded.grad.movedim(1, -1)[~mask] == 0).all()
    assert (quantized.movedim(1, -1)[~mask] == 0).all()
    assert (indices[-1][~mask] == -1).all()
    assert (indices[0] >= 0).all()
    # and what padding holds changes nothing at all
    vq.load_state_dict(state)
    other = vq(torch.where(mask.unsqueeze(1), x, 7.0), mask)
    assert torch.equal(other.quantized, quantized)
    assert torch.equal(other.loss, loss)
    for name, value in vq.state_dict().items():
        assert torch.equal(value, learned[name]), name
    # the means are over what is there
    vq.eval()
    _, indices, _ = vq(x, mask)
    mean = x[2, :, :2].mean(-1)
    assert indices[0][2] == torch.cdist(mean.unsqueeze(0), vq.codebook).argmin()
    decoded = vq.decode(indices).movedim(1, -1)[mask]
    assert torch.equal(decoded, vq(x, mask).quantized.movedim(1, -1)[mask])
    with pytest.raises(TypeError, match="mask must be bool, got int64"):
        vq(x, mask.long())


def test_no_padding_is_no_mask():
    vq, x = make(1).eval(), batch(1)
    out, expected = vq(x, torch.ones(3, 8, dtype=torch.bool)), vq(x)
    assert torch.equal(out.quantized, expected.quantized)
    assert torch.equal(out.loss, expected.loss)


def test_a_bad_vector_is_contained():
    for first in (True, False):
        vq, x = make(), batch()
        if not first:
            vq(x)
        x[1, 2, 3, 3], x[2, 0, 0, 0] = torch.nan, torch.inf
        good = torch.isfinite(x).all(1)
        x.requires_grad_()
        quantized, indices, loss = vq(x)
        (quantized.sum() + loss).backward()
        assert loss.isnan()
        assert torch.isfinite(quantized).all()
        assert (indices[-1][~good] == 0).all()
        assert torch.isfinite(x.grad).all()
        assert (x.grad.movedim(1, -1)[~good] == 0).all()
        for name, value in vq.state_dict().items():
            assert torch.isfinite(value.float()).all(), name
        for parameter in vq.parameters():
            assert torch.isfinite(parameter.grad).all()
        # the image without one has the codes it always has
        assert torch.equal(vq.eval()(x[:1]).indices[2], vq(x).indices[2][:1])


def test_a_cell_without_a_good_vector_counts_for_no_code():
    vq, x = make(start=Given(torch.randn(20, 6)), learning=EMA(0.0), revival=None), batch()
    x[1, 2, 3, 3], x[2, 0, 0, 0] = torch.nan, torch.inf
    vq(x)
    # of the finest cells those two hold nothing else, and every coarser one holds more
    cells = sum(3 * height * width for height, width in vq.scales)
    assert vq.book.cluster_size.sum() == cells - 2
