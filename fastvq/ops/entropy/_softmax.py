# SPDX-License-Identifier: Apache-2.0
"""The functions of the softmax over the codes with their gradients, on prepared tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastvq.ops.entropy._ops import softmax_rows, softmax_sums

# codes whose median stands for where the codes are
_SAMPLED = 255


class Softmax(NamedTuple):
    """The distribution of each row over the codes, in numbers of O(N + K)."""

    x: Tensor  # [H, N, D]
    codebook: Tensor  # [H, K, D]
    bias: Tensor  # [H, K]
    maximum: Tensor  # [H, N]
    log_sum: Tensor  # [H, N]
    metric: str
    scale: float


def sums(
    softmax: Softmax,
    *,
    by_code: bool,
    log_factor: Tensor | None = None,
    factor: Tensor | None = None,
    weight: Tensor | None = None,
    code_factor: Tensor | None = None,
    direction: Tensor | None = None,
    axes: Tensor | None = None,
    values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights and totals of :func:`softmax_sums`; a factor of the rows is 0 where not given."""
    x, codebook, bias, maximum, log_sum, metric, scale = softmax
    zero = torch.zeros_like(maximum)
    factors = torch.stack([zero if f is None else f for f in (log_factor, factor, weight)])
    return softmax_sums(
        x, codebook, bias, maximum, log_sum, factors, code_factor, direction, axes, values,
        by_code, metric, scale,
    )  # fmt: skip


class Logits(NamedTuple):
    """Both sides measured from amid the codes, where sums of products keep their digits."""

    centre: Tensor  # [H, 1, D]
    x: Tensor
    codes: Tensor

    @staticmethod
    def of(softmax: Softmax) -> Logits:
        centre = amid(softmax.codebook)
        return Logits(centre, softmax.x - centre, softmax.codebook - centre)

    def through(
        self, softmax: Softmax, totals: Tensor, weights: Tensor, *, by_code: bool
    ) -> Tensor:
        """The gradient of one side, from the sums of those of the logits times the other side."""
        if softmax.metric == "dot":
            return softmax.scale * (totals + self.centre * weights.unsqueeze(-1))
        own = self.codes if by_code else self.x
        return 2 * softmax.scale * (totals - own * weights.unsqueeze(-1))


class Entropies(torch.autograd.Function):
    """x, codebook, bias, counted, metric, scale -> mean entropy ``[H]``, mean distribution
    ``[H, K]``, number of rows ``[H]``, and what backward needs.
    """

    @staticmethod
    def forward(
        x: Tensor, codebook: Tensor, bias: Tensor, counted: Tensor, metric: str, scale: float
    ) -> tuple[Tensor, ...]:
        maximum, log_sum, entropy, _ = softmax_rows(x, codebook, bias, None, metric, scale)
        softmax, sound = contained(
            Softmax(x, codebook, bias, maximum, log_sum, metric, scale), entropy
        )
        weight = (counted & sound).to(x.dtype)
        count = weight.sum(-1)
        weight = weight / count.clamp_min(1).unsqueeze(-1)
        entropy = torch.where(sound, entropy, 0)
        mean = (weight * entropy).sum(-1)
        distribution, _ = sums(softmax, by_code=True, factor=weight)
        return (
            mean, distribution, count, softmax.maximum, softmax.log_sum, entropy, weight, sound,
        )  # fmt: skip

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(*inputs[:3], *output[3:])
        ctx.options = inputs[4:]

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_mean: Tensor, grad_distribution: Tensor, *_: Any
    ) -> tuple[Tensor | None, ...]:
        softmax, (entropy, weight, sound) = saved(ctx)
        ones = torch.ones_like(weight)
        means = sums(softmax, by_code=False, weight=ones, code_factor=grad_distribution)[0]
        log_factor = -weight * grad_mean.unsqueeze(-1)
        factors = {
            "log_factor": log_factor,
            "factor": log_factor * entropy - weight * means,
            "weight": weight,
            "code_factor": grad_distribution,
        }
        return *through_logits(softmax, ctx.needs_input_grad, factors), None, None, None, None


class Expectation(torch.autograd.Function):
    """x, codebook, codes, bias, metric, scale -> the mean of the codes for each row ``[H, N, D]``,
    by the distribution that the codebook gives, and what backward needs. Codes that are the
    codebook's own are not given: no tracer takes one tensor for two inputs.
    """

    @staticmethod
    def forward(
        x: Tensor, codebook: Tensor, codes: Tensor | None, bias: Tensor, metric: str, scale: float
    ) -> tuple[Tensor, ...]:
        maximum, log_sum, entropy, _ = softmax_rows(x, codebook, bias, None, metric, scale)
        softmax, sound = contained(
            Softmax(x, codebook, bias, maximum, log_sum, metric, scale), entropy
        )
        codes = codebook if codes is None else codes
        centre = amid(codes)
        ones = torch.ones_like(maximum)
        _, mean = sums(softmax, by_code=False, factor=ones, values=codes - centre)
        expected = torch.where(sound.unsqueeze(-1), mean + centre, torch.nan)
        return expected, softmax.maximum, softmax.log_sum, mean, sound

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, codebook, codes, bias, *options = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, codebook, bias, *output[1:3], codes, *output[3:])
        ctx.options = options

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        softmax, (given, mean, sound) = saved(ctx)
        codes = softmax.codebook if given is None else given
        grad = torch.where(sound.unsqueeze(-1), grad, 0).contiguous()
        factors = {
            "factor": -(grad * mean).sum(-1),
            "direction": grad,
            "axes": codes - amid(codes),
        }
        grad_x, grad_codebook = through_logits(softmax, ctx.needs_input_grad, factors)
        if not ctx.needs_input_grad[1 if given is None else 2]:
            return grad_x, grad_codebook, None, None, None, None
        ones = torch.ones_like(softmax.maximum)
        grad_codes = sums(softmax, by_code=True, factor=ones, values=grad)[1]
        if grad_codebook is not None and given is None:
            return grad_x, grad_codebook + grad_codes, None, None, None, None
        return grad_x, grad_codebook, grad_codes, None, None, None


class Surprisal(torch.autograd.Function):
    """x, codebook, bias, indices, metric, scale -> -log p of the code at the index ``[H, N]``, 0
    for an index of -1, and what backward needs.
    """

    @staticmethod
    def forward(
        x: Tensor, codebook: Tensor, bias: Tensor, indices: Tensor, metric: str, scale: float
    ) -> tuple[Tensor, ...]:
        maximum, log_sum, entropy, surprisal = softmax_rows(
            x, codebook, bias, indices, metric, scale
        )
        softmax, sound = contained(
            Softmax(x, codebook, bias, maximum, log_sum, metric, scale), entropy
        )
        inside = (indices >= -1) & (indices < codebook.shape[1])
        surprisal = torch.where(sound & inside, surprisal, torch.nan)
        surprisal = torch.where(indices == -1, 0, surprisal)
        used = sound & inside & (indices >= 0)
        return surprisal, softmax.maximum, softmax.log_sum, used, sound

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs[:3], *output[1:3], inputs[3], *output[3:])
        ctx.options = inputs[4:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        softmax, (indices, used, sound) = saved(ctx)
        grad = torch.where(used, grad, 0)
        sides = Logits.of(softmax)
        grad_x = grad_codebook = None
        if ctx.needs_input_grad[0]:
            weights, totals = sums(softmax, by_code=False, factor=grad, values=sides.codes)
            place = indices.clamp(0, softmax.codebook.shape[1] - 1).unsqueeze(-1)
            chosen = sides.codes.gather(1, place.expand_as(sides.x))
            totals = totals - grad.unsqueeze(-1) * chosen
            grad_x = sides.through(softmax, totals, weights - grad, by_code=False)
        if ctx.needs_input_grad[1]:
            weights, totals = sums(softmax, by_code=True, factor=grad, values=sides.x)
            # through the dispatcher: ops are siblings, and siblings do not import each other
            terms = torch.cat([sides.x, torch.ones_like(sides.x[..., :1])], -1) * grad.unsqueeze(-1)
            _, taken = torch.ops.fastvq.statistics.default(
                terms.movedim(0, 1).unsqueeze(0),  # [1, N, H, D + 1]
                torch.where(used, indices, -1).mT.unsqueeze(0),
                softmax.codebook.shape[1],
                None,
            )
            totals, weights = totals - taken[..., :-1], weights - taken[..., -1]
            grad_codebook = sides.through(softmax, totals, weights, by_code=True)
        return grad_x, grad_codebook, None, None, None, None


def saved(ctx: Any) -> tuple[Softmax, tuple[Any, ...]]:
    """The softmax that a Function saved first, its unsound rows harmless, and the rest, of which
    the last says which rows are sound.
    """
    *tensors, sound = ctx.saved_tensors
    return only(Softmax(*tensors[:5], *ctx.options), sound), (*tensors[5:], sound)


def through_logits(
    softmax: Softmax, wanted: tuple[bool, ...], factors: dict[str, Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and the codebook, where wanted, whose factors those of the logits have."""
    sides = Logits.of(softmax)
    grads: list[Tensor | None] = [None, None]
    for by_code, values in ((False, sides.codes), (True, sides.x)):
        if wanted[by_code]:
            weights, totals = sums(softmax, by_code=by_code, values=values, **factors)
            grads[by_code] = sides.through(softmax, totals, weights, by_code=by_code)
    return grads[0], grads[1]


def contained(softmax: Softmax, entropy: Tensor) -> tuple[Softmax, Tensor]:
    """Which rows have a distribution ``[H, N]``, and a softmax in which the others are harmless:
    logits that overflow or have no code to take must not reach what is summed over rows.
    """
    sound = torch.isfinite(entropy)
    kept = only(softmax, sound)
    return kept._replace(
        maximum=torch.where(sound, softmax.maximum, 0),
        log_sum=torch.where(sound, softmax.log_sum, 0),
    ), sound


def only(softmax: Softmax, rows: Tensor) -> Softmax:
    """The softmax with the vectors of all other rows replaced by zeros."""
    return softmax._replace(x=torch.where(rows.unsqueeze(-1), softmax.x, 0))


def amid(codes: Tensor) -> Tensor:
    """A place amid the codes ``[H, K, D]``, whatever outliers there are: ``[H, 1, D]``."""
    some = codes[:, :: -(-codes.shape[1] // _SAMPLED)]
    return some.sort(dim=1).values[:, some.shape[1] // 2].unsqueeze(1)
