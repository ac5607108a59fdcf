"""EnCodec's and Mimi's residual quantizers by their names, against those of transformers."""

from __future__ import annotations

import copy
import importlib
import pickle
from types import SimpleNamespace

import pytest
import torch

import fastvq
from fastvq import testing
from fastvq.compat import adapters

CONFIG = SimpleNamespace(
    codebook_size=64,
    codebook_dim=16,
    hidden_size=24,
    vector_quantization_hidden_dimension=16,
    frame_rate=100,
    num_quantizers=4,
    num_semantic_quantizers=1,
)
SAME_WIDTH = SimpleNamespace(**{**vars(CONFIG), "hidden_size": 16})
KINDS = {
    "encodec": ("encodec", "EncodecResidualVectorQuantizer", CONFIG),
    "mimi": ("mimi", "MimiResidualVectorQuantizer", CONFIG),
    "mimi plain": ("mimi", "MimiResidualVectorQuantizer", SAME_WIDTH),
    "mimi split": ("mimi", "MimiSplitResidualVectorQuantizer", CONFIG),
}


@pytest.fixture(params=KINDS)
def name(request):
    return request.param


def twins(name):
    """The library's quantizer with random weights, and the adapter that has loaded them."""
    family, kind, config = KINDS[name]
    library = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    theirs, ours = getattr(library, kind)(config).eval(), getattr(adapters, kind)(config).eval()
    for key, buffer in theirs.named_buffers():
        if key.endswith((".embed", ".embed_sum")):
            # finer from level to level, as residuals are
            buffer.normal_(std=0.7 ** int(key.split("layers.")[1].split(".")[0]))
        if key.endswith("cluster_usage"):
            buffer.uniform_(0.5, 2)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def batch(name):
    return torch.randn(3, 16 if name in ("encodec", "mimi plain") else 24, 50)


def amounts(name):
    """What encode may be asked for: kbit/s, of 0.6 a level, or levels."""
    return (None, 0.1, 1.2, 1.9, 99.0) if name == "encodec" else (None, 1, 2, 4)


def parts(name, quantizer, x):
    """Rows, codebooks and the range of levels of each residual quantizer in it."""
    if name == "encodec":
        return [(x, [layer.codebook.embed for layer in quantizer.layers], slice(0, 4))]
    halves, start, found = [quantizer], 0, []
    if name == "mimi split":
        halves = [
            quantizer.semantic_residual_vector_quantizer,
            quantizer.acoustic_residual_vector_quantizer,
        ]
    for half in halves:
        y = x if half.input_proj is None else half.input_proj(x)
        books = [layer.codebook.embed for layer in half.layers]
        found.append((y, books, slice(start, start + len(books))))
        start += len(books)
    return found


@torch.no_grad()
def test_the_same_codes(name, assert_same_levels):
    theirs, ours = twins(name)
    x = batch(name)
    for amount in amounts(name):
        expected, actual = theirs.encode(x, amount), ours.encode(x, amount)
        assert expected.shape == actual.shape
        assert actual.is_contiguous()
        assert (expected == actual).double().mean() > 0.99
    for y, books, levels in parts(name, theirs, x):
        rows = y.transpose(1, 2).flatten(0, 1)
        both = (codes[levels].flatten(1) for codes in (theirs.encode(x), ours.encode(x)))
        assert_same_levels(rows, books, *both)


@torch.no_grad()
def test_the_same_vectors(name):
    theirs, ours = twins(name)
    codes = theirs.encode(batch(name))  # [Q, B, T]
    for levels in range(1, 5):
        some = codes[:levels] if name == "encodec" else codes[:levels].transpose(0, 1)
        expected, actual = theirs.decode(some), ours.decode(some)
        # the projection sums 16 products in another order
        testing.assert_within(actual, expected.double(), 1e-6)


def test_checkpoints_go_both_ways(name):
    theirs, ours = twins(name)
    state = ours.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    for key, tensor in theirs.state_dict().items():
        assert state[key].shape == tensor.shape, key
        if not key.endswith("embed_avg"):  # of random counts and codes here, no average of them
            torch.testing.assert_close(state[key], tensor, msg=key)
    other = copy.deepcopy(theirs)
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(state, strict=True)
    for module in other.modules():
        if hasattr(module, "_embed"):
            module._embed = None  # Mimi keeps its quotient over a load
    x = batch(name)
    assert torch.equal(other.encode(x), theirs.encode(x))
    with pytest.raises(RuntimeError, match="no place"):
        ours.load_state_dict({**state, f"{next(iter(state))}.strange": torch.ones(1)})


@pytest.mark.parametrize("name", ["encodec", "mimi"])
def test_what_is_trained_here_runs_there(name):
    theirs, ours = twins(name)
    fresh = type(ours)(CONFIG)
    assert not fresh.quantizer.book.started
    torch.manual_seed(0)
    for levels in (4, 2, 3, 4):
        out = fresh.quantizer(batch(name).requires_grad_(), levels=levels)
        (out.quantized.sum() + out.loss).backward()
    fresh.eval()
    theirs.load_state_dict(fresh.state_dict(), strict=True)
    x = batch(name)
    codes = theirs.encode(x)
    assert (codes == fresh.encode(x)).double().mean() > 0.99
    assert len(codes[3].unique()) > 16
    parameters = dict(fresh.named_parameters())
    assert [n for n, p in parameters.items() if p.requires_grad] == (
        [] if name == "encodec" else ["quantizer.project_in.weight", "quantizer.project_out.weight"]
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ["encodec", "mimi"])
def test_takes_its_place_in_a_model(name, peers):
    model = peers[name].make().eval()
    kind = type(model.quantizer).__name__
    x = torch.randn(peers[name].x)
    before = model.encode(x).audio_codes
    ours = getattr(adapters, kind)(model.config).eval()
    ours.load_state_dict(model.quantizer.state_dict(), strict=True)
    keys = model.state_dict().keys()
    model.quantizer = ours
    assert model.state_dict().keys() == keys
    after = model.encode(x).audio_codes
    assert before.shape == after.shape
    assert (before == after).double().mean() > 0.99
    scales = ([None],) if name == "encodec" else ()
    assert model.decode(after, *scales).audio_values.isfinite().all()


def test_copies_and_pickles(name):
    _, ours = twins(name)
    x = batch(name)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other.encode(x), ours.encode(x))
        assert other.state_dict().keys() == ours.state_dict().keys()


def test_accelerate_leaves_what_is_fast():
    _, ours = twins("mimi split")
    assert [row.reason for row in fastvq.accelerate(ours).left] == ["fastvq's own"]


def test_bandwidths_are_those_of_the_peer():
    theirs, ours = twins("encodec")
    for bandwidth in (None, 0.0, 0.01, 0.59, 0.6, 0.61, 1.2, 1.8, 2.4, 24.0):
        expected = theirs.get_num_quantizers_for_bandwidth(bandwidth)
        assert ours.get_num_quantizers_for_bandwidth(bandwidth) == expected


def test_bad_arguments():
    split = twins("mimi split")[1]
    for levels in (0, 5):
        with pytest.raises(ValueError, match=rf"num_quantizers must be in \[1, 4\], got {levels}"):
            split.encode(torch.randn(1, 24, 5), levels)
    for meaning in (0, 4):
        config = SimpleNamespace(**{**vars(CONFIG), "num_semantic_quantizers": meaning})
        with pytest.raises(ValueError, match=rf"below num_quantizers = 4, got {meaning}"):
            adapters.MimiSplitResidualVectorQuantizer(config)
    one = SimpleNamespace(**{**vars(CONFIG), "codebook_size": 1})
    encodec = adapters.EncodecResidualVectorQuantizer(one)
    assert encodec.get_num_quantizers_for_bandwidth() == 4
    with pytest.raises(ValueError, match="bandwidth must be None where codebook_size is 1"):
        encodec.encode(torch.randn(1, 16, 5), 1.2)
    wide = SimpleNamespace(**{**vars(CONFIG), "codebook_dim": 8})
    with pytest.raises(ValueError, match=r"must be vector_quantization_hidden.* = 16, got 8"):
        adapters.MimiResidualVectorQuantizer(wide)
    with pytest.raises(ValueError, match=r"q in \[1, 4\], got \[50, 3, 5\]"):
        twins("encodec")[1].decode(torch.zeros(5, 50, 3, dtype=torch.int64))
