"""Every kind of quantizer on every backend: a step of training and an eval, as by reference."""

import pytest
import torch

import fastvq
from fastvq import (
    EMA,
    IBQ,
    Given,
    Gradient,
    GroupedResidualVQ,
    GumbelVQ,
    KMeans,
    MultiScaleVQ,
    ProjectedResidualVQ,
    QINCo,
    RandomProjectionQuantizer,
    ResidualSimVQ,
    ResidualVQ,
    SimVQ,
    Uniform,
    VectorQuantizer,
    testing,
)

from ..conftest import using


def given(*leading):
    return Given(torch.randn(*leading, 6, 4, generator=torch.Generator().manual_seed(3)))


QUANTIZERS = {
    "ema": lambda: VectorQuantizer(4, 6, start=given(), learning=EMA(0.5)),
    "k-means and revival": lambda: VectorQuantizer(4, 6, start=KMeans(iterations=2)),
    "cosine": lambda: VectorQuantizer(4, 6, start=given(), metric="cosine", learning=Gradient()),
    "dot": lambda: VectorQuantizer(4, 6, start=given(), metric="dot", learning=EMA()),
    "heads": lambda: VectorQuantizer(8, 6, start=given(2), heads=2, gradient="rotation"),
    "diveq": lambda: VectorQuantizer(
        4, 6, start=given(), learning=Gradient(), gradient="diveq", codebook_dim=4
    ),
    "residual": lambda: ResidualVQ(4, 6, 2, start=given(2), learning=EMA(0.5), gradient="rotation"),
    "shared": lambda: ResidualVQ(4, 6, 2, start=given(), learning=Gradient(), shared_codebook=True),
    "grouped": lambda: GroupedResidualVQ(8, 6, 2, 2, start=Uniform(), learning=Gradient()),
    "projected": lambda: ProjectedResidualVQ(4, 6, 2, codebook_dim=3, start=Uniform()),
    "simvq": lambda: SimVQ(4, 6, codebook_dim=3),
    "residual simvq": lambda: ResidualSimVQ(4, 6, 2, codebook_dim=3),
    "qinco": lambda: QINCo(4, 6, 2, blocks=1, hidden=5, start=given(2)),
    "multi-scale": lambda: MultiScaleVQ(4, 6, [(1,), (3,)], start=given(), channel_dim=-1),
    "ibq": lambda: IBQ(4, 6),
    "gumbel": lambda: GumbelVQ(4, 6),
    "random projection": lambda: RandomProjectionQuantizer(4, 6, 3, num_codebooks=2),
}


def trained(make):
    """What a step and an eval give, and what they leave: indices, and the rest by name."""
    torch.manual_seed(0)
    quantizer, x = make(), torch.randn(2, 10, 8)
    optimizer = torch.optim.SGD([*quantizer.parameters(), torch.nn.Parameter(torch.zeros(1))], 0.1)
    indices, values = [], {}
    for step, mode in enumerate((True, False)):
        quantizer.train(mode)
        part = x[..., : quantizer.dim].clone().requires_grad_()
        out = quantizer(part)
        if isinstance(out, torch.Tensor):  # labels, with nothing to learn
            indices.append(out)
            continue
        optimizer.zero_grad()
        (out.quantized.square().sum() + out.loss).backward()
        optimizer.step()
        indices += out.indices if isinstance(out.indices, tuple | list) else [out.indices]
        values |= {f"{step} x": part.grad, f"{step} quantized": out.quantized, f"{step}": out.loss}
    return indices, values | quantizer.state_dict()


@pytest.mark.parametrize("name", ["native", "triton"])
@pytest.mark.parametrize("make", QUANTIZERS.values(), ids=QUANTIZERS.keys())
def test_training_and_eval_are_those_of_the_reference(make, name):
    with fastvq.use_backend("reference"):
        expected_indices, expected = trained(make)
    with using(name):
        indices, values = trained(make)
    for a, b in zip(indices, expected_indices, strict=True):
        assert torch.equal(a, b)
    for key, value in expected.items():
        budget = 1e-5 * (1 + value.double().abs().max())
        testing.assert_within(values[key].detach().float(), value.detach().double(), budget)
