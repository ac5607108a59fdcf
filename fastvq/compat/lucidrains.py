# SPDX-License-Identifier: Apache-2.0
"""``VectorQuantize`` of lucidrains' vector-quantize-pytorch, alone and in its ``ResidualVQ``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastvq import ops
from fastvq.compat._fast import Fast, Part
from fastvq.nn import EMA, Frozen, Given, KMeans, Revival, VectorQuantizer
from fastvq.ops.nearest.api import Metric


class FastCodebook(Fast):
    """The search without the matrix of distances, the statistics without the one-hot matrix.

    Takes over every call whose answer is the nearest code; the original answers the rest, which
    :meth:`_is_nearest` lists. The third result, the distances, is then ``None``.

    The peer's answer differs where it is wrong by its rounding: codes nearer than 1e-4 are all one
    to its ``clamp(1e-8)``; outside CUDA, autocast takes distances, and in training the codes
    returned, in 16 bits. A vector holding NaN or Inf gets index 0 and no part in the statistics,
    where the peer's one-hot product spreads it over every code.
    """

    embed: Tensor
    cluster_size: Tensor
    embed_avg: Tensor
    learnable_codebook: bool
    use_cosine_sim: bool
    codebook_size: int
    decay: float
    sample_codebook_temp: float
    gumbel_sample: partial[tuple[Tensor, Tensor]]
    all_reduce_fn: Callable[[Tensor], object]
    init_embed_: Callable[..., None]
    update_codebook: Callable[..., None]
    needs_distances = False

    @classmethod
    def unfit(cls, module: nn.Module) -> str | None:
        """Why the codebook cannot be taken over."""
        if getattr(module, "affine_param", False):
            return "its codes are affine in the statistics of the batch"
        if getattr(module, "vq_bridge", None) is not None:
            return "its codes come out of a network (vq_bridge)"
        if getattr(getattr(module, "gumbel_sample", None), "func", None) is None:
            return "it samples codes with a function of its own"
        return super().unfit(module)

    def forward(
        self,
        x: Tensor,
        sample_codebook_temp: float | None = None,
        mask: Tensor | None = None,
        freeze_codebook: bool = False,
        codebook_transform_fn: Callable[[Tensor], Tensor] | None = None,
        ema_update_weight: Tensor | Callable[..., Tensor] | None = None,
        accum_ema_update: bool = False,
        ema_update: bool | None = None,
        topk: int | None = None,
        update_usage: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes, indices and ``None`` for vectors ``[B, M, D]`` or ``[H, B, M, D]``."""
        if not self._is_nearest(codebook_transform_fn, topk):
            return super().forward(
                x,
                sample_codebook_temp,
                mask,
                freeze_codebook,
                codebook_transform_fn,
                ema_update_weight,
                accum_ema_update,
                ema_update,
                topk,
                update_usage,
            )
        vectors = x.float() if x.ndim == 4 else x.float().unsqueeze(0)
        flatten = vectors.flatten(1, -2)  # [H, N, D]
        if mask is not None:
            # one row of the mask for each head that shares the codebook
            repeats = flatten.shape[1] // mask.numel()
            mask = mask.unsqueeze(1).expand(-1, repeats, -1).reshape(1, -1)
            mask = mask.expand(flatten.shape[0], -1)  # [H, N]
        self.init_embed_(flatten, mask=mask)
        embed = (self.embed if self.learnable_codebook else self.embed.detach()).float()
        # the peer's criterion under cosine, also for codes that were loaded without unit length
        metric: Metric = "dot" if self.use_cosine_sim else "euclidean"
        indices = ops.nearest(flatten.transpose(0, 1), embed, metric=metric).indices.t()  # [H, N]
        quantize = embed.gather(1, indices.unsqueeze(-1).expand(-1, -1, embed.shape[-1]))
        if self.training and update_usage and not freeze_codebook:
            self.update_codebook(
                flatten,
                indices,
                mask=mask,
                ema_update_weight=ema_update_weight,
                accum_ema_update=accum_ema_update,
                ema_update=self.ema_update if ema_update is None else ema_update,
            )
        leading = x.shape[:-1]
        return quantize.reshape(x.shape), indices.reshape(leading), None

    def track_cluster_size_and_embed_avg(
        self,
        flatten: Tensor,
        embed_onehot: Tensor,
        mask: Tensor | None = None,
        ema_update_weight: Tensor | Callable[..., Tensor] | None = None,
        accum_ema_update: bool = False,
    ) -> None:
        """The moving averages; indices ``[H, N]`` come in the place of the one-hot matrix."""
        if embed_onehot.ndim == 3:
            return super().track_cluster_size_and_embed_avg(  # type: ignore[misc]
                flatten, embed_onehot, mask, ema_update_weight, accum_ema_update
            )
        from vector_quantize_pytorch import vector_quantize_pytorch as library

        indices = embed_onehot if mask is None else torch.where(mask, embed_onehot, -1)
        codes = (flatten.shape[0], self.codebook_size)
        counts, sums = ops.statistics(flatten.transpose(0, 1), indices.t(), codes)
        self.all_reduce_fn(counts)
        self.all_reduce_fn(sums)
        if callable(ema_update_weight):
            ema_update_weight = ema_update_weight(sums, counts)
        for average, new in ((self.cluster_size, counts), (self.embed_avg, sums)):
            if accum_ema_update:
                library.accum_grad_(average, new)
            else:
                library.ema_inplace(average, new, self.decay, ema_update_weight)

    def _is_nearest(self, transform: Callable[..., Tensor] | None, topk: int | None) -> bool:
        """Whether this call asks for the nearest code of a fixed codebook and for nothing else."""
        if transform is not None or topk is not None or self.needs_distances:
            return False
        # Gumbel noise, its straight-through softmax, and the gradient of learned codes
        sampled = any(self.gumbel_sample.keywords.values())
        return not self.training or not (sampled or self.learnable_codebook)


class FastVectorQuantize(Fast):
    """Tells its codebook when somebody needs the distances of every code."""

    _codebook: FastCodebook
    has_codebook_diversity_loss: bool
    commitment_use_cross_entropy_loss: bool

    @classmethod
    def unfit(cls, module: nn.Module) -> str | None:
        """Why the quantizer, or the codebook in it, cannot be taken over."""
        codebook = getattr(module, "_codebook", None)
        if isinstance(codebook, Fast):  # shared by several quantizers
            return super().unfit(module)
        if not isinstance(codebook, nn.Module) or type(codebook).__name__ != "Codebook":
            return f"its codebook is of an unknown class, {type(codebook).__name__}"
        return super().unfit(module) or FastCodebook.unfit(codebook)

    @classmethod
    def parts(cls, module: nn.Module) -> list[Part]:
        """The quantizer and its codebook."""
        return [
            *super().parts(module),
            Part("_codebook", module.get_submodule("_codebook"), FastCodebook),
        ]

    def forward(self, x: Tensor, indices: Tensor | None = None, *rest: Any, **named: Any) -> Any:
        """As the peer's; cross entropies and the diversity loss go the peer's way throughout."""
        distances = self.training and (
            self.has_codebook_diversity_loss or self.commitment_use_cross_entropy_loss
        )
        if indices is None and not distances:
            return super().forward(x, indices, *rest, **named)
        self._codebook.needs_distances = True
        try:
            return super().forward(x, indices, *rest, **named)
        finally:
            del self._codebook.needs_distances


def from_lucidrains(
    module: Any, *, state_dict: Mapping[str, Tensor] | None = None
) -> VectorQuantizer:
    """A :class:`fastvq.VectorQuantizer` with the codes of lucidrains' ``VectorQuantize``.

    Codes, counts, projections, decay, commitment weight, device, dtype and training flag are
    carried over, and both then give the same codes and outputs in eval. What changes: the gradient
    is the plain straight-through one, also where the module rotates; EMA has no Laplace smoothing;
    the loss is there in eval too; dead codes come back by fastvq's relative threshold, since the
    module's absolute one means nothing at another batch size; a module that is not initialized yet
    starts by fastvq's k-means, and in training only.

    Args:
        module: a ``VectorQuantize`` that learns by EMA or is frozen, euclidean or cosine, with one
            codebook for each head, with or without projections.
        state_dict: its weights, where they come from a checkpoint; of any age: ``initted`` as a
            float and codes without the axis of the heads are understood.

    Returns:
        A quantizer that shares no memory with the module.

    Raises:
        TypeError: the module is not a ``VectorQuantize``.
        ValueError: it does what a ``VectorQuantizer`` does not, or the state dict has no codes; the
            text says which.
        RuntimeError: the projections of the state dict do not fit the module.
    """
    if not hasattr(module, "_codebook") or not hasattr(module, "project_in"):
        raise TypeError(f"module must be a VectorQuantize, got {type(module).__name__}")
    _refuse(module)
    state = module.state_dict() if state_dict is None else state_dict
    if "_codebook.embed" not in state or "_codebook.cluster_size" not in state:
        raise ValueError(f"state_dict must hold _codebook.embed, got {list(state)}")
    # before 2022-07 there was no axis of heads
    codes, counts = (
        tensor if tensor.ndim == axes else tensor.unsqueeze(0)
        for tensor, axes in ((state["_codebook.embed"], 3), (state["_codebook.cluster_size"], 2))
    )  # [H, K, D], [H, K]
    heads, codebook_size, codebook_dim = codes.shape
    book = module._codebook
    # what an older version has no word for, it does not do
    learns = book.ema_update and not getattr(module, "freeze_codebook", False)
    volumes = getattr(module, "accept_3d_fmap", False)
    channels_first = not module.channel_last or module.accept_image_fmap or volumes
    # a float until 2025-11
    started = bool(state.get("_codebook.initted", torch.tensor(True)).all())
    quantizer = VectorQuantizer(
        module.dim,
        codebook_size,
        codebook_dim=codebook_dim,
        heads=heads,
        metric="cosine" if module.use_cosine_sim else "euclidean",
        learning=EMA(decay=book.decay) if learns else Frozen(),
        start=Given(codes) if started else KMeans(iterations=book.kmeans_iters),
        revival=Revival() if book.threshold_ema_dead_code > 0 else None,
        commitment_weight=module.commitment_weight,
        channel_dim=1 if channels_first else -1,
    ).to(device=codes.device, dtype=codes.dtype)
    with torch.no_grad():
        # as they are: a start puts cosine codes on the sphere once more, which moves the last bit
        quantizer.book.vectors.copy_(codes)
        quantizer.book.cluster_size.copy_(counts)
    for name in ("project_in", "project_out"):
        prefix = f"{name}."
        weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        quantizer.get_submodule(name).load_state_dict(weights)
    return quantizer.train(module.training)


def _refuse(module: Any) -> None:
    """Raises for what a ``VectorQuantizer`` has no like of."""
    book = module._codebook
    sampling = getattr(book.gumbel_sample, "keywords", {})
    refused = {
        "heads that share one codebook": module.heads > 1 and not module.separate_codebook_per_head,
        "a codebook learned by gradient": book.learnable_codebook,
        "affine_param": getattr(book, "affine_param", False),
        "sampled codes": any(sampling.values()),
        "manual_ema_update": book.manual_ema_update,
        "a codebook diversity loss": module.has_codebook_diversity_loss,
        "a cross entropy for a commitment loss": module.commitment_use_cross_entropy_loss,
        "layernorm_after_project_in": isinstance(module.project_in, nn.Sequential),
    }
    found = [words for words, is_there in refused.items() if is_there]
    if found:
        raise ValueError(f"a VectorQuantizer has no {', no '.join(found)}")
