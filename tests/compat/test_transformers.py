"""EnCodec, Mimi and DAC of Hugging Face transformers, and the copies of EnCodec's codebook."""

from __future__ import annotations

import copy
import importlib
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import fastvq


@pytest.fixture
def twins(peers):
    def make(name):
        model = peers[name].make().eval()
        after = copy.deepcopy(model)
        fastvq.accelerate(after)
        return model, after, torch.randn(peers[name].x)

    return make


@torch.no_grad()
def test_encodec_encodes_and_decodes_as_before(twins, assert_same_levels):
    before, after, x = twins("encodec")
    theirs, ours = before.encode(x).audio_codes[0, 0], after.encode(x).audio_codes[0, 0]
    embeddings = before.encoder(x)[0].t()
    books = [layer.codebook.embed for layer in before.quantizer.layers]
    assert_same_levels(embeddings, books, theirs, ours)
    codes = theirs[None, None]
    expected, actual = (m.decode(codes, [None], return_dict=False) for m in (before, after))
    assert torch.equal(expected[0], actual[0])


@torch.no_grad()
def test_mimi_encodes_and_decodes_as_before(twins, assert_same_levels):
    before, after, x = twins("mimi")
    inputs = {}
    split = before.quantizer
    parts = (split.semantic_residual_vector_quantizer, split.acoustic_residual_vector_quantizer)
    for part in parts:
        part.input_proj.register_forward_hook(lambda _, __, y: inputs.setdefault(len(inputs), y))
    theirs, ours = before.encode(x).audio_codes, after.encode(x).audio_codes
    levels = (slice(0, 1), slice(1, 4))
    for level, part, y in zip(levels, parts, inputs.values(), strict=True):
        rows = y.transpose(1, 2).flatten(0, 1)
        books = [layer.codebook.embed for layer in part.layers]
        assert_same_levels(
            rows, books, *(c[:, level].transpose(0, 1).flatten(1) for c in (theirs, ours))
        )
    assert torch.equal(before.decode(theirs).audio_values, after.decode(theirs).audio_values)


@torch.no_grad()
def test_dac_encodes_and_decodes_as_before(twins, assert_same_codes):
    before, after, x = twins("dac")
    theirs, ours = before.encode(x), after.encode(x)
    # the levels are checked one by one: each has its own latents
    for level, quantizer in enumerate(before.quantizer.quantizers):
        latents = theirs.projected_latents[:, 8 * level : 8 * level + 8]
        rows = nn.functional.normalize(latents.transpose(1, 2).flatten(0, 1))
        codes = nn.functional.normalize(quantizer.codebook.weight)
        chosen = after.quantizer.quantizers[level].decode_latents(latents)[1]
        assert_same_codes(rows, codes, theirs.audio_codes[:, level].flatten(), chosen.flatten())
    assert torch.equal(theirs.audio_codes, ours.audio_codes)
    for name in ("quantized_representation", "loss"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
    decoded = [m.decode(audio_codes=theirs.audio_codes).audio_values for m in (before, after)]
    assert torch.equal(*decoded)


@torch.no_grad()
def test_dac_from_latents_as_before(twins):
    before, after, x = twins("dac")
    latents = before.encode(x).projected_latents
    for a, b in zip(*(m.quantizer.from_latents(latents) for m in (before, after)), strict=True):
        assert torch.equal(a, b)


def test_dac_with_offloaded_weights_goes_the_peers_way(twins):
    before, after, x = twins("dac")
    fired = []
    hook = SimpleNamespace(
        pre_forward=lambda module: fired.append(module), post_forward=lambda module, out: out
    )
    book = after.quantizer.quantizers[0].codebook
    book._hf_hook = hook
    assert torch.equal(before.encode(x).audio_codes, after.encode(x).audio_codes)
    assert fired == [book]


COPIES = [
    ("encodec", "EncodecEuclideanCodebook"),
    ("wavtokenizer", "WavTokenizerEuclideanCodebook"),
    ("xcodec", "XcodecEuclideanCodebook"),
]


@pytest.mark.parametrize(("name", "kind"), COPIES)
def test_copies_of_the_codebook(name, kind, assert_same_codes):
    library = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    before = getattr(library, kind)(SimpleNamespace(codebook_size=500, codebook_dim=32))
    before.embed.normal_()
    after = copy.deepcopy(before)
    assert len(fastvq.accelerate(after).replaced) == 1
    x = torch.randn(3, 1000, 32)
    theirs, ours = before.encode(x), after.encode(x)
    assert ours.shape == (3, 1000)
    assert_same_codes(x.flatten(0, 1), before.embed, theirs.flatten(), ours.flatten())


def test_codes_that_the_peer_rounds_away_are_told_apart(assert_same_codes):
    library = importlib.import_module("transformers.models.encodec.modeling_encodec")
    before = library.EncodecEuclideanCodebook(SimpleNamespace(codebook_size=64, codebook_dim=16))
    before.embed.copy_(torch.randn(64, 16) + 1000)
    after = copy.deepcopy(before)
    fastvq.accelerate(after)
    x = torch.randn(200, 16) + 1000
    exact = torch.cdist(x.double(), before.embed.double()).argmin(-1)
    assert (before.quantize(x) != exact).any()
    assert torch.equal(after.quantize(x), exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_models_get_the_nearest_code(twins, dtype):
    _, after, _ = twins("encodec")
    book = after.to(dtype).quantizer.layers[0].codebook
    x = torch.randn(200, 16, dtype=dtype) / 10
    exact = torch.cdist(x.double(), book.embed.double()).argmin(-1)
    assert torch.equal(book.quantize(x), exact)


def test_mimi_keeps_its_cached_codes(twins):
    before, after, x = twins("mimi")
    for model in (before, after):
        model.encode(x)
        model.quantizer.acoustic_residual_vector_quantizer.layers[0].codebook.embed_sum.mul_(2)
    assert torch.equal(before.encode(x).audio_codes, after.encode(x).audio_codes)


def test_encodec_compiles_without_a_break(twins):
    _, after, _ = twins("encodec")
    quantizer = after.quantizer
    compiled = torch.compile(quantizer.encode, backend="eager", fullgraph=True)
    x = torch.randn(2, 16, 50) / 10
    assert torch.equal(compiled(x, 24.0), quantizer.encode(x, 24.0))
