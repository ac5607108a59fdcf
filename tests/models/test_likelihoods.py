# SPDX-License-Identifier: Apache-2.0
"""Distributions that sum to one, samples that follow them, and logarithms that survive the tails.

Unless said otherwise in float64, where the tolerances are a thousand roundings.
"""

import itertools
import math

import pytest
import torch

from fastvq.models.likelihoods import (
    MSE,
    LikelihoodConfig,
    LogisticMixture,
    Softmax,
    make_likelihood,
)

DISCRETE = {
    "softmax": Softmax,
    "logistic_mixture": lambda levels: LogisticMixture(levels, 3),
}
both = pytest.mark.parametrize("name", DISCRETE)


def everything(levels: int, channels: int) -> torch.Tensor:
    """Every value that one position can take, float64 ``[levels ** channels, channels, 1]``."""
    digits = list(itertools.product(range(levels), repeat=channels))
    return torch.tensor(digits, dtype=torch.float64).unsqueeze(-1) / (levels - 1)


def probabilities(likelihood, parameters, values):
    """Of each of ``values [N, C, 1]``, given the parameters ``[P]`` of one position."""
    repeated = parameters.view(1, -1, 1).expand(len(values), -1, 1)
    return (-likelihood.nll(repeated, values) * values.shape[1]).exp()


def some_parameters(likelihood, channels, spread=1.0):
    return torch.randn(likelihood.parameter_channels(channels), dtype=torch.float64) * spread


@both
@pytest.mark.parametrize(
    ("levels", "channels", "spread"),
    [
        (2, 1, 1),
        (256, 1, 1),
        (256, 1, 8),
        (1024, 1, 4),
        (5, 2, 3),
        (4, 3, 1),
        (7, 3, 5),
        (3, 4, 2),
    ],
)
def test_the_probabilities_of_all_values_sum_to_one(name, levels, channels, spread):
    likelihood = DISCRETE[name](levels)
    values = everything(levels, channels)
    for _ in range(3):
        parameters = some_parameters(likelihood, channels, spread)
        found = probabilities(likelihood, parameters, values)
        assert abs(float(found.sum()) - 1) < 1e-9


def test_sixteen_bits_sum_to_one():
    likelihood = LogisticMixture(65536, 3)
    found = probabilities(likelihood, some_parameters(likelihood, 1, 4), everything(65536, 1))
    assert abs(float(found.sum()) - 1) < 1e-9


def test_a_logistic_is_cut_where_it_should_be():
    likelihood = LogisticMixture(5, 2)
    logits, means, log_scales = torch.randn(3, 2, dtype=torch.float64)
    found = probabilities(likelihood, torch.cat([logits, means, log_scales]), everything(5, 1))
    # levels at -1, -0.5, 0, 0.5 and 1; cut halfway between them
    cuts = torch.tensor([-math.inf, -0.75, -0.25, 0.25, 0.75, math.inf], dtype=torch.float64)
    below = ((cuts.unsqueeze(1) - means) / log_scales.exp()).sigmoid()  # [6, K]
    expected = (below.diff(dim=0) * logits.softmax(0)).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_green_and_blue_lean_on_the_channels_before_them():
    likelihood = LogisticMixture(256, 1)
    #                            logit, means of r g b, log-scales, alpha, beta, gamma
    parameters = torch.tensor([0.0, 0.1, 0.2, 0.3, -1.0, -1.5, -2.0, 0.5, -0.4, 0.9]).double()
    alpha, beta, gamma = parameters[7:].tanh()
    x = torch.tensor([40.0, 90.0, 200.0]).double() / 255
    r, g, b = 2 * x - 1
    means = torch.stack([parameters[1], parameters[2] + alpha * r,
                         parameters[3] + beta * r + gamma * g])  # fmt: skip
    scales, y = parameters[4:7].exp(), torch.stack([r, g, b])
    upper, lower = ((y + d - means) / scales for d in (1 / 255, -1 / 255))
    expected = (upper.sigmoid() - lower.sigmoid()).prod()
    found = probabilities(likelihood, parameters, x.view(1, 3, 1))
    torch.testing.assert_close(found[0], expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("mean", [-3000.0, -30.0, 0.3, 30.0, 3000.0])
@pytest.mark.parametrize("log_scale", [-7.0, 0.0, 3.0])
def test_far_tails_in_float32_are_those_of_float64(mean, log_scale):
    # values of both edges and of the inside, each with its own parameters
    x = (torch.tensor([0.0, 1.0, 100.0, 254.0, 255.0]) / 255).view(1, 1, -1)
    found = []
    for dtype in (torch.float32, torch.float64):
        parameters = torch.tensor([0.0, mean, log_scale], dtype=dtype)
        parameters = parameters.view(1, 3, 1).repeat(1, 1, 5).requires_grad_()
        likelihood = LogisticMixture(256, 1)
        nll = likelihood.nll(parameters, x.to(dtype))
        (gradient,) = torch.autograd.grad(nll.sum(), parameters)
        assert torch.isfinite(gradient).all()
        found.append((nll.double(), gradient.double()))
    (narrow, narrow_gradient), (wide, wide_gradient) = found
    # float32 sees x - mean to 2^-24 of the larger, and that is divided by the scale
    error = 2.0**-22 * max(1, abs(mean)) * math.exp(-log_scale)
    torch.testing.assert_close(narrow, wide, rtol=1e-6, atol=error)
    scale = wide_gradient.abs().max()
    torch.testing.assert_close(narrow_gradient / scale, wide_gradient / scale, rtol=0, atol=3e-4)


def test_far_tails_still_pull():
    likelihood = LogisticMixture(256, 1)
    parameters = torch.tensor([0.0, 50.0, -5.0]).view(1, 3, 1).requires_grad_()
    likelihood.loss(parameters, torch.full((1, 1, 1), 128 / 255)).backward()
    # d -log p / d mean is 1 / scale, however far away
    torch.testing.assert_close(parameters.grad[0, 1, 0], torch.tensor(math.exp(5.0)))


@pytest.mark.parametrize("log_scale", [-200.0, 200.0])
def test_no_scale_is_too_small_or_too_large(log_scale):
    likelihood = LogisticMixture(65536, 1)
    parameters = torch.tensor([0.0, 0.1, log_scale]).view(1, 3, 1).requires_grad_()
    loss = likelihood.loss(parameters, torch.full((1, 1, 1), 0.0))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(parameters.grad).all()


@both
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_are_derivatives(name, channels):
    likelihood = DISCRETE[name](4)
    x = torch.randint(4, (2, channels, 3)).double() / 3
    parameters = torch.randn(2, likelihood.parameter_channels(channels), 3).double()
    torch.autograd.gradcheck(lambda p: likelihood.nll(p, x), parameters.requires_grad_())


@both
@pytest.mark.parametrize(("levels", "channels"), [(2, 1), (9, 1), (4, 2), (3, 3)])
def test_samples_follow_the_distribution(name, levels, channels):
    likelihood = DISCRETE[name](levels)
    parameters = some_parameters(likelihood, channels)
    values = everything(levels, channels)
    expected = probabilities(likelihood, parameters, values)
    entropy = -(expected * expected.log()).sum()

    count = 20_000
    repeated = parameters.view(1, -1, 1).expand(1, -1, count)
    drawn = likelihood.sample(repeated, torch.Generator().manual_seed(1))
    assert drawn.shape == (1, channels, count)
    columns = drawn[0].t().unsqueeze(-1)
    losses = -probabilities(likelihood, parameters, columns).log()
    # five standard errors
    assert abs(losses.mean() - entropy) < 5 * losses.std() / count**0.5
    digits = (columns[..., 0] * (levels - 1)).round().long()
    places = levels ** torch.arange(channels - 1, -1, -1)
    counts = torch.bincount((digits * places).sum(1), minlength=len(values))
    error = (counts / count - expected).abs()
    assert (error < 5 * (expected * (1 - expected) / count).sqrt() + 1e-4).all()


@both
def test_the_impossible_is_not_drawn_even_at_the_ends(name, monkeypatch):
    likelihood = DISCRETE[name](4)
    if name == "softmax":
        parameters = torch.tensor([-1e4, 0.0, 0.0, -1e4])
    else:
        # the first component is impossible and would give the highest level
        parameters = torch.tensor([-1e4, 0.0, -1e4, 9.0, 0.0, 9.0, -7.0, -7.0, -7.0])
    for uniform in (0.0, 1 - 2.0**-53):
        monkeypatch.setattr(
            "fastvq.models.likelihoods.base.uniform",
            lambda like, generator, uniform=uniform: torch.full(
                like.shape, uniform, dtype=torch.float64
            ),
        )
        drawn = likelihood.sample(parameters.view(1, -1, 1)) * 3
        assert drawn.round().item() in (1, 2)


@both
def test_the_mean_is_that_of_the_distribution(name):
    levels = 9
    likelihood = DISCRETE[name](levels)
    # half a level where logistics are much narrower than a level, and rounding for categories
    allowed = 0.5 / (levels - 1) if name == "logistic_mixture" else 1e-12
    for spread in (0.5, 1, 3):
        parameters = some_parameters(likelihood, 1, spread)
        values = everything(levels, 1)
        expected = (probabilities(likelihood, parameters, values) * values[:, 0, 0]).sum()
        found = likelihood.mean(parameters.view(1, -1, 1))
        assert found.shape == (1, 1, 1)
        assert abs(found - expected) <= allowed


def test_the_mean_of_colours_leans_on_the_means_before():
    likelihood = LogisticMixture(256, 2)
    parameters = some_parameters(likelihood, 3, 0.3).view(1, -1, 1)
    parameters[:, 8:14] -= 3  # narrow, so that nothing is clipped
    draws = likelihood.sample(parameters.expand(1, -1, 20_000), torch.Generator().manual_seed(0))
    error = (likelihood.mean(parameters) - draws.mean(-1, keepdim=True)).abs()
    assert (error < 5 * draws.std(-1, keepdim=True) / 20_000**0.5).all()


@both
def test_a_seed_gives_the_same_sample(name):
    likelihood = DISCRETE[name](16)
    parameters = torch.randn(2, likelihood.parameter_channels(3), 4, 5)
    first, same, other = (
        likelihood.sample(parameters, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert first.dtype == torch.float32
    likelihood.digits(first)  # every sample is one of the levels


def test_uniform_logits_cost_exactly_log2_levels():
    for levels in (2, 17, 256):
        likelihood = Softmax(levels)
        x = torch.randint(levels, (3, 2, 5)) / (levels - 1)
        nll = likelihood.nll(torch.zeros(3, 2 * levels, 5), x)
        assert nll.shape == (3,)
        torch.testing.assert_close(nll / math.log(2), torch.full((3,), math.log2(levels)))


def test_the_squared_error_is_one():
    parameters, x = torch.randn(2, 2, 3, 4), torch.rand(2, 2, 3, 4)
    assert MSE().parameter_channels(2) == 2
    torch.testing.assert_close(MSE().loss(parameters, x), (parameters - x).square().mean())
    assert torch.equal(MSE().mean(parameters), parameters)
    for call in (lambda: MSE().nll(parameters, x), lambda: MSE().sample(parameters)):
        with pytest.raises(TypeError, match="discrete likelihood, softmax or logistic_mixture"):
            call()


@both
def test_autocast_changes_nothing(name):
    likelihood = DISCRETE[name](8)
    x = torch.randint(8, (2, 3, 6)) / 7
    parameters = torch.randn(2, likelihood.parameter_channels(3), 6)
    expected = likelihood.nll(parameters, x), likelihood.mean(parameters)
    with torch.autocast("cpu", torch.bfloat16):
        found = likelihood.nll(parameters, x), likelihood.mean(parameters)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("levels", [2, 256, 65536])
def test_every_level_is_taken_for_itself_in_float32(levels):
    digits = torch.arange(levels).view(1, 1, -1)
    assert torch.equal(Softmax(levels).digits(digits / (levels - 1)), digits)
    # in another order of operations too
    assert torch.equal(Softmax(levels).digits(digits * (1 / (levels - 1))), digits)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.5, r"x must hold multiples of 1/255 in \[0, 1\], got 0.5"),
        (0.502, "got 0.502"),
        (1 + 1 / 255, "got 1.00392"),
        (-1 / 255, "got -0.00392157"),
        (math.nan, "got nan"),
        (math.inf, "got inf"),
    ],
)
def test_refused_values(value, message):
    x = torch.zeros(1, 1, 4)
    x[0, 0, 2] = value
    with pytest.raises(ValueError, match=message):
        Softmax(256).nll(torch.zeros(1, 256, 4), x)


def test_refused_dtypes_and_shapes():
    with pytest.raises(TypeError, match="float32 or float64 for 256 levels, got bfloat16"):
        Softmax(256).digits(torch.zeros(1, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"x must be float32.*got uint8"):
        Softmax(256).digits(torch.zeros(1, dtype=torch.uint8))
    x = torch.zeros(2, 1, 4)
    with pytest.raises(ValueError, match=r"parameters must be \[2, 6, 4\].*got \[2, 5, 4\]"):
        Softmax(6).nll(torch.zeros(2, 5, 4), x)
    with pytest.raises(ValueError, match=r"parameters must be \[2, 6, 4\].*got \[2, 6, 5\]"):
        LogisticMixture(6, 2).nll(torch.zeros(2, 6, 5), x)
    with pytest.raises(ValueError, match=r"parameters must be \[B, C \* 6, ...\], got \[2, 5, 4\]"):
        Softmax(6).mean(torch.zeros(2, 5, 4))
    for wrong in (14, 7, 2, 16):
        with pytest.raises(ValueError, match=r"\[B, 10 \* 2, ...\] for C = 3, got"):
            LogisticMixture(6, 2).mean(torch.zeros(2, wrong, 4))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"likelihood": "sofmax"}, ValueError, "did you mean 'softmax'"),
        ({"levels": 256}, ValueError, "levels must be None for likelihood 'mse', got 256"),
        ({"likelihood": "softmax", "levels": 1}, ValueError, r"levels must be in \[2, 65536\]"),
        ({"likelihood": "softmax", "levels": 65537}, ValueError, "got 65537"),
        ({"likelihood": "softmax", "levels": 2.0}, TypeError, "levels must be an int, got float"),
        (
            {"likelihood": "softmax", "mixtures": 5},
            ValueError,
            "mixtures must be None for likelihood 'softmax', got 5",
        ),
        (
            {"likelihood": "logistic_mixture", "mixtures": 0},
            ValueError,
            "mixtures must be at least 1, got 0",
        ),
    ],
)
def test_refused_configs(options, error, message):
    with pytest.raises(error, match=message):
        LikelihoodConfig(**options)


def test_defaults():
    assert make_likelihood(LikelihoodConfig(likelihood="softmax")).levels == 256
    found = make_likelihood(LikelihoodConfig(likelihood="logistic_mixture", levels=17))
    assert (found.levels, found.mixtures) == (17, 10)
