"""Residual quantizers of transformers: all levels in one call, and when the loop stays."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fastvq
from fastvq.compat._fast import Fast

LEVELS, CODES, DIM = 4, 64, 16


def encodec_quantizer():
    from transformers.models.encodec import modeling_encodec as library

    config = SimpleNamespace(
        codebook_size=CODES, codebook_dim=DIM, frame_rate=100, num_quantizers=LEVELS
    )
    return library.EncodecResidualVectorQuantizer(config)


def xcodec_quantizer():
    from transformers.models.xcodec import modeling_xcodec as library

    config = SimpleNamespace(
        codebook_size=CODES, codebook_dim=DIM, frame_rate=100, num_quantizers=LEVELS
    )
    return library.XcodecResidualVectorQuantization(config)


def mimi_quantizer(width=DIM):
    from transformers.models.mimi import modeling_mimi as library

    config = SimpleNamespace(
        codebook_size=CODES,
        codebook_dim=DIM,
        frame_rate=100,
        num_quantizers=LEVELS,
        vector_quantization_hidden_dimension=DIM,
        hidden_size=width,
    )
    return library.MimiResidualVectorQuantizer(config)


MAKERS = {
    "encodec": encodec_quantizer,
    "xcodec": xcodec_quantizer,
    "mimi": mimi_quantizer,
    "mimi projected": lambda: mimi_quantizer(24),
}
# kbit/s or levels, whichever the quantizer asks for: two of four levels
FEWER = {"encodec": 1.2, "xcodec": 1.2, "mimi": 2, "mimi projected": 2}


def levels_of(quantizer):
    return quantizer.quantizers if hasattr(quantizer, "quantizers") else quantizer.layers


def filled(name):
    quantizer = MAKERS[name]().eval()
    for i, level in enumerate(levels_of(quantizer)):
        codes = getattr(level.codebook, "embed_sum", None)
        (level.codebook.embed if codes is None else codes).normal_(std=0.8**i)
    return quantizer


def by_codebook(quantizer):
    """The peer's own loop over codebooks that are swapped alone."""
    other = copy.deepcopy(quantizer)
    if isinstance(other, Fast):
        other.__class__ = type(other).__bases__[1]
    for level in levels_of(other):
        fastvq.accelerate(level.codebook)
        assert isinstance(level.codebook, Fast)
    return other


def batch(quantizer, dtype=torch.float32):
    width = DIM if getattr(quantizer, "input_proj", None) is None else 24
    return torch.randn(3, width, 50, dtype=dtype)


@pytest.fixture
def calls(monkeypatch):
    """How often each search is called."""
    counted = {"residual": 0, "nearest": 0}
    for name in counted:
        op = getattr(fastvq.ops, name)

        def count(*args, _name=name, _op=op, **named):
            counted[_name] += 1
            return _op(*args, **named)

        monkeypatch.setattr(fastvq.ops, name, count)
    return counted


@pytest.fixture(params=MAKERS)
def name(request):
    return request.param


@pytest.mark.parametrize("fewer", [False, True])
def test_one_call_gives_the_codes_of_the_loop(name, fewer, calls):
    quantizer = filled(name)
    loop, one = by_codebook(quantizer), copy.deepcopy(quantizer)
    report = fastvq.accelerate(one)
    assert [row.methods for row in report.replaced] == ["encode", *["quantize"] * LEVELS]
    x = batch(quantizer)
    more = (FEWER[name],) if fewer else ()
    expected = loop.encode(x, *more)
    calls.update(residual=0, nearest=0)
    actual = one.encode(x, *more)
    assert calls == {"residual": 1, "nearest": 0}
    assert torch.equal(actual, expected)
    assert actual.shape == (2 if fewer else LEVELS, 3, 50)
    assert actual.is_contiguous()
    share = (actual == quantizer.encode(x, *more)).double().mean()
    assert share > 0.99
    # the codes of the peer decode alike
    there = (lambda codes: codes.transpose(0, 1)) if "mimi" in name else (lambda codes: codes)
    assert torch.equal(one.decode(there(actual)), quantizer.decode(there(actual)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_keep_the_peers_residual(name, dtype, calls):
    quantizer = filled(name).to(dtype)
    loop, one = by_codebook(quantizer), copy.deepcopy(quantizer)
    fastvq.accelerate(one)
    x = batch(quantizer, dtype)
    expected = loop.encode(x)
    calls.update(residual=0, nearest=0)
    assert torch.equal(one.encode(x), expected)
    # Mimi searches in float32 whatever the model is in
    same = dtype == torch.float64 and "mimi" not in name
    assert calls == {"residual": int(same), "nearest": 0 if same else LEVELS}


def test_autocast_takes_one_call_and_the_codes_of_the_loop(name, calls):
    quantizer = filled(name)
    loop, one = by_codebook(quantizer), copy.deepcopy(quantizer)
    fastvq.accelerate(one)
    x = batch(quantizer)
    with torch.autocast("cpu", torch.bfloat16):
        expected = loop.encode(x)
        calls.update(residual=0, nearest=0)
        assert torch.equal(one.encode(x), expected)
    assert calls == {"residual": 1, "nearest": 0}


def test_levels_of_unequal_size_go_one_by_one(name, calls):
    quantizer = filled(name)
    book = levels_of(quantizer)[1].codebook
    if "mimi" in name:
        book._embed = book.embed[:20]
    else:
        book.embed = book.embed[:20].clone()
    loop, one = by_codebook(quantizer), copy.deepcopy(quantizer)
    fastvq.accelerate(one)
    x = batch(quantizer)
    expected = loop.encode(x)
    calls.update(residual=0, nearest=0)
    assert torch.equal(one.encode(x), expected)
    assert calls == {"residual": 0, "nearest": LEVELS}


# Mimi keeps its codes, see test_transformers
@pytest.mark.parametrize("name", [name for name in MAKERS if "mimi" not in name])
def test_the_codes_are_read_anew(name):
    one = filled(name)
    fastvq.accelerate(one)
    x = batch(one)
    before = one.encode(x)
    # past the version counter, as training loops of EnCodec write
    levels_of(one)[0].codebook.embed.data.copy_(torch.randn(CODES, DIM))
    assert not torch.equal(one.encode(x), before)
    assert torch.equal(one.encode(x), by_codebook(one).encode(x))


def test_mimi_keeps_one_tensor_of_codes():
    one = filled("mimi")
    fastvq.accelerate(one)
    x = batch(one)
    first = one.encode(x)
    stacked = one._stacked
    assert torch.equal(one.encode(x, num_quantizers=2), first[:2])
    assert one._stacked is stacked
    for codes, level in zip(stacked, one.layers, strict=True):
        assert level.codebook.embed.data_ptr() == codes.data_ptr()
        expected = level.codebook.embed_sum / level.codebook.cluster_usage[:, None]
        assert torch.equal(codes, expected)
    # codes that are made anew, as after loading other weights, are taken
    one.layers[1].codebook._embed = None
    one.layers[1].codebook.embed_sum.mul_(-1)
    assert torch.equal(one.encode(x), by_codebook(one).encode(x))
    assert not torch.equal(one.encode(x), first)


def test_a_bad_vector_spoils_nothing_else(name):
    one = filled(name)
    fastvq.accelerate(one)
    x = batch(one)
    expected = one.encode(x)
    x[1, 0, 7] = torch.nan
    actual = one.encode(x)
    good = torch.ones(3, 50, dtype=torch.bool)
    good[1, 7] = False
    assert torch.equal(actual[:, good], expected[:, good])
    assert (actual[:, 1, 7] == 0).all()


def test_a_level_that_does_more_is_left_and_the_others_are_swapped(name):
    def projecting(level):
        level.project_in = nn.Identity()

    def subclassed(level):
        level.__class__ = type("Mine", (type(level),), {})

    def patched(level):
        level.codebook.decode = level.codebook.decode

    def strange(level):
        level.codebook.__class__ = type("Mine", (type(level.codebook),), {"__module__": "mine"})

    def strange_search(level):
        level.codebook.quantize = level.codebook.quantize

    reasons = {
        projecting: ("does more than look up a codebook", LEVELS),
        subclassed: ("Mine is of an unknown class", LEVELS),
        patched: ("decode is replaced on the instance", LEVELS),
        strange: ("Mine is of an unknown class", LEVELS - 1),
        strange_search: ("quantize is replaced on the instance", LEVELS - 1),
    }
    for change, (reason, swapped) in reasons.items():
        quantizer = filled(name)
        change(levels_of(quantizer)[2])
        report = fastvq.accelerate(quantizer)
        assert report.left[0].reason == f"level 2: {reason}"
        assert len(report.replaced) == swapped
        assert not isinstance(quantizer, Fast)


def test_codebooks_that_were_swapped_before_are_fit(name):
    quantizer = by_codebook(filled(name))
    report = fastvq.accelerate(quantizer)
    assert [row.methods for row in report.replaced] == ["encode"]
    assert report.left == ()


def test_compiles_whole(name):
    torch.compiler.reset()
    one = filled(name)
    fastvq.accelerate(one)
    x = batch(one)
    expected = one.encode(x)
    compiled = torch.compile(one.encode, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), expected)
