# SPDX-License-Identifier: Apache-2.0
"""``to_fastvq`` and ``from_fastvq``: the state dicts of other libraries' quantizers, both ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastvq import _checks
from fastvq.compat._keys import Keys
from fastvq.compat._layouts import LAYOUTS


class Converted(NamedTuple):
    """A quantizer of fastvq as a recipe.

    Attributes:
        quantizer: its class.
        arguments: of the constructor, as far as a checkpoint tells them: sizes, and how the codes
            learn. Decays, metrics and weights of losses are in no checkpoint.
        state_dict: its tensors.
    """

    quantizer: Callable[..., nn.Module]
    arguments: dict[str, Any]
    state_dict: dict[str, Tensor]

    def build(self) -> nn.Module:
        """The quantizer, on the device of the tensors and with its own copy of them."""
        made = self.quantizer(**self.arguments)
        some = next((t for t in self.state_dict.values() if t.is_floating_point()), None)
        if some is not None:
            made = made.to(device=some.device, dtype=some.dtype)
        made.load_state_dict(self.state_dict)
        return made


def to_fastvq(
    peer: str,
    state_dict: Mapping[str, Tensor],
    prefix: str = "",
    *,
    arguments: Mapping[str, Any] | None = None,
) -> Converted:
    """What another library's quantizer is in fastvq.

    Args:
        peer: whose layout the state dict has:

            - ``lucidrains.VectorQuantize``, of any age: ``initted`` as a float, codes without the
              axis of heads; ``lucidrains.ResidualVQ``, ``lucidrains.SimVQ``, ``lucidrains.LFQ``,
              and ``lucidrains.FSQ``, whose ``levels`` are in no checkpoint and must be given;
            - ``taming``: ``VectorQuantizer`` and ``VectorQuantizer2``; also diffusers' ``VQModel``;
            - ``encodec`` and ``mimi``: Meta's and Kyutai's own checkpoints;
              ``encodec.transformers`` and ``mimi.transformers``: those of Hugging Face;
            - ``dac``, Descript's own, whose weights are normalized, and ``dac.transformers``;
            - ``rosinality``: its codes are transposed; ``zalando`` and ``zalando.EMA``;
            - ``rq-vae-transformer``: the last row of its codes is padding.

        state_dict: the checkpoint, of the quantizer or of a whole model.
        prefix: what the names of the quantizer's tensors start with, the dot included:
            ``quantizer.`` in EnCodec, ``quantizer.rvq_rest.`` in Mimi.
        arguments: of the constructor, beside or in place of those that the tensors tell.

    Returns:
        :class:`Converted`; its ``build()`` is the quantizer.

    Raises:
        ValueError: the peer is unknown, a key is missing, or one is there that has no counterpart.

    Note:
        Codes and counts are carried over bit by bit. A moving average of sums that a library keeps
        beside them is left: :class:`fastvq.EMA` needs none.

    Example:
        >>> import torch, fastvq
        >>> checkpoint = {"quantize.embedding.weight": torch.randn(1024, 256)}
        >>> vq = fastvq.compat.to_fastvq("taming", checkpoint, "quantize.").build()
        >>> vq.codebook_size, vq.codebook_dim, vq.channel_dim
        (1024, 256, 1)
    """
    _checks.one_of("peer", peer, LAYOUTS)
    layout, keys = LAYOUTS[peer], Keys(peer, state_dict, prefix)
    told, state = layout.read(keys)
    keys.finish()
    state = {name: tensor.clone() for name, tensor in state.items()}
    return Converted(layout.quantizer, {**told, **(arguments or {})}, state)


def from_fastvq(peer: str, quantizer: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """The state dict that another library loads to have the codes of a quantizer of fastvq.

    Args:
        peer: whose layout, as in :func:`to_fastvq`.
        quantizer: of the class that ``to_fastvq`` gives for this layout.
        prefix: what all names are to start with.

    Returns:
        Tensors that share no memory with the quantizer. Moving averages of sums are made of codes
        and counts, so that the library's next update goes on from these codes.

    Raises:
        ValueError: the peer is unknown, or has no place for what the quantizer does.
        TypeError: the quantizer is of another class.

    Note:
        Codes are the same to the last bit. Mimi keeps sums and counts only, whose quotient may be
        one rounding off; it is not where the codes came from Mimi. Of cosine codes the average
        gets the length of the count, as if all vectors of a code had agreed. A normalized weight of
        DAC is the product of its parts, one rounding off; the parts that come back make it again.
    """
    _checks.one_of("peer", peer, LAYOUTS)
    layout: Any = LAYOUTS[peer]
    if not isinstance(quantizer, layout.quantizer):
        raise TypeError(
            f"quantizer must be a {layout.quantizer.__name__} for the layout of {peer}, "
            f"got {type(quantizer).__name__}"
        )
    return {prefix + name: tensor for name, tensor in layout.write(peer, quantizer).items()}
