"""Other libraries' quantizers by their names, with their results and their checkpoints."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import fastvq
from fastvq.compat.adapters import Quantize, RQBottleneck, VectorQuantizer2

MAKERS = {
    "taming": lambda: VectorQuantizer2(32, 8, 0.25),
    "taming sane": lambda: VectorQuantizer2(32, 8, 0.25, sane_index_shape=True, legacy=False),
    "rosinality": lambda: Quantize(8, 32),
    "rq-vae": lambda: RQBottleneck((5, 6, 8), (5, 6, 3), 32),
}
KEYS = {
    "taming": ["embedding.weight"],
    "taming sane": ["embedding.weight"],
    "rosinality": ["cluster_size", "embed", "embed_avg"],
    "rq-vae": sorted(
        f"codebooks.{i}.{name}"
        for i in range(3)
        for name in ("weight", "cluster_size_ema", "embed_ema")
    ),
}


@pytest.fixture(params=MAKERS)
def name(request):
    return request.param


def batch(name):
    shape = (2, 8, 5, 6) if name.startswith("taming") else (2, 5, 6, 8)
    return torch.randn(shape)


def indices_of(out):
    return out[2][2] if isinstance(out[2], tuple) else out[2]


def test_checkpoints_have_the_librarys_keys_and_come_back(name):
    module = MAKERS[name]()
    x = batch(name)
    for _ in range(3):
        module(x)
    module.eval()
    state = module.state_dict()
    assert sorted(state) == KEYS[name]
    other = MAKERS[name]().eval()
    other.load_state_dict(state, strict=True)
    for a, b in zip(module(x)[:2], other(x)[:2], strict=True):
        assert torch.equal(a, b)
    # within a model, beside others
    models = [nn.ModuleDict({"q": MAKERS[name](), "qq": nn.Linear(2, 2)}) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict(), strict=True)
    assert sorted(models[0].state_dict()) == sorted(
        [*(f"q.{key}" for key in KEYS[name]), "qq.bias", "qq.weight"]
    )
    for a, b in zip(*(m.state_dict().values() for m in models), strict=True):
        assert torch.equal(a, b)


def test_what_does_not_fit_is_refused(name):
    module = MAKERS[name]()
    state = module.state_dict()
    with pytest.raises(RuntimeError, match=r"no place|strange"):
        module.load_state_dict(state | {"strange": torch.ones(1)})
    with pytest.raises(RuntimeError, match="state_dict must have keys"):
        nn.ModuleDict({"q": module}).load_state_dict({"other": torch.ones(1)})
    # a codebook of another size
    makers = {
        "rosinality": lambda: Quantize(8, 9),
        "rq-vae": lambda: RQBottleneck((5, 6, 8), (5, 6, 3), 9),
    }
    smaller = makers.get(name, lambda: VectorQuantizer2(9, 8, 0.25))()
    with pytest.raises(RuntimeError, match="size mismatch"):
        module.load_state_dict(smaller.state_dict())


def test_copies(name):
    module, x = MAKERS[name](), batch(name)
    module(x)
    module.eval()
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x)[0], module(x)[0])
        assert sorted(other.state_dict()) == KEYS[name]
        other.load_state_dict(module.state_dict(), strict=True)


def test_compiles_whole(name):
    torch.compiler.reset()
    module, x = MAKERS[name](), batch(name)
    module(x)
    compiled = torch.compile(copy.deepcopy(module).eval(), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x)[0], module.eval()(x)[0])
    training = torch.compile(module.train(), backend="eager", fullgraph=True)
    out = training(x.requires_grad_())
    (out[0].sum() + out[1]).backward()
    assert x.grad.isfinite().all()


def test_accelerate_leaves_what_is_fast():
    (row,) = fastvq.accelerate(MAKERS["taming"]()).left
    assert row.reason == "fastvq's own"


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("sane", [True, False])
def test_taming_answers_as_diffusers(legacy, sane):
    from diffusers.models.autoencoders.vae import VectorQuantizer

    theirs = VectorQuantizer(32, 8, 0.25, legacy=legacy, sane_index_shape=sane)
    ours = VectorQuantizer2(32, 8, 0.25, legacy=legacy, sane_index_shape=sane)
    assert (ours.quantizer.codebook.abs() <= 1 / 32).all()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    results = []
    x = batch("taming")
    for module, weight in ((theirs, theirs.embedding.weight), (ours, ours.quantizer.book.vectors)):
        leaf = x.clone().requires_grad_()
        z, loss, (perplexity, encodings, indices) = module(leaf)
        assert perplexity is encodings is None
        (z.square().sum() + loss).backward()
        entry = module.get_codebook_entry(indices, (2, 5, 6, 8))
        flat = module.get_codebook_entry(indices.flatten(), None)
        results.append((z, loss, indices, leaf.grad, weight.grad.view(32, 8), entry, flat))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a)


def test_rosinality_answers_by_its_formula():
    module, x = Quantize(8, 32, decay=0.9), batch("rosinality").requires_grad_()
    codes = module.state_dict()["embed"].t()
    quantized, diff, ids = module(x)
    expected = torch.cdist(x.double().flatten(0, 2), codes.double()).argmin(1).view(2, 5, 6)
    assert torch.equal(ids, expected)
    torch.testing.assert_close(quantized, codes[ids])
    torch.testing.assert_close(diff, (codes[ids] - x).square().mean())
    (gradient,) = torch.autograd.grad(quantized.sum() + diff, x)
    torch.testing.assert_close(gradient, 1 + 2 * (x - codes[ids]) / x.numel())
    counts = torch.bincount(ids.flatten(), minlength=32)
    torch.testing.assert_close(module.state_dict()["cluster_size"], 0.9 + 0.1 * counts)
    module.eval()
    torch.testing.assert_close(module.embed_code(ids), module.state_dict()["embed"].t()[ids])


def test_rq_vae_answers_by_its_formula():
    module, x = MAKERS["rq-vae"](), batch("rq-vae")
    module(x)
    module.eval()
    state = module.state_dict()
    quantized, loss, codes = module(x)
    rest, losses = x.double(), []
    for i in range(3):
        table = state[f"codebooks.{i}.weight"]
        assert table.shape == (33, 8)
        assert (table[-1] == 0).all()
        distances = torch.cdist(rest.flatten(0, 2), table[:-1].double())
        assert torch.equal(codes[..., i].flatten(), distances.argmin(1))
        rest = rest - table.double()[codes[..., i]]
        losses.append(rest.square().mean())
    torch.testing.assert_close(quantized, (x.double() - rest).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(loss, torch.stack(losses).mean().float())
    assert torch.equal(module.embed_code(codes), quantized)


@pytest.mark.parametrize("code_shape", [(5, 6), (5, 5, 3), (3, 5, 6)])
def test_rq_vae_keeps_its_resolution(code_shape):
    with pytest.raises(ValueError, match=r"code_shape must be \(height, width, depth\)"):
        RQBottleneck((5, 6, 8), code_shape, 32)


def test_restart_is_revival():
    assert MAKERS["rq-vae"]().quantizer.book.revival == fastvq.Revival()
    still = RQBottleneck((5, 6, 8), (5, 6, 3), 32, restart_unused_codes=False)
    assert still.quantizer.book.revival is None


@pytest.fixture
def remapping(tmp_path):
    """Options of a quantizer of 32 codes of which 12 are used, in no order."""

    def make(unknown_index):
        path = tmp_path / "used.npy"
        np.save(path, np.random.default_rng(0).permutation(32)[:12])
        return {"remap": path, "unknown_index": unknown_index}

    return make


@pytest.mark.parametrize("unknown_index", ["random", "extra", 3])
@pytest.mark.parametrize("sane", [True, False])
def test_taming_remaps_as_diffusers(remapping, unknown_index, sane):
    from diffusers.models.autoencoders.vae import VectorQuantizer

    options = {**remapping(unknown_index), "sane_index_shape": sane}
    theirs, ours = VectorQuantizer(32, 8, 0.25, **options), VectorQuantizer2(32, 8, 0.25, **options)
    assert (ours.re_embed, ours.unknown_index) == (theirs.re_embed, theirs.unknown_index)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.used.copy_(theirs.used.roll(1))  # what is loaded counts, and not what the file says
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = batch("taming")
    expected, actual = theirs(x)[2][2], ours(x)[2][2]
    assert actual.shape == expected.shape
    codes = ours.quantizer(x).indices.view_as(actual)
    known = torch.isin(codes, ours.used)
    assert 0 < known.sum() < known.numel()
    if unknown_index == "random":  # drawn, and by another way
        others = actual[~known]
        assert others.min() >= 0
        assert others.max() < 12
        assert len(others.unique()) > 1
        assert torch.equal(actual[known], expected[known])
    else:
        assert torch.equal(actual, expected)
    assert torch.equal(ours.unmap_to_all(actual)[known], codes[known])
    entries = (m.get_codebook_entry(expected.flatten(), (2, 5, 6, 8)) for m in (ours, theirs))
    assert torch.equal(*entries)
    flat = ours.get_codebook_entry(actual.flatten(), None)
    assert torch.equal(flat[known.flatten()], ours.quantizer.codebook[codes[known]])


def test_taming_remaps_in_a_model_and_in_a_graph(remapping):
    torch.compiler.reset()
    module = VectorQuantizer2(32, 8, 0.25, **remapping("extra")).eval()
    models = [nn.ModuleDict({"q": copy.deepcopy(module)}) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict(), strict=True)
    assert sorted(models[0].state_dict()) == ["q.embedding.weight", "q.used"]
    plain = VectorQuantizer2(32, 8, 0.25)
    with pytest.raises(RuntimeError, match="used below '', for which the layout of taming has no"):
        plain.load_state_dict(module.state_dict())
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "used"'):
        module.load_state_dict(plain.state_dict())
    x = batch("taming")
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x)[2][2], module(x)[2][2])


@pytest.mark.parametrize(
    ("array", "unknown_index", "text"),
    [
        (np.array([1, 32]), "random", r"indices in \[0, n_e = 32\), got 1 to 32"),
        (np.array([-1, 3]), "random", r"got -1 to 3"),
        (np.array([], dtype=int), "random", "got none"),
        (np.array([[1, 2]]), "random", r"integers \[U\], got int64 \[1, 2\]"),
        (np.array([1.0]), "random", r"integers \[U\], got float64 \[1\]"),
        (np.array([1, None]), "random", "remap must be an .npy file of integers, got .*pickle"),
        (np.array([1, 2]), "rand", "unknown_index must be one of random, extra, got 'rand'"),
        (np.array([1, 2]), 2, r"unknown_index must be in \[0, U = 2\).*got 2"),
    ],
)
def test_taming_refuses_a_bad_remap(tmp_path, array, unknown_index, text):
    np.save(tmp_path / "used.npy", array)
    with pytest.raises(ValueError, match=text):
        VectorQuantizer2(32, 8, 0.25, remap=tmp_path / "used.npy", unknown_index=unknown_index)


def test_taming_names_a_file_that_is_not_there_or_no_array(tmp_path):
    (tmp_path / "empty.npy").touch()
    with pytest.raises(ValueError, match=r"remap must be an .npy file of integers, got .*empty"):
        VectorQuantizer2(32, 8, 0.25, remap=tmp_path / "empty.npy")
    with pytest.raises(FileNotFoundError, match="missing"):
        VectorQuantizer2(32, 8, 0.25, remap=tmp_path / "missing.npy")


def test_taming_without_remap():
    for wrong, error in ((True, TypeError), (None, TypeError), ("rand", ValueError)):
        with pytest.raises(error, match="unknown_index must be"):
            VectorQuantizer2(32, 8, 0.25, unknown_index=wrong)
    with pytest.raises(ValueError, match=r"unknown_index must be in \[0, U = 32\).*got 32"):
        VectorQuantizer2(32, 8, 0.25, unknown_index=32)
    module = VectorQuantizer2(32, 8, 0.25, unknown_index="extra")
    assert module.re_embed == 32
    for call in (module.remap_to_used, module.unmap_to_all):
        with pytest.raises(ValueError, match="there is no remap"):
            call(torch.tensor([0]))
