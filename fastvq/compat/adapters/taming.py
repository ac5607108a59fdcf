# SPDX-License-Identifier: Apache-2.0
"""``VectorQuantizer2`` of taming-transformers, which diffusers has as well."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastvq import _checks
from fastvq.compat._adapter import Adapter
from fastvq.nn import Gradient, Uniform, VectorQuantizer


class VectorQuantizer2(Adapter):
    r"""taming-transformers' quantizer of images ``[B, D, height, width]``, and diffusers'.

    .. math:: L = \lVert \operatorname{sg}[c] - z \rVert^2 + \beta \lVert c - \operatorname{sg}[z]
              \rVert^2

    averaged over the elements; with ``legacy=False`` beta is on the first term, as the paper has
    it. The codes learn by gradient.

    With ``remap`` the indices that come out, and those that ``get_codebook_entry`` takes, number
    the used codes alone, so that a prior has fewer to tell apart.

    Args:
        n_e: number of codes.
        e_dim: channels.
        beta: :math:`\beta`.
        remap: an ``.npy`` file of the indices of the used codes, U of them, ``[U]``.
        unknown_index: what the index of an unused code becomes: ``random`` for one of the used,
            ``extra`` for U, or a number below U, which without ``remap`` is ``n_e``.
        sane_index_shape: indices ``[B, height, width]`` in place of flat ones, which are
            ``[N, 1]`` with ``remap`` and ``[N]`` without.
        legacy: where beta is; ``True`` is the default there, and a mistake.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError, ValueError: an argument, or what the file holds, does not fit; objects are not
            unpickled.

    Example:
        >>> import torch
        >>> from fastvq.compat.adapters import VectorQuantizer2
        >>> z, loss, (_, _, indices) = VectorQuantizer2(64, 8, beta=0.25)(torch.randn(2, 8, 4, 4))
        >>> z.shape, loss.shape, indices.shape
        (torch.Size([2, 8, 4, 4]), torch.Size([]), torch.Size([32]))
    """

    layout = "taming"
    quantizer: VectorQuantizer
    used: Tensor

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float,
        *,
        remap: str | os.PathLike[str] | None = None,
        unknown_index: str | int = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        commitment, codebook = (1.0, beta) if legacy else (beta, 1.0)
        super().__init__(
            VectorQuantizer(
                e_dim,
                n_e,
                learning=Gradient(codebook),
                start=Uniform(),
                revival=None,
                commitment_weight=commitment,
                channel_dim=1,
            )
        )
        self.n_e, self.e_dim, self.beta = n_e, e_dim, beta
        self.sane_index_shape, self.legacy = sane_index_shape, legacy
        self.remap, self.re_embed, self.unknown_index = remap, n_e, unknown_index
        if remap is not None:
            self.register_buffer("used", _used(remap, n_e))
            self.re_embed = len(self.used)
        _check_unknown(unknown_index, self.re_embed)
        if remap is not None and unknown_index == "extra":
            self.unknown_index, self.re_embed = self.re_embed, self.re_embed + 1

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, tuple[None, None, Tensor]]:
        """Codes, loss and ``(None, None, indices)`` of z ``[B, D, height, width]``."""
        out = self.quantizer(z)
        indices = out.indices
        if self.remap is not None:
            indices = self.remap_to_used(indices)
        if not self.sane_index_shape:
            indices = indices.flatten() if self.remap is None else indices.reshape(-1, 1)
        return out.quantized, out.loss, (None, None, indices)

    def remap_to_used(self, inds: Tensor) -> Tensor:
        """Numbers among the used codes of the indices of codes, int64 of any shape.

        Random ones are drawn anew at every call, on the device of the indices.

        Raises:
            ValueError: there is no remap.
        """
        self._check_remap()
        places = torch.arange(len(self.used), device=inds.device)
        # the first place of a code that is named twice; past the end where there is none
        table = torch.full((self.n_e,), len(self.used), device=inds.device)
        table = table.scatter_reduce(0, self.used, places, "amin")
        found = table[inds]
        if self.unknown_index == "random":
            other = torch.randint_like(found, self.re_embed)
        else:
            other = torch.full_like(found, int(self.unknown_index))
        return torch.where(found < len(self.used), found, other)

    def unmap_to_all(self, inds: Tensor) -> Tensor:
        """Indices of codes of numbers among the used, of any shape; the extra one is the first.

        Raises:
            ValueError: there is no remap.
        """
        self._check_remap()
        if self.re_embed > len(self.used):
            inds = torch.where(inds < len(self.used), inds, 0)
        return self.used[inds]

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None) -> Tensor:
        """Codes ``[B, D, height, width]`` for shape (B, height, width, D), or ``[N, D]``."""
        indices = indices.flatten() if self.remap is None else self.unmap_to_all(indices.flatten())
        codes = torch.nn.functional.embedding(indices, self.quantizer.codebook)
        return codes if shape is None else codes.view(*shape).movedim(-1, 1).contiguous()

    def _check_remap(self) -> None:
        if self.remap is None:
            raise ValueError("there is no remap: indices number all codes")


def _check_unknown(unknown_index: str | int, used: int) -> None:
    if isinstance(unknown_index, str):
        _checks.one_of("unknown_index", unknown_index, ("random", "extra"))
    elif isinstance(unknown_index, bool) or not isinstance(unknown_index, int):
        raise TypeError(
            f"unknown_index must be a str or an int, got {type(unknown_index).__name__}"
        )
    elif not 0 <= unknown_index < used:
        raise ValueError(
            f"unknown_index must be in [0, U = {used}), the number of used codes, "
            f"got {unknown_index}"
        )


def _used(path: str | os.PathLike[str], n_e: int) -> Tensor:
    """The indices in a file, int64 ``[U]``."""
    try:
        with open(path, "rb") as file:
            found = np.lib.format.read_array(file, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"remap must be an .npy file of integers, got {path}: {error}") from error
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise ValueError(f"{path} must hold integers [U], got {found.dtype} {list(found.shape)}")
    if len(found) == 0 or found.min() < 0 or found.max() >= n_e:
        ends = f"{found.min()} to {found.max()}" if len(found) else "none"
        raise ValueError(f"{path} must hold indices in [0, n_e = {n_e}), got {ends}")
    return torch.from_numpy(found.astype(np.int64))
