"""``LFQ`` and ``BSQ``: the contract, entropies against brute force, the peer and its defects."""

import copy
import math
import pickle

import pytest
import torch
import vector_quantize_pytorch as peer
from torch.utils._python_dispatch import TorchDispatchMode

from fastvq import BSQ, LFQ, testing
from fastvq.nn import _bit_entropy
from fastvq.testing.contract import QuantizerContract

from .processes import run_two


class TestContract(QuantizerContract):
    training_compiler = "inductor"

    def make(self, channel_dim=-1):
        return LFQ(2**7, self.dim, channel_dim=channel_dim)


class TestContractWithoutProjections(QuantizerContract):
    """And with groups of bits of unequal size."""

    compiler = "aot_eager"

    def make(self, channel_dim=-1):
        return LFQ(2**16, group_bits=6, channel_dim=channel_dim)

    def test_checkpoint_of_another_shape_is_refused(self):
        # there is no state that could have another shape
        assert self.make().state_dict() == {}


class TestContractOnTheSphere(QuantizerContract):
    compiler = "aot_eager"

    def make(self, channel_dim=-1):
        return BSQ(2**7, self.dim, channel_dim=channel_dim)


def every_code(bits, scale=1.0):
    places = 2 ** torch.arange(bits - 1, -1, -1)
    return ((torch.arange(2**bits).unsqueeze(-1) // places % 2) * 2.0 - 1).double() * scale


def brute_force(z, codes, temperature):
    """Both entropies in float64, from the softmax over all codes."""
    distances = (z.double().unsqueeze(1) - codes).square().sum(-1)
    # in logarithms: x log x has no derivative at the zeros of a softmax
    p = torch.log_softmax(-temperature * distances, dim=-1)
    mean = torch.logsumexp(p, dim=0) - math.log(len(p))
    return -(p.exp() * p).sum(-1).mean(), -(mean.exp() * mean).sum()


def test_values_by_hand():
    lfq = LFQ(8, entropy_weight=0.0, commitment_weight=0.25)
    x = torch.tensor([[0.5, -2.0, 0.1], [-0.1, 0.0, -9.0], [1.0, 1.0, 1.0]])
    quantized, indices, loss = lfq(x)
    assert quantized.tolist() == [[1, -1, 1], [-1, -1, -1], [1, 1, 1]]
    assert indices.tolist() == [0b101, 0b000, 0b111]
    squares = 0.5**2 + 1 + 0.9**2 + 0.9**2 + 1 + 8**2
    assert loss.item() == pytest.approx(0.25 * squares / 9)
    quantized, indices, _ = BSQ(16)(torch.tensor([[3.0, -0.1, 0.1, -7.0]]))
    assert quantized.tolist() == [[0.5, -0.5, 0.5, -0.5]]
    assert indices.tolist() == [0b1010]


@pytest.mark.parametrize("kind", [LFQ, BSQ])
@pytest.mark.parametrize("bits", [1, 2, 7, 10])
def test_every_code_is_its_own_code_and_is_reached(kind, bits):
    quantizer, every = kind(2**bits), torch.arange(2**bits)
    codes = quantizer.decode(every)
    scale = bits**-0.5 if kind is BSQ else 1.0
    testing.assert_within(codes, every_code(bits, scale), 1e-7)
    assert torch.equal(quantizer.encode(codes * 3), every)
    assert torch.equal(quantizer(codes).quantized, codes)
    assert quantizer.encode(torch.randn(20_000, bits)).unique().numel() == 2**bits


@pytest.mark.parametrize("kind", [LFQ, BSQ])
@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("temperature", [0.3, 2.0, 100.0])
def test_entropies_are_those_of_all_codes(kind, bits, temperature):
    """Value and gradient, against the softmax over every code in float64."""
    weights = {"entropy_weight": 0.7, "diversity": 1.3, "commitment_weight": 0.4}
    quantizer = kind(2**bits, inverse_temperature=temperature, **weights)
    x = torch.randn(60, bits) * 0.7
    z = x.double().requires_grad_()
    soft = torch.nn.functional.normalize(z, dim=-1) if kind is BSQ else z
    scale = bits**-0.5 if kind is BSQ else 1.0
    unsure, spread = brute_force(soft, every_code(bits, scale), temperature)
    codes = torch.where(soft > 0, 1.0, -1.0).double() * scale
    expected = 0.7 * (unsure - 1.3 * spread) + 0.4 * (soft - codes).square().mean()
    (expected_grad,) = torch.autograd.grad(expected, z)
    x.requires_grad_()
    loss = quantizer(x).loss
    (grad,) = torch.autograd.grad(loss, x)
    # float32 logits are rounded to 4 tau |z| 2^-24, which is what their sigmoid is then off by
    testing.assert_within(loss, expected.detach(), 1e-5)
    testing.assert_within(grad, expected_grad, 1e-5 * max(1.0, expected_grad.abs().max().item()))
    wide = quantizer.double()(z)
    (grad,) = torch.autograd.grad(wide.loss, z)
    testing.assert_within(wide.loss, expected.detach(), 1e-12)
    testing.assert_within(grad, expected_grad, 1e-12 * max(1.0, temperature))


def test_batch_entropy_by_groups():
    """Seven bits in groups of three or fewer: the entropies of their own codes, added up."""
    z = torch.randn(80, 7, dtype=torch.float64) * 0.5
    logits, ones = 4 * z, z.new_ones(80)
    grouped = _bit_entropy.batch_entropy(logits, ones, 3, share=False)
    parts = [brute_force(part, every_code(part.shape[1]), 1.0)[1] for part in z.split([3, 2, 2], 1)]
    testing.assert_within(grouped, torch.stack(parts).sum(), 1e-12)
    exact = _bit_entropy.batch_entropy(logits, ones, 7, share=False)
    testing.assert_within(exact, brute_force(z, every_code(7), 1.0)[1], 1e-12)
    # the entropy of the whole is at most the sum of the entropies of its parts
    assert exact < grouped


def test_groups_that_are_independent_are_exact():
    # all pairs of two halves: over this batch the halves know nothing of each other
    half = torch.randn(9, 3, dtype=torch.float64)
    z = torch.cat([half.repeat_interleave(9, 0), half.flip(0).repeat(9, 1)], dim=1)
    logits, ones = 4 * z, z.new_ones(81)
    exact = _bit_entropy.batch_entropy(logits, ones, 6, share=False)
    testing.assert_within(_bit_entropy.batch_entropy(logits, ones, 3, share=False), exact, 1e-12)


def test_chunks_change_nothing(monkeypatch):
    logits, weights = torch.randn(300, 9, dtype=torch.float64), torch.rand(300).double()
    logits.requires_grad_()
    cotangent = torch.randn(2**9, dtype=torch.float64)
    whole = _bit_entropy.code_sums(logits, weights)
    (grad,) = torch.autograd.grad(whole, logits, cotangent)
    monkeypatch.setattr(_bit_entropy, "_WORKSPACE", 500)
    parts = _bit_entropy.code_sums(logits, weights)
    testing.assert_within(parts, whole.detach(), 1e-12)
    testing.assert_within(torch.autograd.grad(parts, logits, cotangent)[0], grad, 1e-12)


@pytest.mark.parametrize("shape", [(40, 5), (1, 1), (0, 4)], ids=str)
def test_code_sums_is_an_op(shape):
    logits = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(shape[0]).double()
    torch.library.opcheck(_bit_entropy.code_sums, (logits, weights))
    assert torch.autograd.gradcheck(lambda x: _bit_entropy.code_sums(x, weights), (logits,))


def test_memory_does_not_grow_with_vectors_times_codes():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, list | tuple) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.numel = max(self.numel, tensor.numel())
            return out

    logits, weights, grad = torch.randn(20_000, 16), torch.ones(20_000), torch.randn(2**16)
    with Largest() as largest:
        _bit_entropy.code_sums._init_fn(logits, weights)
        _bit_entropy._code_sums_backward._init_fn(grad, logits, weights)
    # beside the inputs, the workspace of a chunk: N K would be 1.3e9
    assert largest.numel <= max(logits.numel(), _bit_entropy._WORKSPACE)


def test_straight_through_gradient():
    x = torch.randn(40, 6, requires_grad=True)
    lfq = LFQ(2**6, entropy_weight=0.0, commitment_weight=0.7)
    quantized, _, loss = lfq(x)
    cotangent = torch.randn_like(x)
    ((quantized * cotangent).sum() + 3 * loss).backward()
    expected = cotangent + 3 * 0.7 * 2 / x.numel() * (x - x.sign()).detach()
    testing.assert_within(x.grad, expected.double(), 1e-6)
    y = torch.randn(40, 6, requires_grad=True)
    bsq = BSQ(2**6, entropy_weight=0.0, commitment_weight=0.0)
    (bsq(y).quantized * cotangent).sum().backward()
    (expected,) = torch.autograd.grad(torch.nn.functional.normalize(y, dim=-1), y, cotangent)
    testing.assert_within(y.grad, expected.double(), 1e-6)


@pytest.mark.parametrize("spherical", [False, True])
def test_is_the_peers(spherical):
    """Codes and quantized vectors; and the loss, where the peer's clamped logarithm allows."""
    theirs = peer.LFQ(dim=16, codebook_size=2**6, spherical=spherical, commitment_loss_weight=0.25)
    ours = (BSQ if spherical else LFQ)(2**6, 16, commitment_weight=0.25)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k != "mask"})
    x = torch.randn(4, 100, 16)
    expected, ours_out = theirs(x), ours(x)
    assert torch.equal(ours_out.indices, expected.indices)
    testing.assert_within(ours_out.quantized, expected.quantized.double(), 1e-6)
    assert torch.equal(ours.decode(ours_out.indices), ours.eval()(x).quantized)
    # the peer takes log(max(p, 1e-5)): 64 codes times 1e-5 times a logarithm is what that can move
    testing.assert_within(ours_out.loss, expected.entropy_aux_loss.double(), 0.1 * 2e-2)


def test_the_entropy_of_many_codes_is_not_cut_off():
    # a peer's log(max(p, 1e-5)) is constant once K codes are used evenly and K > 1e5: no gradient
    lfq = LFQ(2**18, entropy_weight=1.0, commitment_weight=0.0, inverse_temperature=0.01)
    x = torch.randn(64, 18)
    full = -lfq(x).loss + _bit_entropy.bit_entropies(0.04 * x).sum(-1).mean()
    assert full.item() == pytest.approx(18 * math.log(2), abs=0.01)
    p = torch.full((2**18,), 2.0**-18)
    peers = (-p * p.clamp(min=1e-5).log()).sum()
    assert peers < full - 0.9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [LFQ, BSQ])
def test_half_precision_is_stable(kind, dtype):
    # NaN for peers: lucidrains/vector-quantize-pytorch PR#85, #196
    quantizer, wide = kind(2**10), kind(2**10)
    # below a thousandth the gradient of the normalization is itself beyond float16
    for size in (*([1e-7] if kind is LFQ else []), 1e-3, 1.0, 100.0, 60000.0):
        x = (torch.randn(50, 10) * size).clamp(-65000, 65000).to(dtype).requires_grad_()
        y = x.detach().float().requires_grad_()
        out, expected = quantizer.to(dtype)(x), wide(y)
        out.loss.backward()
        expected.loss.backward()
        assert out.loss.dtype == torch.float32
        assert torch.equal(out.loss, expected.loss)
        assert torch.isfinite(out.loss)
        assert torch.equal(out.indices, expected.indices)
        assert torch.equal(x.grad, y.grad.to(dtype))
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_training_under_autocast_stays_finite(dtype):
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU(), LFQ(2**10, 32))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        x = torch.randn(128, 32)
        with torch.autocast("cpu", dtype=dtype):
            out = model(x)
            loss = (out.quantized - x).square().mean() + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_autocast_leaves_the_loss_alone():
    lfq, x = LFQ(2**10, inverse_temperature=1.0), torch.randn(200, 10)
    plain = lfq(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = lfq(x)
    assert torch.equal(plain.loss, cast.loss)
    assert torch.equal(plain.indices, cast.indices)


def test_the_loss_spreads_the_codes_and_makes_them_sure():
    """A collapsed start: all vectors in one orthant, pulled apart by the entropy alone.

    Descent from one orthant does not find all 64; three quarters is far from where it starts.
    """
    for kind, temperature in ((LFQ, 1.0), (BSQ, 4.0)):
        x = (1.0 + 0.1 * torch.randn(256, 6)).requires_grad_()
        quantizer = kind(
            2**6, entropy_weight=1.0, commitment_weight=0.0, inverse_temperature=temperature
        )
        assert quantizer.encode(x).unique().numel() == 1
        optimizer = torch.optim.Adam([x], 0.05)
        for _ in range(200):
            optimizer.zero_grad()
            quantizer(x).loss.backward()
            optimizer.step()
        assert quantizer.encode(x).unique().numel() >= 48


def test_mask():
    lfq = LFQ(2**6, 8, inverse_temperature=1.0)
    x, mask = torch.randn(3, 7, 8), torch.rand(3, 7) > 0.4
    x[~mask] = torch.nan
    x.requires_grad_()
    quantized, indices, loss = lfq(x, mask)
    (quantized.sum() + loss).backward()
    assert (indices[~mask] == -1).all()
    assert (quantized[~mask] == 0).all()
    assert (x.grad[~mask] == 0).all()
    assert all(torch.isfinite(p.grad).all() for p in lfq.parameters())
    kept = lfq(x[mask])
    assert loss.item() == pytest.approx(kept.loss.item(), rel=1e-5)
    assert torch.equal(indices[mask], kept.indices)
    assert lfq(x, torch.zeros_like(mask)).loss == 0


def test_a_bad_row_spoils_its_own_gradient_alone():
    lfq, x = LFQ(2**6, inverse_temperature=1.0), torch.randn(20, 6)
    x[3, 2], x[7, 0] = torch.nan, -torch.inf
    good = torch.isfinite(x).all(-1)
    x.requires_grad_()
    quantized, indices, loss = lfq(x)
    (quantized.sum() + loss).backward()
    assert loss.isnan()
    assert indices[3] == indices[7] == 0
    assert torch.isfinite(x.grad).all()
    y = x.detach()[good].requires_grad_()
    out = lfq(y)
    (out.quantized.sum() + out.loss).backward()
    testing.assert_within(x.grad[good], y.grad.double(), 1e-6)


def test_huge_vectors_are_sure_of_their_codes():
    # the logit of a bit overflows; its entropy is 0 and not 0 times Inf
    lfq = LFQ(2**6, inverse_temperature=1e30, diversity=0.0, commitment_weight=0.0)
    x = (torch.randn(20, 6) * 1e15).requires_grad_()
    loss = lfq(x).loss
    loss.backward()
    assert loss == 0
    assert (x.grad == 0).all()


def test_sphere_is_copied_and_pickled():
    # a peer's spherical LFQ holds a lambda and cannot be
    bsq, x = BSQ(2**6), torch.randn(5, 6)
    for other in (pickle.loads(pickle.dumps(bsq)), copy.deepcopy(bsq)):
        assert torch.equal(other(x).quantized, bsq(x).quantized)


def test_codes_beyond_32_bits():
    lfq = LFQ(2**62, group_bits=8)
    x = torch.randn(10, 62).bfloat16()
    quantized, indices, loss = lfq(x)
    expected = [int("".join("1" if v > 0 else "0" for v in row), 2) for row in x.tolist()]
    assert indices.tolist() == expected
    assert torch.equal(lfq.decode(indices), quantized.float())
    assert torch.isfinite(loss)


def _loss_and_gradient(rank, meet, x):
    x = x[rank].requires_grad_()
    lfq = LFQ(2**6, inverse_temperature=1.0)
    meet()
    loss = lfq(x).loss
    loss.backward()
    # evaluation on one process alone must not wait for the other
    if rank == 0:
        lfq.eval()(x.detach())
    return {"loss": loss.detach(), "grad": x.grad}


def test_two_processes_have_the_entropy_of_their_joint_batch(tmp_path):
    x = torch.randn(2, 30, 6)
    parts = run_two(_loss_and_gradient, tmp_path, x)
    joint = x.flatten(0, 1).requires_grad_()
    loss = LFQ(2**6, inverse_temperature=1.0)(joint).loss
    loss.backward()
    testing.assert_within((parts[0]["loss"] + parts[1]["loss"]) / 2, loss.detach().double(), 1e-5)
    # averaged over the processes, as DistributedDataParallel does
    grad = torch.cat([part["grad"] for part in parts]) / 2
    testing.assert_within(grad, joint.grad.double(), 1e-6)


@pytest.mark.parametrize("kind", [LFQ, BSQ])
@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"codebook_size": 100}, ValueError, "power of two, 2 or more, got 100; the next.* 128"),
        ({"codebook_size": 1}, ValueError, "got 1; the next one is 2"),
        ({"codebook_size": 64.0}, TypeError, "codebook_size must be an int"),
        ({"codebook_size": 2**63}, ValueError, "below 2"),
        ({"codebook_size": 64, "group_bits": 0}, ValueError, "group_bits must be at least 1"),
        ({"codebook_size": 64, "group_bits": 30}, ValueError, "group_bits must be at most 24"),
        ({"codebook_size": 64, "entropy_weight": -1}, ValueError, "entropy_weight must be in"),
        ({"codebook_size": 64, "spherical": True}, TypeError, "spherical"),
    ],
)
def test_bad_arguments(kind, arguments, error, text):
    with pytest.raises(error, match=text):
        kind(**arguments)
