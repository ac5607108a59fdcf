# SPDX-License-Identifier: Apache-2.0
"""The first 200 steps on digits: a codebook that is used whole, where a much-copied start fails."""

import torch
from torch import nn

from fastvq import data
from fastvq.models import VQVAE, VQVAEConfig
from fastvq.training import metrics

CODES, STEPS = 64, 300


class CopiedEMA(nn.Module):
    """Moving averages as public code starts them: no counts at first, but sums of whole codes.

    A code that the first batch does not hit is divided by a smoothed count of nearly zero.
    """

    def __init__(self, dim):
        super().__init__()
        codebook = torch.randn(CODES, dim)
        self.register_buffer("codebook", codebook.clone())
        self.register_buffer("sums", codebook.clone())
        self.register_buffer("counts", torch.zeros(CODES))

    def encode(self, x):
        rows = x.movedim(1, -1)
        return torch.cdist(rows.flatten(0, -2), self.codebook).argmin(-1).view(rows.shape[:-1])

    def decode(self, indices):
        return self.codebook[indices].movedim(-1, 1)

    def forward(self, x):
        indices = self.encode(x)
        quantized = self.decode(indices)
        with torch.no_grad():
            rows, flat = x.movedim(1, -1).flatten(0, -2), indices.flatten()
            counts = torch.bincount(flat, minlength=CODES).float()
            sums = torch.zeros_like(self.sums).index_add_(0, flat, rows)
            self.counts.mul_(0.99).add_(counts, alpha=0.01)
            self.sums.mul_(0.99).add_(sums, alpha=0.01)
            total = self.counts.sum()
            smoothed = (self.counts + 1e-5) / (total + CODES * 1e-5) * total
            self.codebook.copy_(self.sums / smoothed[:, None])
        loss = 0.25 * (quantized.detach() - x).square().mean()
        return x + (quantized - x).detach(), indices, loss


def trained(quantizer=None):
    """A small VQ-VAE after the steps, and the largest norm of a code relative to the data's."""
    torch.manual_seed(0)
    model = VQVAE(VQVAEConfig(hidden_channels=16, residual_channels=8, codebook_size=CODES))
    if quantizer is not None:
        model.quantizer = quantizer
    images = data.digits().train.batch(torch.arange(1257))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    farthest = 0.0
    for _ in range(STEPS):
        batch = images[torch.randint(len(images), (128,))]
        loss = model(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            codes = model.quantizer.codebook.norm(dim=-1).max()
            vectors = model.encoder(batch).norm(dim=1).max()
        farthest = max(farthest, float(codes / vectors))
    model.eval()
    return model, farthest


def codes_used(model):
    return metrics.evaluate_reconstruction(model, data.digits().train).use[0].codes_used


def test_the_codebook_is_used_whole_and_stays_with_the_data():
    model, farthest = trained()
    assert codes_used(model) >= 0.9 * CODES
    assert farthest <= 10


def test_a_start_from_sums_without_counts_would_fail():
    """So the test above can fail: the same model with that start leaves most codes unused."""
    model, farthest = trained(CopiedEMA(16))
    assert codes_used(model) < 0.5 * CODES
    assert farthest > 1000
