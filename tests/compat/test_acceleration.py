"""What holds of every library: the swap changes the class and, but for speed, nothing else."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

import fastvq
from fastvq.compat._fast import Fast


@pytest.fixture(params=[True, False], ids=["training", "eval"])
def twins(peer, request):
    """A model before and after, in the same mode."""
    model = peer.make().train(request.param)
    after = copy.deepcopy(model)
    report = fastvq.accelerate(after)
    assert len(report.replaced) == peer.swapped
    assert report.left == ()
    return model, after, torch.randn(peer.x)


def test_outputs_and_state_stay_equal(twins, tensors):
    before, after, x = twins
    expected, actual = ([*tensors(m(x)), *m.state_dict().values()] for m in (before, after))
    assert len(expected) == len(actual) > 0
    for a, b in zip(expected, actual, strict=True):
        # statistics are summed in another order, everything else is the same arithmetic
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)


def test_gradients_stay_equal(twins, tensors):
    before, after, x = twins
    gradients = []
    for model in (before, after):
        leaf = x.clone().requires_grad_()
        outputs = [t for t in tensors(model(leaf)) if t.requires_grad]
        if outputs:  # EnCodec and Mimi have no gradient through their codes
            sum((t * torch.linspace(1, 2, t.numel()).view_as(t)).sum() for t in outputs).backward()
        gradients.append([leaf.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5 * float(a.abs().max()) + 1e-8)


def test_state_classes_and_modes_stay(peer):
    model = peer.make().eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = dict(model.named_modules())
    classes = {name: type(module) for name, module in modules.items()}
    modules[""].register_buffer("extra", torch.ones(1), persistent=False)
    report = fastvq.accelerate(model)
    for path, kind, _ in report.replaced:
        assert classes[path].__name__ == kind
        assert type(modules[path]).__name__ == f"Fast{kind}"
    for name, module in model.named_modules(remove_duplicate=False):
        assert isinstance(module, classes.get(name, type(module)))
        assert not module.training
    assert list(model.state_dict()) == list(state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    model.load_state_dict(state, strict=True)


def test_twice_changes_nothing_more(peer):
    model = peer.make()
    fastvq.accelerate(model)
    classes = [type(module) for module in model.modules()]
    again = fastvq.accelerate(model)
    assert again.replaced == ()
    assert {row.reason for row in again.left} == {"accelerated before"}
    assert [type(module) for module in model.modules()] == classes


def test_hooks_still_fire(peer):
    model = peer.make().eval()
    fired = []
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: fired.append(module))
        module.register_forward_pre_hook(lambda module, *_: fired.append(module))
    x = torch.randn(peer.x)
    model(x)
    before = list(fired)
    fired.clear()
    fastvq.accelerate(model)
    model(x)
    # by place: a module equals itself
    assert [id(m) for m in fired] == [id(m) for m in before]


def _pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def _saved(model: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("clone", [copy.deepcopy, _pickled, _saved])
def test_copies_are_accelerated_too(peer, clone, tensors):
    model = peer.make().eval()
    fastvq.accelerate(model)
    cloned = clone(model)
    assert [type(m) for m in cloned.modules()] == [type(m) for m in model.modules()]
    x = torch.randn(peer.x)
    for a, b in zip(tensors(model(x)), tensors(cloned(x)), strict=True):
        assert torch.equal(a, b)
    assert all(a is not b for a, b in zip(model.modules(), cloned.modules(), strict=True))


def test_a_pickle_loads_in_a_process_that_has_not_seen_the_library(peers, tmp_path):
    model = peers["lucidrains residual"].make()
    fastvq.accelerate(model)
    torch.save(model, tmp_path / "model.pt")
    script = f"""
import torch
model = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
assert type(model.layers[0]).__name__ == "FastVectorQuantize"
model.eval()(torch.randn(1, 5, 16))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_nothing_is_imported_that_the_model_does_not_hold():
    script = """
import sys, torch, fastvq
fastvq.accelerate(torch.nn.Linear(2, 2))
loaded = {name.split(".")[0] for name in sys.modules}
found = loaded & {"transformers", "diffusers", "vector_quantize_pytorch", "einops"}
assert not found, found
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


class StrangeQuantizer(nn.Module):
    """Of a class that nobody knows, with a codebook in it that nobody knows either."""

    def __init__(self):
        super().__init__()
        self.codebook = StrangeCodebook()


class StrangeCodebook(nn.Module):
    pass


class QuantizedLinear(nn.Linear):
    """Quantized, and no quantizer."""


def test_what_is_left_has_its_reason(peers):
    import vector_quantize_pytorch as library

    class Custom(library.VectorQuantize):
        pass

    wrapped = peers["lucidrains"].make()
    wrapped.forward = wrapped.forward
    bare = peers["lucidrains"].make()._codebook
    affine = peers["lucidrains"].make()
    affine._codebook.affine_param = True
    own_sampling = peers["lucidrains"].make()
    own_sampling._codebook.gumbel_sample = max
    bridge = peers["lucidrains"].make()
    bridge._codebook.vq_bridge = nn.Identity()
    strange_codebook = peers["lucidrains"].make()
    strange_codebook._codebook = StrangeCodebook()
    reasons = {
        "strange": (StrangeQuantizer(), "an unknown class"),
        "fsq": (library.FSQ([4, 4]), "an unknown class"),
        "own": (fastvq.VectorQuantizer(4, 4), "fastvq's own"),
        "custom": (Custom(4, 4), "a subclass of VectorQuantize, which may search in another way"),
        "wrapped": (wrapped, "forward is replaced on the instance"),
        "bare": (bare, "an unknown class"),
        "affine": (affine, "its codes are affine in the statistics of the batch"),
        "sampling": (own_sampling, "it samples codes with a function of its own"),
        "bridge": (bridge, "its codes come out of a network (vq_bridge)"),
        "codebook": (strange_codebook, "its codebook is of an unknown class, StrangeCodebook"),
    }
    others = {"linear": QuantizedLinear(2, 2), "fake": torch.ao.quantization.FakeQuantize()}
    model = nn.ModuleDict({name: module for name, (module, _) in reasons.items()} | others)
    kinds = [type(module) for module in model.modules()]
    report = fastvq.accelerate(model)
    assert report.replaced == ()
    assert {row.path: row.reason for row in report.left} == {k: r for k, (_, r) in reasons.items()}
    assert [type(module) for module in model.modules()] == kinds


def test_a_module_in_two_places_is_reported_once(peers):
    strange, known = StrangeQuantizer(), peers["diffusers"].make().quantize
    report = fastvq.accelerate(nn.ModuleList([nn.ModuleList([strange, known])] * 2 + [strange]))
    assert [row.path for row in report.left] == ["0.0"]
    assert [row.path for row in report.replaced] == ["0.1"]


def test_another_version_of_a_class_is_left(peers, monkeypatch):
    model = peers["lucidrains"].make()
    monkeypatch.setattr(type(model._codebook), "forward", lambda self, x, temperature: x)
    (row,) = fastvq.accelerate(model).left
    assert row.reason == "forward has other parameters than in the version known here"
    assert not isinstance(model, Fast)


def test_the_report_prints_as_a_table(peers):
    model = nn.ModuleList([peers["encodec"].make(), peers["dac"].make(), StrangeQuantizer()])
    assert repr(fastvq.accelerate(model)).splitlines() == [
        "replaced  0.quantizer                    EncodecResidualVectorQuantizer  encode",
        "replaced  *.quantizer.layers.*.codebook  EncodecEuclideanCodebook x 4    quantize",
        "replaced  *.quantizer.quantizers.*       DacVectorQuantize x 3           decode_latents",
        "left      2                              StrangeQuantizer                an unknown class",
    ]
    alone = fastvq.accelerate(peers["lucidrains"].make())
    assert str(alone).splitlines()[0] == "replaced  (the model)  VectorQuantize  forward"


@pytest.mark.parametrize("value", [None, 3, nn.Linear, lambda x: x])
def test_what_is_no_module_is_refused(value):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got"):
        fastvq.accelerate(value)


def test_the_package_gives_the_name_and_no_other():
    assert fastvq.accelerate is fastvq.compat.accelerate
    with pytest.raises(AttributeError, match="has no attribute 'decelerate'"):
        _ = fastvq.decelerate
