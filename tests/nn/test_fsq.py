"""``FSQ``: the shared contract, then the paper's formulas, its peer, and the defects of peers."""

import math

import pytest
import torch
import vector_quantize_pytorch as peer

from fastvq import FSQ, testing
from fastvq.testing.contract import QuantizerContract


class TestContract(QuantizerContract):
    def make(self, channel_dim=-1):
        return FSQ([8, 6, 5], self.dim, channel_dim=channel_dim)


class TestContractWithoutProjections(QuantizerContract):
    compiler = "aot_eager"

    dim = 5

    def make(self, channel_dim=-1):
        return FSQ([8, 5, 5, 5, 3], channel_dim=channel_dim)

    def test_checkpoint_of_another_shape_is_refused(self):
        # there is no state that could have another shape
        assert self.make().state_dict() == {}


def test_values_by_hand():
    """Three levels and four: what tanh maps where, and the index that follows."""
    fsq = FSQ([3, 4])
    x = torch.tensor([[0.0, 0.0], [9.0, 9.0], [-9.0, -9.0], [0.5, 0.6], [0.6, 0.5], [0.0, -0.7]])
    quantized, indices, loss = fsq(x)
    # channel 0 turns at tanh(z) = 0.5 / 1.001, z = 0.549. Channel 1 has reach 1.5015 and shift
    # artanh(1 / 3.003) = 0.346, so it turns where tanh(z + 0.346) is 1 / 1.5015, 0 and -1 / 1.5015,
    # that is at z = 0.457, -0.346 and -1.150
    by_hand = [[0, 0], [1, 0.5], [-1, -1], [0, 0.5], [1, 0.5], [0, -0.5]]
    assert torch.equal(quantized, torch.tensor(by_hand))
    assert indices.tolist() == [1 + 3 * 2, 2 + 3 * 3, 0, 1 + 3 * 3, 2 + 3 * 3, 1 + 3 * 1]
    assert loss.shape == ()
    assert loss == 0


@pytest.mark.parametrize("levels", [[3], [8, 6, 5], [7, 5, 5, 5, 5], [4, 3, 9]], ids=str)
def test_every_code_is_its_own_code_and_is_reached(levels):
    fsq = FSQ(levels)
    every = torch.arange(math.prod(levels))
    codes = fsq.decode(every)
    assert codes.unique(dim=0).shape == codes.shape
    # the point whose bound is the code, from the definition: tanh undone
    counts = torch.tensor(levels, dtype=torch.float64)
    reach, offset = (counts - 1) * 1.001 / 2, (1 - counts % 2) / 2
    bounded = codes.double() * (counts // 2)
    x = torch.atanh((bounded + offset) / reach) - torch.atanh(offset / reach)
    assert torch.equal(fsq.encode(x), every)
    assert torch.equal(fsq(x.float()).quantized, codes)


def test_zero_is_a_level():
    for count in range(3, 40):
        quantized, indices, _ = FSQ([count])(torch.zeros(1, 1))
        assert quantized == 0
        assert indices == count // 2


def test_is_the_peers():
    for levels in ([8, 6, 5], [7, 5, 5, 5, 5], [8, 8, 8, 5, 5, 5]):
        ours, theirs = FSQ(levels, 16), peer.FSQ(levels, 16)
        ours.load_state_dict(theirs.state_dict())
        x, y = (torch.randn(4, 500, 16).requires_grad_() for _ in range(2))
        y.data.copy_(x.data)
        quantized, indices, _ = ours(x)
        expected, expected_indices = theirs(y)
        assert torch.equal(indices, expected_indices.long())
        # the peer adds the rounding to its input and subtracts it again, which is not exact
        testing.assert_within(quantized, expected.double(), 1e-6)
        cotangent = torch.randn_like(quantized)
        (quantized * cotangent).sum().backward()
        (expected * cotangent).sum().backward()
        testing.assert_within(x.grad, y.grad.double(), 1e-6)
        testing.assert_within(ours.decode(indices), expected.double(), 1e-6)


def test_straight_through_gradient():
    fsq = FSQ([8, 5]).double()
    x = torch.randn(50, 2, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn_like(x)
    (fsq(x).quantized * cotangent).sum().backward()
    reach = torch.tensor([7 * 1.001 / 2, 4 * 1.001 / 2], dtype=torch.float64)
    shift = torch.tensor([math.atanh(0.5 / reach[0]), 0.0], dtype=torch.float64)
    slope = (1 - torch.tanh(x.detach() + shift) ** 2) * reach
    testing.assert_within(x.grad, cotangent * slope / torch.tensor([4, 2]), 1e-12)
    # and the bound itself is differentiated rightly
    assert torch.autograd.gradcheck(lambda x: fsq._cut(x)[0], (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "levels", [[8, 6, 5], [1024] * 6, [3] * 39, [65536] * 3, [4] * 16], ids=lambda v: str(v[:3])
)
def test_indices_are_exact_in_every_dtype(dtype, levels):
    """Peers put the index together in the model's floats: bfloat16 holds integers up to 256."""
    fsq = FSQ(levels).to(dtype)
    size = math.prod(levels)
    assert fsq.codebook_size == size < 2**63
    # by digits, in Python's integers
    digits = [[int(torch.randint(count, ())) for count in levels] for _ in range(200)]
    expected, place = [0] * 200, 1
    for j, count in enumerate(levels):
        expected = [e + row[j] * place for e, row in zip(expected, digits, strict=True)]
        place *= count
    indices = torch.tensor([*expected, size - 1])
    found = indices.unsqueeze(-1) // fsq._places % fsq._levels
    assert found[:200].tolist() == digits
    codes = fsq.decode(indices)
    assert codes.dtype == dtype
    exact = (found - torch.tensor(levels) // 2) / (torch.tensor(levels, dtype=torch.float64) // 2)
    assert torch.equal(codes, exact.to(torch.float32).to(dtype))
    # forward on the same latents gives the index of float32, whatever it returns vectors in
    x = torch.randn(300, len(levels)).to(dtype)
    assert torch.equal(fsq.encode(x), FSQ(levels).encode(x.float()))
    assert torch.equal(fsq.decode(fsq.encode(x)), fsq(x).quantized)


def test_bfloat16_reaches_every_code():
    # half of them for a peer: lucidrains/vector-quantize-pytorch#114
    fsq = FSQ([8, 5, 5, 5]).to(torch.bfloat16)
    x = (torch.randn(200_000, 4) * 1.5).to(torch.bfloat16)
    assert fsq.encode(x).unique().numel() == 1000


def test_no_table_of_codes_is_built():
    # 34 GB for a peer: lucidrains/vector-quantize-pytorch PR#137
    fsq = FSQ([4] * 16)
    assert fsq.codebook_size == 4**16
    assert sum(buffer.numel() for buffer in fsq.buffers()) < 100
    quantized, indices, _ = fsq(torch.randn(5, 16))
    assert torch.equal(fsq.decode(indices), quantized)


@pytest.mark.parametrize("count", [999, 1001, 1002, 4095, 4096, 65536])
def test_many_levels_stay_in_range(count):
    # the margin beyond the outermost level grows with their number and would reach the next one
    fsq = FSQ([count])
    indices = fsq.encode(torch.linspace(-12, 12, 100_001).unsqueeze(-1))
    assert indices.min() == 0
    assert indices.max() == count - 1
    assert (indices.diff() >= 0).all()


def test_mask():
    fsq = FSQ([8, 6, 5], 8)
    x, mask = torch.randn(3, 7, 8), torch.rand(3, 7) > 0.4
    x[~mask] = torch.nan
    x.requires_grad_()
    quantized, indices, loss = fsq(x, mask)
    (quantized.sum() + loss).backward()
    assert (indices[~mask] == -1).all()
    assert (quantized[~mask] == 0).all()
    assert loss == 0
    assert (x.grad[~mask] == 0).all()
    assert all(torch.isfinite(p.grad).all() for p in fsq.parameters())
    assert torch.equal(indices[mask], fsq.encode(x[mask]))
    assert torch.equal(fsq.decode(indices), quantized)


def test_a_bad_row_gets_index_zero_and_shows_in_the_loss():
    fsq, x = FSQ([8, 6, 5]), torch.randn(4, 3)
    x[1, 2], x[2, 0] = torch.nan, torch.inf
    x.requires_grad_()
    quantized, indices, loss = fsq(x)
    assert indices[1] == indices[2] == 0
    assert torch.equal(quantized[1], fsq.decode(torch.tensor(0)))
    assert loss.isnan()
    quantized.sum().backward()
    assert (x.grad[1:3] == 0).all()
    assert torch.isfinite(x.grad).all()


def test_a_graph_contains_bad_rows_as_well():
    # eager looks at the data on the CPU and skips what finite data does not need; a graph cannot
    torch.compiler.reset()
    fsq, x = FSQ([8, 6, 5]), torch.randn(40, 3)
    compiled = torch.compile(fsq, fullgraph=True)
    assert compiled(x).loss == 0
    x[1, 2], x[2, 0] = torch.nan, torch.inf
    x.requires_grad_()
    quantized, indices, loss = compiled(x)
    quantized.sum().backward()
    assert torch.equal(indices, fsq.encode(x))
    assert indices[1] == indices[2] == 0
    assert loss.isnan()
    assert torch.isfinite(x.grad).all()


def test_decode_of_no_code_is_zero():
    for fsq in (FSQ([8, 6, 5], 8), FSQ([8, 6, 5])):
        assert fsq.decode(torch.tensor([[-1, 3]]))[0, 0].abs().max() == 0


def test_a_sequence_with_four_dimensions_keeps_its_layout():
    # peers take every input of four dimensions for an image
    fsq, x = FSQ([8, 6, 5]), torch.randn(2, 4, 5, 3)
    assert torch.equal(fsq(x).indices.flatten(), fsq(x.reshape(-1, 3)).indices)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([],), ValueError, "levels must hold at least one number"),
        (([8, 2],), ValueError, r"in \[3, 65536\], got 2; a channel of two levels is a bit: use L"),
        (([8, 1],), ValueError, r"in \[3, 65536\], got 1$"),
        (([70000],), ValueError, "got 70000"),
        (([8.0],), TypeError, "each of levels must be an int, got float"),
        (([8] * 21,), ValueError, "below 2.*63, got 9223372036854775808"),
        (([8, 6], 0), ValueError, "dim must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        FSQ(*arguments)


def test_bad_mask():
    with pytest.raises(ValueError, match=r"mask must be \[3, 7\].*got \[3\]"):
        FSQ([8, 6, 5])(torch.randn(3, 7, 3), torch.ones(3, dtype=torch.bool))
