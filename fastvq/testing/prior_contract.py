# SPDX-License-Identifier: Apache-2.0
"""What every prior owes to the codes it models, as a test class to derive from.

Example:
    >>> class TestGatedPixelCNN(PriorContract):
    ...     shallow: ClassVar = {"layers": 1}
    ...
    ...     def make(self, **fields):
    ...         config = GatedPixelCNNConfig(self.codes, **{"channels": 8, "layers": 7} | fields)
    ...         return GatedPixelCNN(config)
"""
# ruff: noqa: D102 - the names of the tests say what they hold

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from fastvq.priors import sample_from
from fastvq.testing._prior_cases import (
    BUDGETS,
    NO_DROPOUT,
    PriorCases,
    Shape,
    earlier,
    influence,
    on_an_edge,
    one_row,
)


class PriorContract(PriorCases):
    """Derive, define ``make``, and pytest runs the whole contract on your prior.

    :class:`PriorCases` says what else a subclass may set.
    """

    def test_depends_on_every_earlier_code_and_on_no_other(
        self, shape: Shape, condition: str, variant: str
    ) -> None:
        # the first position included: it must move for no code at all
        prior = self.prior(condition, variant)
        moved = influence(prior, *self.draw(prior, 1, shape))
        before = earlier(len(moved))
        assert self.sees(prior, shape)[before].all(), "make a prior that sees the whole grid"
        assert moved[~before].amax() <= 1e-12
        # far codes act through many small products: any change above rounding counts
        assert (moved[before] > 1e-12).all(), f"{int((moved[before] <= 1e-12).sum())} not seen"

    def test_reach_is_exact(self) -> None:
        if self.shallow is None:
            pytest.skip("this prior sees everything, however shallow")
        prior, shape = self.make(**self.shallow).double().eval(), self.shapes[0]
        sees = self.sees(prior, shape)
        assert not sees[earlier(len(sees))].all()
        codes, labels, context = self.draw(prior, 1, shape)
        assert torch.equal(influence(prior, codes, labels, context) > 1e-12, sees)

    def test_every_parameter_learns(self, condition: str, variant: str) -> None:
        # a finite gradient everywhere, and in every output channel or table row one that is not 0
        fields = {**NO_DROPOUT, **self.variants[variant], **self.conditions[condition]}
        prior = self.make(**fields)
        # enough grids that each label is hidden at least once and shown at least once
        codes, labels, context = self.draw(prior, 64, self.shapes[0])
        if isinstance(context, Tensor):
            context.requires_grad_()
        prior.nll(codes, labels, context).mean().backward()
        for name, parameter in prior.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            rows = parameter.grad.reshape(len(parameter) if parameter.ndim else 1, -1)
            assert rows.any(dim=1).all(), name
        # what a context is made from learns too
        if isinstance(context, Tensor):
            assert context.grad is not None
            assert context.grad.flatten(2).any(dim=-1).all()

    def test_labels_and_context_move_the_logits(self, condition: str) -> None:
        prior, shape = self.prior(condition), self.shapes[0]
        codes, labels, context = self.draw(prior, 1, shape)
        answers = []
        with torch.no_grad():
            if labels is None:
                answers.append(prior(codes, None, context))
            else:
                answers += [prior(codes, torch.tensor([i]), context) for i in range(3)]
                if prior.config.label_dropout:
                    answers.append(prior(codes, None, context))
            if context is not None:
                answers.append(prior(codes, labels, self.context(prior, 1, shape)))
        logits = torch.stack(answers).flatten(1, -2)  # [answers, T, K]
        for position in logits.unbind(1):
            apart = torch.pdist(position)
            assert apart.numel() == 0 or apart.min() > 1e-4

    @torch.no_grad()
    def test_rows_of_a_batch_are_apart(self, condition: str) -> None:
        prior = self.prior(condition)
        codes, labels, context = self.draw(prior, 3, self.shapes[0])
        together = prior(codes, labels, context)
        assert together.shape == (*codes.shape, self.codes)
        assert together.dtype == torch.float64
        for row in range(3):
            alone = prior(*one_row(row, codes, labels, context))
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-12)

    @pytest.mark.parametrize("seed", [0, 1, 2])
    @pytest.mark.parametrize("batch", [1, 16])
    @torch.no_grad()
    def test_cached_logits_are_those_of_the_whole_prior(
        self, seed: int, batch: int, condition: str, variant: str, dtype: torch.dtype
    ) -> None:
        torch.manual_seed(seed)
        prior = self.prior(condition, variant, dtype)
        shape = self.shapes[(seed + (batch == 1)) % len(self.shapes)]
        codes, labels, context = self.draw(prior, batch, shape)
        expected = prior(codes, labels, context)
        assert expected.std() > 0.5, "make a prior with larger weights"
        stepper, logits = prior.stepper(batch, shape, labels, context), []
        for column in codes.flatten(1).unbind(1):
            logits.append(stepper.logits())
            stepper.append(column)
        found = torch.stack(logits, dim=1).view_as(expected)
        assert (found - expected).abs().max() <= BUDGETS[dtype]

    @pytest.mark.parametrize("seed", [0, 1, 2])
    @pytest.mark.parametrize("batch", [1, 16])
    @pytest.mark.parametrize(
        "options", [{}, {"temperature": 0.7, "top_k": 6, "top_p": 0.9}], ids=["plain", "filtered"]
    )
    def test_cached_samples_are_those_of_the_whole_prior(
        self, seed: int, batch: int, extreme: str, dtype: torch.dtype, options: dict[str, Any]
    ) -> None:
        torch.manual_seed(seed)
        variant = list(self.variants)[seed % len(self.variants)]
        prior = self.prior(extreme, variant, dtype)
        shape = self.sampled_shapes[(seed + (batch == 1)) % len(self.sampled_shapes)]
        _, labels, context = self.draw(prior, batch, shape)
        uniforms = torch.rand(batch, *shape, dtype=torch.float64)
        cached = sample_from(prior, uniforms, labels, context=context, **options)
        whole = sample_from(prior, uniforms, labels, context=context, cached=False, **options)
        # a last-bit difference of the logits may decide a uniform on the very edge between two
        # codes: such a grid is excused when its first difference lies on an edge, any other not
        excused = []
        for row in (cached != whole).flatten(1).any(1).nonzero().flatten().tolist():
            codes, label, given = one_row(row, whole, labels, context)
            first = int((cached[row] != whole[row]).flatten().int().argmax())
            with torch.no_grad():
                logits = prior(codes, label, given).flatten(1, -2)[:, first]
            uniform = uniforms[row].flatten()[first]
            excused.append(on_an_edge(logits, uniform, BUDGETS[dtype], options))
        assert all(excused)
        # edges are rare: 1e-5 of the numbers
        assert len(excused) <= 1

    @torch.no_grad()
    def test_a_sample_is_what_its_prior_says_at_each_position(self, condition: str) -> None:
        # teacher forcing a sample through the whole prior, its distribution functions agree
        prior, shape = self.prior(condition), self.sampled_shapes[0]
        _, labels, context = self.draw(prior, 8, shape)
        uniforms = torch.rand(8, *shape, dtype=torch.float64)
        codes = sample_from(prior, uniforms, labels, context=context)
        cumulative = prior(codes, labels, context).softmax(-1).cumsum(-1)
        above = cumulative.gather(-1, codes[..., None])[..., 0]
        below = above - (-prior.nll(codes, labels, context)).exp()
        assert ((below <= uniforms + 1e-12) & (uniforms < above + 1e-12)).all()

    def test_samples_without_labels(self, classed: str) -> None:
        # what cached and recomputed sampling do for None is the row of "no label"
        prior, shape = self.prior(classed), self.sampled_shapes[0]
        uniforms = torch.rand(4, *shape, dtype=torch.float64)
        context = self.context(prior, 4, shape)
        cached = sample_from(prior, uniforms, context=context)
        assert torch.equal(cached, sample_from(prior, uniforms, context=context, cached=False))

    def test_dropout_acts_in_training_only(self, extreme: str) -> None:
        classed = self.conditions[extreme].get("num_classes") is not None
        names = ["dropout", "code_dropout"] + (["label_dropout"] if classed else [])
        for name in names:
            prior = self.make(**{**self.conditions[extreme], **NO_DROPOUT, name: 0.5})
            given = self.draw(prior, 8, self.shapes[0])
            with torch.no_grad():
                assert not torch.equal(prior(*given), prior(*given)), name
                prior.eval()
                assert torch.equal(prior(*given), prior(*given)), name

    @torch.no_grad()
    def test_hidden_labels_answer_as_no_label(self, classed: str) -> None:
        fields = {**self.conditions[classed], **NO_DROPOUT, "label_dropout": 0.999999}
        prior = self.make(**fields)
        codes, labels, context = self.draw(prior, 4, self.shapes[0])
        hidden = prior(codes, labels, context)
        torch.testing.assert_close(hidden, prior.eval()(codes, None, context))

    @pytest.mark.slow
    @pytest.mark.parametrize("training", [True, False])
    def test_compiles_whole(self, extreme: str, training: bool) -> None:
        torch.compiler.reset()
        prior = self.make(**self.conditions[extreme]).train(training)
        codes, labels, context = self.draw(prior, 8, self.shapes[0])
        compiled = torch.compile(prior.nll, fullgraph=True, backend="aot_eager")
        nll = compiled(codes, labels, context)
        if not training:
            torch.testing.assert_close(nll, prior.nll(codes, labels, context))
        nll.mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in prior.parameters())

    def test_state_dict_round_trip(self, extreme: str, variant: str) -> None:
        prior, other = self.prior(extreme, variant), self.prior(extreme, variant)
        before = copy.deepcopy(prior.state_dict())
        given = self.draw(prior, 2, self.shapes[0])
        expected = prior.train()(*given)
        del expected
        for name, value in prior.state_dict().items():
            assert torch.equal(value, before[name]), f"forward changed {name}"
        assert not torch.equal(prior.eval()(*given), other(*given))
        other.load_state_dict(before)
        assert torch.equal(prior(*given), other(*given))

    def test_empty_batch(self, extreme: str) -> None:
        prior, shape = self.prior(extreme), self.shapes[0]
        assert prior(*self.draw(prior, 0, shape)).shape == (0, *shape, self.codes)

    def test_refuses_codes(self) -> None:
        prior, shape = self.prior(next(iter(self.conditions))), self.sampled_shapes[0]
        codes, labels, context = self.draw(prior, 2, shape)
        empty = torch.zeros(2, 0, *shape[1:], dtype=torch.int64)
        elsewhere = codes.to("meta")
        for wrong, error, message in (
            (codes.float(), TypeError, "codes must be an int64 tensor, got float32"),
            (codes.tolist(), TypeError, "codes must be an int64 tensor, got list"),
            (empty, ValueError, r"each at least 1, got \[2, 0"),
            (elsewhere, ValueError, "codes and the prior must be on one device, got meta and cpu"),
            (codes * 0 + self.codes, ValueError, rf"codes must be in .*, got {self.codes}"),
            (codes * 0 - 1, ValueError, rf"codes must be in \[0, K = {self.codes}\), got -1"),
        ):
            with pytest.raises(error, match=message):
                prior(wrong, labels, context)
        if prior.grid_dims is not None:
            with pytest.raises(ValueError, match=f"{prior.grid_dims} axes in shape"):
                prior(codes[..., None], labels, context)

    def test_refuses_labels(self, condition: str) -> None:
        prior, shape = self.prior(condition), self.sampled_shapes[0]
        codes, labels, context = self.draw(prior, 2, shape)
        if labels is None:
            with pytest.raises(ValueError, match="labels must be None for a prior without classes"):
                prior(codes, torch.tensor([0, 0]), context)
            return
        for wrong, error, message in (
            (torch.zeros(2), TypeError, "labels must be an int64 tensor, got float32"),
            (labels[:1], ValueError, r"labels must be \[B\] with B = 2, got \[1\]"),
            (labels * 0 + 3, ValueError, r"labels must be in \[0, num_classes = 3\), got 3"),
        ):
            with pytest.raises(error, match=message):
                prior(codes, wrong, context)
            with pytest.raises(error, match=message):
                prior.stepper(2, shape, wrong, context)
        if not prior.config.label_dropout:
            with pytest.raises(ValueError, match="labels must be given: the prior has classes"):
                prior(codes, None, context)

    def test_refuses_contexts(self, condition: str) -> None:
        prior, shape = self.prior(condition), self.sampled_shapes[0]
        codes, labels, context = self.draw(prior, 2, shape)
        if context is None:
            with pytest.raises(ValueError, match="context must be None for a prior without"):
                prior(codes, labels, torch.zeros(2, 2, *shape))
            return
        assert isinstance(context, Tensor)
        channels_last = context.movedim(1, -1)
        for wrong, error, message in (
            (None, TypeError, r"context must be a floating tensor \[2, 2.*got none"),
            ((codes,), TypeError, r"context must be a floating tensor \[2, 2.*got tuple"),
            (context.long(), TypeError, "context must be float32.*got int64"),
            (channels_last, ValueError, r"context must be \[2, 2, .*got \[2"),
            (context[:1], ValueError, r"context must be \[2, 2, .*got \[1, 2"),
        ):
            with pytest.raises(error, match=message):
                prior(codes, labels, wrong)
            with pytest.raises(error, match=message):
                prior.stepper(2, shape, labels, wrong)

    def test_refuses_to_step_where_it_cannot(self, extreme: str) -> None:
        prior, shape = self.prior(extreme), self.sampled_shapes[0]
        _, labels, context = self.draw(prior, 1, shape)
        with pytest.raises(ValueError, match=r"shape must have .* each at least 1, got"):
            prior.stepper(1, (*shape[:-1], 0), labels, context)
        with pytest.raises(RuntimeError, match="eval mode"):
            prior.train().stepper(1, shape, labels, context)
