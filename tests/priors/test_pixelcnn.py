"""``GatedPixelCNN``: what its logits may and must depend on, and what it refuses."""

import math

import pytest
import torch
from torch.nn import functional

from fastvq.priors import GatedPixelCNN, GatedPixelCNNConfig

CODES = 7
# (classes, label dropout)
CONDITIONING = [
    pytest.param(None, 0.0, id="no-classes"),
    pytest.param(3, 0.0, id="classes"),
    pytest.param(3, 0.2, id="classes-or-none"),
]


def make(classes=None, **options):
    """A prior small enough to look at, with weights as large as training makes them."""
    options = {"channels": 8, "layers": 3, "kernel_size": 5, "label_dropout": 0.0} | options
    prior = GatedPixelCNN(GatedPixelCNNConfig(CODES, classes, **options))
    with torch.no_grad():
        prior.logits.weight.mul_(30)
        for layer in prior.layers:
            layer.vertical.weight.mul_(2)
            layer.horizontal.weight.mul_(2)
    return prior


def labels_for(batch, classes):
    return None if classes is None else torch.randint(classes, (batch,))


def influence(prior, height, width, labels):
    """How far changing the code at t moves the logits at s: ``[T, T]``, row t, column s."""
    codes = torch.randint(CODES, (1, height, width))
    size = height * width
    changed = codes.repeat(size, 1, 1)
    changed.view(size, size).diagonal().add_(1).remainder_(CODES)
    with torch.no_grad():
        before = prior(codes, labels).view(1, size, CODES)
        after = prior(changed, None if labels is None else labels.expand(size))
    return (after.view(size, size, CODES) - before).abs().amax(-1)


@pytest.mark.parametrize(("height", "width"), [(5, 9), (9, 5), (1, 6), (6, 1)])
@pytest.mark.parametrize(("classes", "label_dropout"), CONDITIONING)
@pytest.mark.parametrize(("kernel_size", "layers"), [(3, 7), (5, 3), (7, 2)])
def test_depends_on_every_earlier_code_and_on_no_other(
    height, width, classes, label_dropout, kernel_size, layers
):
    """Causal and complete, the first position included (it must move for no code at all)."""
    prior = make(classes, label_dropout=label_dropout, kernel_size=kernel_size, layers=layers)
    moved = influence(prior.double().eval(), height, width, labels_for(1, classes))
    earlier = torch.ones_like(moved, dtype=torch.bool).triu(1)
    assert prior.reach >= max(height, width) - 1
    assert moved[~earlier].max() <= 1e-12
    # far codes act through many small products: any change above rounding counts
    assert (moved[earlier] > 1e-12).all()


@pytest.mark.parametrize(("kernel_size", "layers"), [(3, 1), (3, 2), (5, 1)])
def test_reach_is_exact(kernel_size, layers):
    """A shallow prior sees the earlier codes of a box of that radius, and all of them."""
    height, width = 7, 11
    prior = make(kernel_size=kernel_size, layers=layers).double().eval()
    seen = influence(prior, height, width, None) > 1e-12
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    near = (rows - rows[:, None] <= prior.reach) & (
        (columns - columns[:, None]).abs() <= prior.reach
    )
    assert torch.equal(seen, near & torch.ones_like(near).triu(1))


def test_likelihood_is_normalised():
    """The probabilities of all 3^4 grids of 2 x 2 add up to one."""
    prior = GatedPixelCNN(GatedPixelCNNConfig(3, channels=8, layers=2)).double().eval()
    grids = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 2, 2)
    with torch.no_grad():
        total = (-prior.nll(grids).sum((1, 2))).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-12)


def test_nll_of_uniform_logits_is_log_k():
    prior = GatedPixelCNN(GatedPixelCNNConfig(64)).eval()
    torch.nn.init.zeros_(prior.logits.weight)
    torch.nn.init.zeros_(prior.logits.bias)
    nll = prior.nll(torch.randint(64, (3, 4, 5)))
    assert nll.shape == (3, 4, 5)
    torch.testing.assert_close(nll, torch.full_like(nll, math.log(64)))


def test_a_fresh_prior_knows_nothing():
    """The first loss is within a twentieth of a nat of log K: no wild start to unlearn."""
    prior = GatedPixelCNN(GatedPixelCNNConfig(64, 10)).eval()
    codes, labels = torch.randint(64, (32, 4, 4)), torch.randint(10, (32,))
    assert prior.nll(codes, labels).mean().item() == pytest.approx(math.log(64), abs=0.05)


def test_nll_is_the_cross_entropy_of_the_logits():
    prior, codes = make(3).double().eval(), torch.randint(CODES, (4, 5, 9))
    labels = labels_for(4, 3)
    logits = prior(codes, labels)
    expected = -logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]
    torch.testing.assert_close(prior.nll(codes, labels), expected)


@pytest.mark.parametrize(("classes", "label_dropout"), CONDITIONING)
def test_every_parameter_learns(classes, label_dropout):
    """A finite gradient everywhere, and in every output channel or table row one that is not 0."""
    prior = make(classes, label_dropout=label_dropout, dropout=0.0, code_dropout=0.0)
    # enough images that each label is hidden at least once and shown at least once
    codes = torch.randint(CODES, (64, 5, 9))
    prior.nll(codes, labels_for(64, classes)).mean().backward()
    for name, parameter in prior.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.view(len(parameter), -1).any(dim=1).all(), name


def test_forward_changes_no_state():
    prior = make(3, label_dropout=0.2)
    before = {name: tensor.clone() for name, tensor in prior.state_dict().items()}
    prior(torch.randint(CODES, (4, 5, 9)), labels_for(4, 3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in prior.state_dict().items())


def test_classes_and_positions_matter():
    prior = make(3, label_dropout=0.2).eval()
    codes = torch.randint(CODES, (1, 4, 5)).repeat(4, 1, 1)
    by_label = torch.cat([prior(codes[:3], torch.arange(3)), prior(codes[:1])])
    apart = torch.pdist(by_label[:, 0, 0])
    assert apart.min() > 1e-3
    # with all codes equal, logits far from the border still know where they are
    flat = make(layers=1, kernel_size=3).eval()(torch.zeros(1, 8, 12, dtype=torch.int64))
    inside = flat[0, 3:, 3:-3].flatten(0, 1)
    assert torch.pdist(inside).min() > 1e-4


def test_dropout_acts_in_training_only():
    codes, labels = torch.randint(CODES, (8, 4, 4)), torch.randint(3, (8,))
    for option in ("dropout", "code_dropout", "label_dropout"):
        off = {"dropout": 0.0, "code_dropout": 0.0, "label_dropout": 0.0}
        prior = make(3, **off | {option: 0.5})
        assert not torch.equal(prior(codes, labels), prior(codes, labels)), option
        prior.eval()
        assert torch.equal(prior(codes, labels), prior(codes, labels)), option


def test_hidden_labels_answer_as_no_label():
    prior = make(3, label_dropout=0.999999, dropout=0.0, code_dropout=0.0)
    codes = torch.randint(CODES, (4, 4, 4))
    hidden = prior(codes, labels_for(4, 3))
    torch.testing.assert_close(hidden, prior.eval()(codes))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("classes", "label_dropout"), CONDITIONING)
def test_compiles_whole(training, classes, label_dropout):
    prior = make(classes, label_dropout=label_dropout).train(training)
    compiled = torch.compile(prior, fullgraph=True, backend="aot_eager")
    codes, labels = torch.randint(CODES, (4, 5, 9)), labels_for(4, classes)
    logits = compiled(codes, labels)
    if not training:
        torch.testing.assert_close(logits, prior(codes, labels))
    functional.cross_entropy(logits.flatten(0, 2), codes.flatten()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in prior.parameters())


def test_empty_batch():
    assert make(3)(torch.empty(0, 4, 5, dtype=torch.int64), labels_for(0, 3)).shape == (0, 4, 5, 7)


@pytest.mark.parametrize(
    ("codes", "error", "message"),
    [
        (torch.zeros(2, 4, 4), TypeError, "codes must be an int64 tensor, got float32"),
        ([[0]], TypeError, "codes must be an int64 tensor, got list"),
        (torch.zeros(4, 4, dtype=torch.int64), ValueError, r"2 axes in shape.*got \[4, 4\]"),
        (torch.zeros(2, 0, 4, dtype=torch.int64), ValueError, r"at least 1, got \[2, 0, 4\]"),
        (
            torch.zeros(1, 2, 2, dtype=torch.int64, device="meta"),
            ValueError,
            "codes and the prior must be on one device, got meta and cpu",
        ),
        (torch.full((1, 2, 2), CODES), ValueError, r"codes must be in \[0, K = 7\), got 7"),
        (torch.full((1, 2, 2), -1), ValueError, r"codes must be in \[0, K = 7\), got -1"),
    ],
)
def test_refuses_codes(codes, error, message):
    with pytest.raises(error, match=message):
        make()(codes)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (None, ValueError, "labels must be given: the prior has classes and label_dropout = 0"),
        (torch.zeros(2), TypeError, "labels must be an int64 tensor, got float32"),
        (torch.tensor([0]), ValueError, r"labels must be \[B\] with B = 2, got \[1\]"),
        (torch.tensor([0, 3]), ValueError, r"labels must be in \[0, num_classes = 3\), got 3"),
    ],
)
def test_refuses_labels(labels, error, message):
    with pytest.raises(error, match=message):
        make(3)(torch.zeros(2, 4, 4, dtype=torch.int64), labels)


def test_refuses_labels_without_classes():
    with pytest.raises(ValueError, match="labels must be None for a prior without classes"):
        make()(torch.zeros(1, 4, 4, dtype=torch.int64), torch.tensor([0]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"codebook_size": 0}, ValueError, "codebook_size must be at least 1, got 0"),
        ({"codebook_size": 8, "layers": 2.5}, TypeError, "layers must be an int, got float"),
        ({"codebook_size": 8, "num_classes": 0}, ValueError, "num_classes must be at least 1"),
        ({"codebook_size": 8, "kernel_size": 4}, ValueError, "odd and at least 3, got 4"),
        ({"codebook_size": 8, "kernel_size": 1}, ValueError, "odd and at least 3, got 1"),
        ({"codebook_size": 8, "dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1"),
    ],
)
def test_refuses_configs(options, error, message):
    with pytest.raises(error, match=message):
        GatedPixelCNNConfig(**options)


@pytest.mark.parametrize("device", ["cuda"])
def test_gpu_gives_the_same_logits(device):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    prior = make(3).eval()
    codes, labels = torch.randint(CODES, (4, 5, 9)), labels_for(4, 3)
    expected = prior.double()(codes, labels)
    logits = prior.to(device)(codes.to(device), labels.to(device))
    torch.testing.assert_close(logits.cpu(), expected)
