# SPDX-License-Identifier: Apache-2.0
"""What every quantizer owes to the model that holds it, as a test class to derive from.

Example:
    >>> class TestVectorQuantizer(QuantizerContract):
    ...     def make(self, channel_dim=-1):
    ...         return fastvq.VectorQuantizer(self.dim, 32, channel_dim=channel_dim)
"""

from __future__ import annotations

import copy
import pickle
from abc import abstractmethod

import pytest
import torch
from torch import Tensor, nn

import fastvq


class QuantizerContract:
    """Derive, define ``make``, and pytest runs the whole contract on your quantizer."""

    dim = 16
    # "aot_eager" traces and differentiates all the same, and spares the generated C++, which for a
    # step of training, its gradient and the start of its codes takes a minute
    compiler = "inductor"
    training_compiler = "aot_eager"

    @abstractmethod
    def make(self, channel_dim: int = -1) -> nn.Module:
        """A new quantizer of ``dim`` channels."""

    def batch(self, *leading: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Vectors ``[*leading, dim]``."""
        return torch.randn(*(leading or (6, 20)), self.dim).to(dtype)

    def trained(self, steps: int = 5, channel_dim: int = -1) -> nn.Module:
        """A quantizer that has seen a few batches, still in training mode."""
        quantizer = self.make(channel_dim)
        for _ in range(steps):
            quantizer(self.batch().movedim(-1, channel_dim))
        return quantizer

    @pytest.mark.parametrize("leading", [(), (9,), (3, 5), (2, 3, 4), (2, 3, 2, 2)], ids=str)
    def test_any_leading_shape(self, leading: tuple[int, ...]) -> None:
        quantizer = self.trained()
        x = torch.randn(*leading, self.dim)
        quantized, indices, loss = quantizer(x)
        assert quantized.shape == x.shape
        assert indices.shape[: len(leading)] == leading
        assert indices.dtype == torch.int64
        assert loss.shape == ()

    @pytest.mark.parametrize("spatial", [(7,), (4, 5), (2, 3, 4)], ids=["audio", "image", "video"])
    def test_channels_first_is_channels_last_moved(self, spatial: tuple[int, ...]) -> None:
        quantizer = self.trained(channel_dim=1).eval()
        last = self.make(channel_dim=-1).eval()
        last.load_state_dict(quantizer.state_dict())
        x = torch.randn(2, self.dim, *spatial)
        quantized, indices, loss = quantizer(x)
        expected = last(x.movedim(1, -1))
        assert torch.equal(quantized.movedim(1, -1), expected.quantized)
        assert torch.equal(indices, expected.indices)
        assert torch.equal(loss, expected.loss)
        assert torch.equal(quantizer.decode(indices), quantized)

    def test_empty_batch(self) -> None:
        quantizer = self.trained()
        before = copy.deepcopy(quantizer.state_dict())
        quantized, indices, loss = quantizer(torch.empty(0, 7, self.dim))
        assert quantized.shape == (0, 7, self.dim)
        assert indices.numel() == 0
        assert loss == 0
        for value in quantizer.state_dict().values():
            assert torch.isfinite(value.float()).all()
        assert before.keys() == quantizer.state_dict().keys()

    def test_encode_and_decode_are_the_two_halves_of_forward(self) -> None:
        quantizer = self.trained().eval()
        x = self.batch()
        quantized, indices, _ = quantizer(x)
        assert torch.equal(quantizer.encode(x), indices)
        assert torch.equal(quantizer.decode(indices), quantized)
        assert torch.equal(quantizer.decode(indices.to(torch.int32)), quantized)

    def test_eval_changes_nothing(self) -> None:
        quantizer = self.trained().eval()
        before = copy.deepcopy(quantizer.state_dict())
        first = quantizer(self.batch())
        del first
        for name, value in quantizer.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_eval_before_training_changes_nothing(self) -> None:
        quantizer = self.make().eval()
        before = copy.deepcopy(quantizer.state_dict())
        quantizer(self.batch())
        for name, value in quantizer.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_gradient_reaches_the_input(self) -> None:
        quantizer = self.trained()
        x = self.batch().requires_grad_()
        quantized, _, loss = quantizer(x)
        (quantized.sum() + loss).backward()
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
        assert (x.grad.flatten(0, -2).abs().amax(-1) > 0).all()

    def test_every_parameter_gets_a_gradient(self) -> None:
        quantizer = self.trained()
        x = self.batch(40, 50).requires_grad_()
        quantized, _, loss = quantizer(x)
        (quantized.square().sum() + loss).backward()
        for name, parameter in quantizer.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name

    def test_two_forwards_before_a_backward(self) -> None:
        # gradient accumulation in one graph: the first graph must survive the second's update
        quantizer = self.trained()
        x, y = self.batch().requires_grad_(), self.batch().requires_grad_()
        first, second = quantizer(x), quantizer(y)
        (first.quantized.sum() + first.loss + second.quantized.sum() + second.loss).backward()
        assert x.grad is not None
        assert y.grad is not None

    def test_state_dict_round_trip(self) -> None:
        quantizer = self.trained().eval()
        other = self.make().eval()
        other.load_state_dict(copy.deepcopy(quantizer.state_dict()))
        x = self.batch()
        for a, b in zip(quantizer(x), other(x), strict=True):
            assert torch.equal(a, b)
        # and training goes on alike: nothing that matters is outside the state dict
        x = self.batch()
        for module in (quantizer.train(), other.train()):
            torch.manual_seed(5)
            module(x)
        for a, b in zip(quantizer.state_dict().values(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b)

    def test_checkpoint_of_another_shape_is_refused(self) -> None:
        quantizer = self.trained()
        state = {
            name: torch.cat([v, v]) if v.ndim else v for name, v in quantizer.state_dict().items()
        }
        with pytest.raises(RuntimeError, match="size mismatch"):
            quantizer.load_state_dict(state)

    @pytest.mark.parametrize(
        "copier",
        [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
        ids=["deepcopy", "pickle"],
    )
    def test_copies_are_equal_and_apart(self, copier) -> None:  # type: ignore[no-untyped-def]
        quantizer = self.trained()
        other = copier(quantizer)
        before = copy.deepcopy(quantizer.state_dict())
        other(self.batch())
        for name, value in quantizer.state_dict().items():
            assert torch.equal(value, before[name]), name
        x = self.batch()
        assert torch.equal(copier(quantizer.eval())(x).indices, quantizer(x).indices)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
    def test_models_of_other_dtypes(self, dtype: torch.dtype) -> None:
        quantizer = self.make().to(dtype)
        for _ in range(3):
            x = self.batch(dtype=dtype).requires_grad_()
            quantized, indices, loss = quantizer(x)
            (quantized.float().sum() + loss).backward()
        assert quantized.dtype == dtype
        assert x.grad is not None
        assert x.grad.dtype == dtype
        assert quantizer.decode(indices).dtype == dtype
        assert torch.isfinite(loss)

    def test_autocast(self) -> None:
        plain, cast = self.trained().eval(), None
        x = self.batch()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = plain(x)
        assert cast.quantized.dtype == torch.float32
        assert cast.loss.dtype == torch.float32
        plain.train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = plain(x.requires_grad_())
            (out.quantized.sum() + out.loss).backward()
        assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]

    def test_same_seed_same_bits(self) -> None:
        runs = []
        for _ in range(2):
            torch.manual_seed(11)
            runs.append(self.trained().state_dict())
        for a, b in zip(runs[0].values(), runs[1].values(), strict=True):
            assert torch.equal(a, b)

    def test_bad_row_never_reaches_the_state(self) -> None:
        quantizer = self.trained()
        x = self.batch(5, 8)
        x[2, 3, 4] = torch.nan
        x[4, 1, 0] = torch.inf
        quantized, indices, _ = quantizer(x)
        for name, value in quantizer.state_dict().items():
            assert torch.isfinite(value.float()).all(), name
        good = torch.isfinite(x).all(-1)
        assert torch.isfinite(quantized[good]).all()

    def test_bad_row_in_the_first_batch(self) -> None:
        quantizer = self.make()
        x = self.batch(10, 20)
        x[0, 0, 0] = torch.nan
        quantizer(x)
        for name, value in quantizer.state_dict().items():
            assert torch.isfinite(value.float()).all(), name

    def test_compiles_whole_in_training(self) -> None:
        torch.compiler.reset()
        quantizer = self.make()
        compiled = torch.compile(quantizer, fullgraph=True, backend=self.training_compiler)
        for _ in range(3):
            x = self.batch().requires_grad_()
            quantized, indices, loss = compiled(x)
            (quantized.sum() + loss).backward()
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()

    def test_compiles_whole_in_eval(self) -> None:
        torch.compiler.reset()
        quantizer = self.trained().eval()
        compiled = torch.compile(quantizer, fullgraph=True, backend=self.compiler)
        x = self.batch()
        for actual, expected in zip(compiled(x), quantizer(x), strict=True):
            torch.testing.assert_close(actual, expected)

    def test_exports_in_eval(self) -> None:
        quantizer = self.trained().eval()
        x = self.batch()
        program = torch.export.export(quantizer, (x,))
        for actual, expected in zip(program.module()(x), quantizer(x), strict=True):
            torch.testing.assert_close(actual, expected)

    @pytest.mark.parametrize("shape", [(3, 4, 15), (15,)], ids=str)
    def test_wrong_channels_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=rf"dim = {self.dim} channels.*got \[.*15\]"):
            self.make()(torch.randn(*shape))

    def test_integers_are_refused(self) -> None:
        with pytest.raises(TypeError, match="got int64"):
            self.make()(torch.ones(3, self.dim, dtype=torch.int64))

    def test_index_out_of_range_is_refused(self) -> None:
        quantizer = self.trained()
        indices = quantizer.encode(self.batch())
        with pytest.raises(IndexError, match=r"\[-1, K = \d+\), got 100000"):
            quantizer.decode(torch.full_like(indices, 100000))
        with pytest.raises(TypeError, match="integers, got float32"):
            quantizer.decode(indices.float())

    def test_reads_well(self) -> None:
        assert f"dim={self.dim}" in repr(self.make())
        assert type(self.make()).__name__ in fastvq.__all__
