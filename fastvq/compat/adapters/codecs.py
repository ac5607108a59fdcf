# SPDX-License-Identifier: Apache-2.0
"""The residual quantizers of EnCodec and Mimi, as Hugging Face transformers has them.

There they encode and decode and cannot learn: :func:`fastvq.accelerate` is what makes a model at
hand faster. These are for training: ``quantizer`` within them is a :class:`fastvq.ResidualVQ` with
its defaults, whose ``forward(x, levels=n)`` learns, and what is saved loads into the library's
model.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastvq.compat._adapter import Adapter
from fastvq.nn import ResidualVQ


class EncodecResidualVectorQuantizer(Adapter):
    r"""EnCodec's quantizer of embeddings ``[B, D, T]``.

    A bandwidth b, in kbit/s, is that of :math:`\lfloor 1000 b / (f \log_2 K) \rfloor` levels at f
    frames a second: of at least one, and of no more than there are.

    Args:
        config: with ``codebook_size`` K, ``codebook_dim`` D, ``frame_rate`` f and
            ``num_quantizers`` Q, such as transformers' ``EncodecConfig``.

    Note:
        Codes differ from the library's where its rounding picks one that is not the nearest, in
        16-bit models above all.

    Source: 2210.13438, section 3.2.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from fastvq.compat.adapters import EncodecResidualVectorQuantizer
        >>> config = SimpleNamespace(
        ...     codebook_size=1024, codebook_dim=16, frame_rate=75, num_quantizers=8)
        >>> vq = EncodecResidualVectorQuantizer(config)
        >>> codes = vq.encode(torch.randn(2, 16, 50), bandwidth=3.0)
        >>> codes.shape, vq.decode(codes).shape
        (torch.Size([4, 2, 50]), torch.Size([2, 16, 50]))
    """

    layout = "encodec.transformers"
    quantizer: ResidualVQ

    def __init__(self, config: Any) -> None:
        super().__init__(
            ResidualVQ(
                config.codebook_dim, config.codebook_size, config.num_quantizers, channel_dim=1
            )
        )
        self.codebook_size, self.frame_rate = config.codebook_size, config.frame_rate
        self.num_quantizers = config.num_quantizers

    def get_num_quantizers_for_bandwidth(self, bandwidth: float | None = None) -> int:
        """How many levels a bandwidth in kbit/s has room for; Q without one.

        Raises:
            ValueError: a bandwidth, and codes that carry no bits.
        """
        if bandwidth is None or bandwidth <= 0:
            return self.num_quantizers
        if self.codebook_size == 1:
            raise ValueError(
                f"bandwidth must be None where codebook_size is 1, of no bits, got {bandwidth}"
            )
        level = math.log2(self.codebook_size) * self.frame_rate  # bit/s
        return max(1, math.floor(bandwidth * 1000 / level))

    def encode(self, embeddings: Tensor, bandwidth: float | None = None) -> Tensor:
        """Codes ``[q, B, T]`` of embeddings ``[B, D, T]``, of the first q levels."""
        levels = self.get_num_quantizers_for_bandwidth(bandwidth)
        return _encode(self.quantizer, embeddings, levels)

    def decode(self, codes: Tensor) -> Tensor:
        """Embeddings ``[B, D, T]`` of codes ``[q, B, T]``."""
        return self.quantizer.decode(codes.movedim(0, -1))


class MimiResidualVectorQuantizer(Adapter):
    """Mimi's quantizer of embeddings ``[B, hidden size, T]``, with a projection in and one out.

    The projections have no bias, and there are none where the sizes agree.

    Args:
        config: with ``codebook_size``, ``codebook_dim``, ``hidden_size``, ``frame_rate``,
            ``num_quantizers`` and ``vector_quantization_hidden_dimension``, such as transformers'
            ``MimiConfig``.
        num_quantizers: Q, in the place of the configuration's.

    Raises:
        ValueError: the codes have other channels than what is projected.

    Note:
        As :class:`EncodecResidualVectorQuantizer`. A checkpoint holds sums and counts, whose
        quotient may be one rounding off the codes.

    Source: 2410.00037, section 3.3.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from fastvq.compat.adapters import MimiResidualVectorQuantizer
        >>> config = SimpleNamespace(
        ...     codebook_size=64, codebook_dim=16, hidden_size=32, frame_rate=12.5,
        ...     num_quantizers=8, vector_quantization_hidden_dimension=16)
        >>> vq = MimiResidualVectorQuantizer(config)
        >>> codes = vq.encode(torch.randn(2, 32, 50), num_quantizers=3)
        >>> codes.shape, vq.decode(codes.transpose(0, 1)).shape
        (torch.Size([3, 2, 50]), torch.Size([2, 32, 50]))
    """

    layout = "mimi.transformers"
    quantizer: ResidualVQ

    def __init__(self, config: Any, num_quantizers: int | None = None) -> None:
        if config.codebook_dim != config.vector_quantization_hidden_dimension:
            raise ValueError(
                "codebook_dim must be vector_quantization_hidden_dimension = "
                f"{config.vector_quantization_hidden_dimension}, got {config.codebook_dim}"
            )
        levels = config.num_quantizers if num_quantizers is None else num_quantizers
        super().__init__(
            ResidualVQ(
                config.hidden_size,
                config.codebook_size,
                levels,
                codebook_dim=config.codebook_dim,
                channel_dim=1,
            )
        )
        self.codebook_size, self.frame_rate = config.codebook_size, config.frame_rate
        self.num_quantizers = levels
        for projection in (self.quantizer.project_in, self.quantizer.project_out):
            if isinstance(projection, nn.Linear):
                # the library's maps are linear, and a checkpoint has no place for more
                nn.init.zeros_(projection.bias).requires_grad_(False)

    def encode(self, embeddings: Tensor, num_quantizers: int | None = None) -> Tensor:
        """Codes ``[q, B, T]`` of embeddings ``[B, hidden size, T]``, of the first q levels."""
        levels = self.num_quantizers if num_quantizers is None else num_quantizers
        return _encode(self.quantizer, embeddings, levels)

    def decode(self, codes: Tensor) -> Tensor:
        """Embeddings ``[B, hidden size, T]`` of codes ``[B, q, T]``: the batch first, as there."""
        return self.quantizer.decode(codes.movedim(1, -1))


class MimiSplitResidualVectorQuantizer(nn.Module):
    """Two of Mimi's quantizers side by side, whose outputs add up; the first one codes the meaning.

    Args:
        config: as :class:`MimiResidualVectorQuantizer` has it, with ``num_semantic_quantizers``,
            the levels of the first one; the others, of ``num_quantizers`` in all, are the second's.

    Raises:
        ValueError: ``num_semantic_quantizers`` is not in 1 to ``num_quantizers - 1``, or as
            :class:`MimiResidualVectorQuantizer` has it.

    Source: 2410.00037, section 3.3.2.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from fastvq.compat.adapters import MimiSplitResidualVectorQuantizer
        >>> config = SimpleNamespace(
        ...     codebook_size=64, codebook_dim=16, hidden_size=32, frame_rate=12.5,
        ...     num_quantizers=8, num_semantic_quantizers=1,
        ...     vector_quantization_hidden_dimension=16)
        >>> vq = MimiSplitResidualVectorQuantizer(config)
        >>> codes = vq.encode(torch.randn(2, 32, 50), num_quantizers=3)
        >>> codes.shape, vq.decode(codes.transpose(0, 1)).shape
        (torch.Size([3, 2, 50]), torch.Size([2, 32, 50]))
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        if not 1 <= config.num_semantic_quantizers < config.num_quantizers:
            raise ValueError(
                "num_semantic_quantizers must be at least 1 and below num_quantizers = "
                f"{config.num_quantizers}, got {config.num_semantic_quantizers}"
            )
        self.codebook_size, self.frame_rate = config.codebook_size, config.frame_rate
        self.max_num_quantizers = config.num_quantizers
        self.num_semantic_quantizers = config.num_semantic_quantizers
        self.num_acoustic_quantizers = config.num_quantizers - config.num_semantic_quantizers
        self.semantic_residual_vector_quantizer = MimiResidualVectorQuantizer(
            config, self.num_semantic_quantizers
        )
        self.acoustic_residual_vector_quantizer = MimiResidualVectorQuantizer(
            config, self.num_acoustic_quantizers
        )

    def encode(self, embeddings: Tensor, num_quantizers: int | None = None) -> Tensor:
        """Codes ``[q, B, T]`` of embeddings ``[B, hidden size, T]``, the meaning's first.

        Raises:
            ValueError: ``num_quantizers`` is not between the meaning's levels and all there are.
        """
        levels = self.max_num_quantizers if num_quantizers is None else num_quantizers
        if not self.num_semantic_quantizers <= levels <= self.max_num_quantizers:
            raise ValueError(
                f"num_quantizers must be in [{self.num_semantic_quantizers}, "
                f"{self.max_num_quantizers}], got {levels}"
            )
        codes = self.semantic_residual_vector_quantizer.encode(embeddings)
        more = levels - self.num_semantic_quantizers
        if more == 0:
            return codes
        return torch.cat([codes, self.acoustic_residual_vector_quantizer.encode(embeddings, more)])

    def decode(self, codes: Tensor) -> Tensor:
        """Embeddings ``[B, hidden size, T]`` of codes ``[B, q, T]``."""
        meaning, sound = codes.tensor_split([self.num_semantic_quantizers], dim=1)
        embeddings = self.semantic_residual_vector_quantizer.decode(meaning)
        if sound.shape[1] == 0:
            return embeddings
        return embeddings + self.acoustic_residual_vector_quantizer.decode(sound)


def _encode(quantizer: ResidualVQ, embeddings: Tensor, levels: int) -> Tensor:
    # a library asks its levels one by one, and so is content with fewer than it asked for
    indices = quantizer.encode(embeddings, min(levels, quantizer.num_quantizers))  # [B, T, q]
    return indices.movedim(-1, 0).contiguous()
