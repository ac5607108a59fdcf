"""``ProjectedResidualVQ``: the contract, its loop, dropout and its gradient."""

import pytest
import torch

from fastvq import EMA, ProjectedResidualVQ
from fastvq.testing.contract import QuantizerContract


class TestContract(QuantizerContract):
    def make(self, channel_dim=-1):
        return ProjectedResidualVQ(self.dim, 24, 3, codebook_dim=4, channel_dim=channel_dim)


class TestContractWithEverything(QuantizerContract):
    compiler = "aot_eager"

    def make(self, channel_dim=-1):
        return ProjectedResidualVQ(
            self.dim, 24, 2, codebook_dim=4, metric="euclidean", learning=EMA(0.9),
            gradient="rotation", dropout=0.5, channel_dim=channel_dim,
        )  # fmt: skip


def test_is_its_loop():
    vq = ProjectedResidualVQ(8, 16, 3, codebook_dim=4)
    vq(torch.randn(200, 8))
    vq.eval()
    x = torch.randn(50, 8)
    rest, total, loss = x, 0, 0
    for q, level in enumerate(vq.levels):
        out = level(rest)
        rest, total, loss = rest - out.quantized, total + out.quantized, loss + out.loss
        assert torch.equal(vq(x).indices[:, q], out.indices)
    torch.testing.assert_close(vq(x).quantized, total)
    torch.testing.assert_close(vq(x).loss, loss)
    assert torch.equal(vq.encode(x, levels=2), vq(x).indices[:, :2])
    assert len(vq.usage()) == 3


def test_gradient_passes_through_the_residuals():
    vq = ProjectedResidualVQ(6, 16, 2, codebook_dim=3, metric="euclidean").double()
    vq(torch.randn(100, 6, dtype=torch.float64))
    vq.eval()
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(5, 6, dtype=torch.float64)
    (grad,) = torch.autograd.grad(vq(x).quantized, x, cotangent)
    # straight through, a level is the product of its projections P, and the rest I - P
    left = torch.eye(6, dtype=torch.float64)
    for level in vq.levels:
        product = level.project_out.weight @ level.project_in.weight
        left = (torch.eye(6, dtype=torch.float64) - product) @ left
    expected = cotangent @ (torch.eye(6, dtype=torch.float64) - left)
    torch.testing.assert_close(grad, expected)


def test_dropout_and_mask():
    torch.manual_seed(0)
    vq = ProjectedResidualVQ(8, 16, 4, codebook_dim=4, dropout=0.5)
    x, mask = torch.randn(200, 3, 8), torch.rand(200, 3) > 0.3
    out = vq(x, mask)
    levels = (out.indices >= 0).sum(-1)
    assert (levels[~mask] == 0).all()
    assert not out.quantized[~mask].any()
    assert not vq.decode(out.indices)[~mask].any()
    whole = (out.indices[mask] >= 0).all(-1).double().mean()
    assert abs(whole - 0.625) < 0.12
    ends = (out.indices < 0).int()
    assert (ends.diff(dim=-1) >= 0).all(), "where it ends, it ends"
    assert (vq.eval()(x).indices >= 0).all()


def test_trains():
    torch.manual_seed(0)
    vq = ProjectedResidualVQ(6, 32, 3, codebook_dim=3)
    optimizer = torch.optim.Adam(vq.parameters(), 0.01)
    data, errors = torch.randn(400, 6), []
    for _ in range(150):
        optimizer.zero_grad()
        quantized, _, loss = vq(data)
        error = (quantized - data).square().mean()
        (error + loss).backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.4


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_quantizers must be at least 1"):
        ProjectedResidualVQ(8, 16, 0)
    with pytest.raises(ValueError, match=r"q in \[1, 2\], got \[4, 3\]"):
        ProjectedResidualVQ(8, 16, 2).decode(torch.zeros(4, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"levels must be in \[1, 2\], got 3"):
        ProjectedResidualVQ(8, 16, 2).encode(torch.zeros(4, 8), levels=3)
