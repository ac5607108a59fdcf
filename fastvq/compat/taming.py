# SPDX-License-Identifier: Apache-2.0
"""``VectorQuantizer2`` of taming-transformers and its descendant in Hugging Face diffusers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastvq import ops
from fastvq.compat._fast import Fast

Result = tuple[Tensor, Tensor, tuple[None, None, Tensor]]
# of the largest element; float32 sums over the few vectors of the probe keep a hundredth of it
_PROBE_TOLERANCE = 1e-4


class _Quantizer(Fast):
    """The nearest code without the matrix of distances; all else as the peer has it.

    Also ``legacy=True``, which puts beta on the codebook loss: a checkpoint was trained with it.
    taming-transformers expands the square and diffusers takes ``torch.cdist``; where their rounding
    picks a code that is not the nearest, the code here is another one. A row holding NaN gets
    index 0.
    """

    embedding: nn.Embedding
    beta: float
    legacy: bool
    remap: str | None
    sane_index_shape: bool
    remap_to_used: Callable[[Tensor], Tensor]


class FastVectorQuantizer(_Quantizer):
    """The quantizer of diffusers' ``VQModel``."""

    def forward(self, z: Tensor) -> Result:
        """Codes, loss and indices of z ``[B, D, height, width]``."""
        return _quantize(self, z)


class FastVectorQuantizer2(_Quantizer):
    """taming's class and its copies, which must prove on a probe that they are copies."""

    @classmethod
    def unfit(cls, module: nn.Module) -> str | None:
        """Why the module is no copy of taming's class."""
        embedding = getattr(module, "embedding", None)
        names = ("beta", "legacy", "remap", "sane_index_shape")
        if not all(hasattr(module, name) for name in names) or type(embedding) is not nn.Embedding:
            return "not built as taming's VectorQuantizer2"
        if list(module.state_dict()) != ["embedding.weight"]:
            return "holds more, or other, state than its embedding"
        return super().unfit(module) or _disagreement(module)

    def forward(
        self,
        z: Tensor,
        temp: float | None = None,
        rescale_logits: bool = False,
        return_logits: bool = False,
    ) -> Result:
        """Codes, loss and indices of z ``[B, D, height, width]``."""
        if temp not in (None, 1.0) or rescale_logits or return_logits:
            raise ValueError("temp, rescale_logits and return_logits are for Gumbel quantizers")
        return _quantize(self, z)


def _quantize(module: _Quantizer, z: Tensor) -> Result:
    rows = z.movedim(1, -1)  # [B, height, width, D]
    indices = ops.nearest(rows, module.embedding.weight).indices
    rows = rows.contiguous()
    codes = module.embedding(indices)
    commitment = (codes.detach() - rows).square().mean()
    codebook = (codes - rows.detach()).square().mean()
    if module.legacy:
        loss = commitment + module.beta * codebook
    else:
        loss = module.beta * commitment + codebook
    quantized = (rows + (codes - rows).detach()).movedim(-1, 1).contiguous()
    flat = indices.flatten()
    if module.remap is not None:
        flat = module.remap_to_used(indices.flatten(1)).reshape(-1, 1)
    if module.sane_index_shape:
        flat = flat.reshape(indices.shape)
    return quantized, loss, (None, None, flat)


def _disagreement(module: nn.Module) -> str | None:
    """What the module answers otherwise than ``_quantize`` for a few vectors, if anything."""
    try:
        # a copy, so that nothing of the module can change; in float32, where a bound is tight
        copied: Any = copy.deepcopy(module).float()
        codes = copied.embedding.weight.detach()[:24]
        # near codes and between them, so that a changed metric or normalization shows
        z = (codes + 0.3 * codes.roll(1, 0)).t().reshape(1, codes.shape[1], 1, -1)
        theirs = _answers(type(module).forward, copied, z)
        ours = _answers(_quantize, copied, z)
    except Exception as error:
        return f"fails on a probe: {error}"
    for name, a, b in zip(_Answers._fields, theirs, ours, strict=True):
        same_kind = a.shape == b.shape and a.dtype == b.dtype
        if not same_kind or not (a - b).abs().max() <= _PROBE_TOLERANCE * b.abs().max():
            return f"its {name} are not those of taming's VectorQuantizer2"
    return None


class _Answers(NamedTuple):
    """What a forward answers; chosen codes in the place of indices, which may be tied."""

    codes: Tensor
    losses: Tensor
    chosen: Tensor
    gradients: Tensor


def _answers(forward: Callable[..., Result], module: Any, z: Tensor) -> _Answers:
    weight = module.embedding.weight
    with torch.enable_grad():
        z = z.clone().requires_grad_()
        quantized, loss, (_, _, indices) = forward(module, z)
        wave = torch.arange(quantized.numel(), device=z.device).cos().reshape(quantized.shape)
        wanted = [tensor for tensor in (z, weight) if tensor.requires_grad]
        gradients = torch.autograd.grad(loss + (quantized * wave).sum(), wanted)
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    return _Answers(quantized.detach(), loss.detach(), weight.detach()[indices], flat)
