"""Two processes end with one codebook, and it is that of their joint batch."""

import torch

import fastvq
from fastvq import testing

from .processes import run_two


def _levels():
    """Two levels of codes."""
    return torch.randn(2, 10, 6, generator=torch.Generator().manual_seed(2)) * torch.tensor(
        [1.0, 0.5]
    ).view(2, 1, 1)


def _diverse():
    """One whose loss is the use of its codes, by all processes."""
    learning = fastvq.Gradient(0.0, (fastvq.Diversity(1.0, 2.0),))
    return fastvq.ResidualVQ(
        6, 10, 2, start=fastvq.Given(_levels()), learning=learning, commitment_weight=0.0
    )


def _train(rank, meet):
    start = torch.randn(10, 6, generator=torch.Generator().manual_seed(1))
    given = fastvq.VectorQuantizer(6, 10, start=fastvq.Given(start), revival=None)
    living = fastvq.VectorQuantizer(6, 30, learning=fastvq.EMA(0.5))
    levels = fastvq.ResidualVQ(6, 10, 2, start=fastvq.Given(_levels()), revival=None)
    living_levels = fastvq.ResidualVQ(6, 30, 2, learning=fastvq.EMA(0.5))
    shared = fastvq.ResidualVQ(6, 30, 2, learning=fastvq.EMA(0.5), shared_codebook=True)
    groups = fastvq.GroupedResidualVQ(6, 10, 2, 2, learning=fastvq.EMA(0.5))
    diverse = _diverse()
    meet()
    torch.manual_seed(100 + rank)
    batches = [torch.randn(40, 6) for _ in range(5)]
    for step, x in enumerate(batches):
        given(x)
        levels(x)
        # an empty batch on one process must not leave the other waiting
        some = x[:0] if step == 3 and rank == 0 else x
        living(some)
        living_levels(some)
        shared(some)
        groups(some)
    quantizers = {"given": given, "living": living, "levels": levels, "live levels": living_levels}
    quantizers |= {"shared": shared, "groups": groups}
    state = {name: quantizer.codebook for name, quantizer in quantizers.items()}
    leaf = batches[0].clone().requires_grad_()
    loss = diverse(leaf).loss
    loss.backward()
    if rank == 0:
        diverse.eval()(leaf)  # which waits for nobody
    state |= {"diversity": loss.detach(), "gradient": leaf.grad}
    return {**state, "batches": torch.stack(batches)}


def test_two_processes_share_one_codebook(tmp_path):
    first, second = run_two(_train, tmp_path)
    for name in ("given", "living", "levels", "live levels", "shared", "groups"):
        assert torch.equal(first[name], second[name]), name

    start = torch.randn(10, 6, generator=torch.Generator().manual_seed(1))
    alone = fastvq.VectorQuantizer(6, 10, start=fastvq.Given(start), revival=None)
    levels = fastvq.ResidualVQ(6, 10, 2, start=fastvq.Given(_levels()), revival=None)
    for x, y in zip(first["batches"], second["batches"], strict=True):
        alone(torch.cat([x, y]))
        levels(torch.cat([x, y]))
    testing.assert_within(first["given"], alone.codebook.double(), 1e-6)
    testing.assert_within(first["levels"], levels.codebook.double(), 1e-6)

    joint = torch.cat([part["batches"][0] for part in (first, second)]).requires_grad_()
    loss = _diverse()(joint).loss
    loss.backward()
    for part in (first, second):
        testing.assert_within(part["diversity"], loss.detach().double(), 1e-6)
    # as gradients are averaged over the processes
    gradient = torch.cat([part["gradient"] for part in (first, second)]) / 2
    testing.assert_within(gradient, joint.grad.double(), 1e-6)
