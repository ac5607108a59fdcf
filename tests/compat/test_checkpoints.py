"""State dicts of other libraries, there and back, and what the converted quantizers answer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastvq
from fastvq.compat import from_fastvq, to_fastvq
from fastvq.compat._layouts import LAYOUTS

from .held import (
    BOOK,
    HEADS,
    NOT_TOLD,
    ROWS,
    STATES,
    D,
    K,
    Q,
    encodec,
    lucidrains,
    mimi,
    rosinality,
    rq_vae,
    trained,
    transformers_quantizer,
)


@pytest.fixture(params=LAYOUTS)
def peer(request):
    return request.param


def test_there_and_back(peer):
    state = STATES[peer]()
    before = {name: tensor.clone() for name, tensor in state.items()}
    there = to_fastvq(peer, state, arguments=NOT_TOLD.get(peer)).build()
    back = from_fastvq(peer, there)
    assert back.keys() == state.keys()
    for name, tensor in back.items():
        assert tensor.dtype == state[name].dtype, name
        assert tensor.is_contiguous()
        if name.endswith(("embed_avg", "_ema_w", "embed_ema", "embed_sum", "embedding_sum")):
            # two roundings of a product and a quotient
            torch.testing.assert_close(tensor, state[name], rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(tensor, state[name]), name
    # and once more, where nothing at all is lost
    again = to_fastvq(peer, back, arguments=NOT_TOLD.get(peer)).build()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, there.state_dict()[name]), name
    # nothing is shared
    for tensor in (*there.state_dict().values(), *back.values()):
        tensor.zero_()
    for name, tensor in state.items():
        assert torch.equal(tensor, before[name])


def test_a_prefix_is_read_and_written(peer):
    state = STATES[peer]()
    inside = {f"model.q.{name}": tensor for name, tensor in state.items()} | {
        "model.qq.other": torch.ones(1)
    }
    converted = to_fastvq(peer, inside, "model.q.", arguments=NOT_TOLD.get(peer))
    plain = to_fastvq(peer, state, arguments=NOT_TOLD.get(peer))
    for name, tensor in plain.state_dict.items():
        assert torch.equal(converted.state_dict[name], tensor)
    back = from_fastvq(peer, converted.build(), "model.q.")
    assert set(back) == set(inside) - {"model.qq.other"}


def test_missing_and_unexpected_keys_are_named(peer):
    state = STATES[peer]()
    with pytest.raises(ValueError, match=rf"strange.*no place|strange.*layout of {peer}"):
        to_fastvq(peer, state | {"strange": torch.ones(1)}, arguments=NOT_TOLD.get(peer))
    with pytest.raises(ValueError, match=r"keys that start with 'elsewhere\.', got "):
        to_fastvq(peer, state, "elsewhere.")
    needed = [n for n in state if not n.startswith("project_") and "bias" not in n]
    for name in needed:
        optional = ("initted", "inited", "embed_avg", "_ema_w", "embed_ema", "proj.weight")
        if name.endswith(optional) and not peer.startswith("dac"):
            continue
        rest = {n: tensor for n, tensor in state.items() if n != name}
        with pytest.raises(ValueError, match=r"state_dict must h(old|ave)"):
            to_fastvq(peer, rest)


def test_unknown_peers_and_wrong_quantizers_are_refused():
    with pytest.raises(ValueError, match="did you mean 'encodec'"):
        to_fastvq("encodek", {})
    with pytest.raises(TypeError, match="must be a ResidualVQ for the layout of encodec, got FSQ"):
        from_fastvq("encodec", fastvq.FSQ([3, 3]))
    with pytest.raises(ValueError, match="taming searches by euclidean distance, got 'cosine'"):
        from_fastvq("taming", fastvq.VectorQuantizer(4, 4, metric="cosine"))
    with pytest.raises(ValueError, match="rosinality has one head, got 2"):
        from_fastvq("rosinality", fastvq.VectorQuantizer(4, 4, heads=2))
    with pytest.raises(ValueError, match="taming has no projections, got 4 channels to 2"):
        from_fastvq("taming", fastvq.VectorQuantizer(4, 4, codebook_dim=2))
    with pytest.raises(ValueError, match="encodec has no projections around its levels"):
        from_fastvq("encodec", fastvq.ResidualVQ(4, 4, 2, codebook_dim=2))
    with pytest.raises(ValueError, match="mimi has no bias in its projections"):
        from_fastvq("mimi", fastvq.ResidualVQ(4, 4, 2, codebook_dim=2))
    shared = lucidrains("VectorQuantize", dim=D, codebook_size=K, heads=2, codebook_dim=8)
    with pytest.raises(ValueError, match=r"project_in must lead to the 8 channels .* got 16"):
        to_fastvq("lucidrains.VectorQuantize", shared.state_dict())
    uneven = encodec() | {f"{BOOK}embed": torch.randn(K, D + 1)}
    with pytest.raises(ValueError, match=r"codebooks .* of one shape"):
        to_fastvq("encodec", uneven)
    for name, key in (("rosinality", "cluster_size"), ("mimi", f"{BOOK}cluster_usage")):
        few = STATES[name]() | {key: torch.ones(5)}
        with pytest.raises(ValueError, match=rf"one for each of the codes .* got \[5\] in {name}"):
            to_fastvq(name, few)


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({}, {}),
        ({"use_cosine_sim": True}, {"metric": "cosine"}),
        (HEADS, {}),
        ({"codebook_dim": 4}, {}),
    ],
    ids=["plain", "cosine", "heads", "projected"],
)
def test_lucidrains_answers_alike_both_ways(options, extra):
    module = trained(lucidrains("VectorQuantize", dim=D, codebook_size=K, **options))
    name = "lucidrains.VectorQuantize"
    vq = to_fastvq(name, module.state_dict(), arguments=extra).build().eval()
    x = torch.randn(*ROWS, D)
    quantized, indices, _ = module(x)
    assert torch.equal(vq(x).indices, indices)
    torch.testing.assert_close(vq(x).quantized, quantized)
    other = lucidrains("VectorQuantize", dim=D, codebook_size=K, **options).eval()
    other.load_state_dict(from_fastvq(name, vq), strict=True)
    for a, b in zip(other(x)[:2], module(x)[:2], strict=True):
        assert torch.equal(a, b)
    # the average that was made anew is the one the module goes on from; of cosine codes the
    # length is lost, which says how far their vectors agreed
    made, kept = other._codebook.embed_avg, module._codebook.embed_avg
    if extra:
        made, kept = (nn.functional.normalize(average, dim=-1) for average in (made, kept))
    torch.testing.assert_close(made, kept)
    assert bool(other._codebook.initted)


def test_old_checkpoints_of_lucidrains_and_codes_that_have_not_started():
    module = lucidrains("VectorQuantize", dim=D, codebook_size=K, kmeans_init=True)
    name = "lucidrains.VectorQuantize"
    assert not to_fastvq(name, module.state_dict()).build().book.started
    trained(module)
    old = {
        "_codebook.initted": torch.tensor([1.0]),
        "_codebook.embed": module._codebook.embed[0],
        "_codebook.cluster_size": module._codebook.cluster_size[0],
    }
    vq, x = to_fastvq(name, old).build().eval(), torch.randn(*ROWS, D)
    assert vq.book.started
    assert torch.equal(vq(x).indices, module(x)[1])


@pytest.mark.parametrize("options", [{}, {"codebook_dim": 4}], ids=["plain", "projected"])
def test_lucidrains_residual_answers_alike(options):
    module = trained(lucidrains("ResidualVQ", dim=D, codebook_size=K, num_quantizers=Q, **options))
    rvq = to_fastvq("lucidrains.ResidualVQ", module.state_dict()).build().eval()
    x = torch.randn(*ROWS, D)
    quantized, indices, _ = module(x)
    assert torch.equal(rvq(x).indices, indices)
    torch.testing.assert_close(rvq(x).quantized, quantized)


@pytest.mark.parametrize("dim", [None, D])
def test_lucidrains_without_a_codebook_answer_alike(dim):
    fsq = lucidrains("FSQ", levels=[8, 5, 5], dim=dim).eval()
    lfq = lucidrains("LFQ", codebook_size=K, dim=dim).eval()
    for name, module, extra in (("FSQ", fsq, {"levels": [8, 5, 5]}), ("LFQ", lfq, {})):
        # FSQ without projections saves nothing at all
        if not module.state_dict():
            continue
        ours = to_fastvq(f"lucidrains.{name}", module.state_dict(), arguments=extra).build().eval()
        x = torch.randn(*ROWS, ours.dim)
        theirs = module(x)
        assert torch.equal(ours(x).indices, theirs[1].long())
        torch.testing.assert_close(ours(x).quantized, theirs[0])


def test_lucidrains_simvq_answers_alike():
    module = lucidrains("SimVQ", dim=D, codebook_size=K, frozen_codebook_dim=6).eval()
    ours = to_fastvq("lucidrains.SimVQ", module.state_dict()).build().eval()
    x = torch.randn(*ROWS, D)
    quantized, indices, loss = module(x)
    assert torch.equal(ours(x).indices, indices)
    torch.testing.assert_close(ours(x).quantized, quantized)
    torch.testing.assert_close(ours(x).loss, loss)


def test_diffusers_answers_alike():
    from diffusers.models.autoencoders.vae import VectorQuantizer

    module = VectorQuantizer(K, D, 0.25, sane_index_shape=True)
    vq = to_fastvq("taming", module.state_dict()).build().eval()
    assert isinstance(vq.codebook, torch.Tensor)
    assert isinstance(vq.book.vectors, nn.Parameter)
    x = torch.randn(2, D, 5, 6)
    quantized, loss, (_, _, indices) = module(x)
    out = vq(x)
    assert torch.equal(out.indices, indices)
    torch.testing.assert_close(out.quantized, quantized)
    # 0.25 commitment and 1 codebook here, the other way round there; the values are equal
    torch.testing.assert_close(out.loss, loss)


@pytest.mark.parametrize(
    ("name", "kind", "width"),
    [
        ("encodec", "EncodecResidualVectorQuantizer", D),
        ("mimi", "MimiResidualVectorQuantizer", D),
        ("mimi", "MimiResidualVectorQuantizer", 12),
    ],
)
def test_transformers_answer_alike_both_ways(name, kind, width):
    module = transformers_quantizer(name, kind, width)
    layout = f"{name}.transformers"
    rvq = to_fastvq(layout, module.state_dict()).build().eval()
    x = torch.randn(2, width, 50)
    theirs = module.encode(x)  # [Q, B, T]
    assert torch.equal(rvq(x).indices, theirs.permute(1, 2, 0))
    decoded = module.decode(theirs if name == "encodec" else theirs.transpose(0, 1))
    torch.testing.assert_close(rvq(x).quantized, decoded, rtol=1e-5, atol=1e-5)
    other = transformers_quantizer(name, kind, width)
    other.load_state_dict(from_fastvq(layout, rvq), strict=True)
    assert torch.equal(other.encode(x), theirs)


def test_both_layouts_of_a_codec_are_one_quantizer():
    state = mimi(width=12)
    rvq = to_fastvq("mimi", state).build().eval()
    module = transformers_quantizer("mimi", "MimiResidualVectorQuantizer", 12)
    module.load_state_dict(from_fastvq("mimi.transformers", rvq), strict=True)
    x = torch.randn(2, 12, 50)
    assert torch.equal(module.encode(x), rvq(x).indices.permute(2, 0, 1))
    # the codes of moshi's own rule
    for i, codes in enumerate(rvq.codebook):
        at = f"vq.layers.{i}._codebook."
        usage = state[f"{at}cluster_usage"].clamp(min=1e-5)
        assert torch.equal(codes, state[f"{at}embedding_sum"] / usage[:, None])


def test_codes_from_fastvq_reach_mimi_to_a_rounding():
    rvq = fastvq.ResidualVQ(D, K, Q, channel_dim=1)
    for _ in range(3):
        rvq(torch.randn(2, D, 50))
    back = to_fastvq("mimi", from_fastvq("mimi", rvq)).build()
    torch.testing.assert_close(back.codebook, rvq.codebook, rtol=2.0**-23, atol=0)


def nearest(x, codes):
    """The formula that rosinality, zalando, taming and RQ-VAE share, in float64."""
    x, codes = x.double(), codes.double()
    squares = x.square().sum(-1, keepdim=True) + codes.square().sum(-1)
    return (squares - 2 * x @ codes.t()).argmin(-1)


def test_rosinality_and_zalando_answer_by_their_formula():
    x = torch.randn(*ROWS, D)
    state = rosinality()
    vq = to_fastvq("rosinality", state).build().eval()
    expected = nearest(x, state["embed"].t())
    assert torch.equal(vq(x).indices, expected)
    torch.testing.assert_close(vq(x).quantized, state["embed"].t()[expected])
    for name in ("zalando", "zalando.EMA"):
        state = STATES[name]()
        vq = to_fastvq(name, state).build().eval()
        expected = nearest(x, state["_embedding.weight"])
        assert torch.equal(vq(x.movedim(-1, 1)).indices, expected)


def test_rq_vae_answers_by_its_formula():
    state, x = rq_vae(), torch.randn(*ROWS, D)
    rvq = to_fastvq("rq-vae-transformer", state).build().eval()
    rest, chosen = x.double(), []
    for i in range(Q):
        codes = state[f"codebooks.{i}.weight"][:-1].double()
        chosen.append(nearest(rest, codes))
        rest = rest - codes[chosen[-1]]
    assert torch.equal(rvq(x).indices, torch.stack(chosen, -1))
    torch.testing.assert_close(rvq(x).quantized, (x.double() - rest).float(), rtol=1e-5, atol=1e-5)


def test_narrow_and_wide_checkpoints_keep_their_dtype():
    state = {"embedding.weight": torch.randn(K, D, dtype=torch.float64)}
    assert to_fastvq("taming", state).build().codebook.dtype == torch.float64
    half = {name: tensor.bfloat16() for name, tensor in mimi(12).items()}
    rvq = to_fastvq("mimi", half).build()
    assert rvq.project_in.weight.dtype == torch.bfloat16
    assert rvq.codebook.dtype == torch.float32
