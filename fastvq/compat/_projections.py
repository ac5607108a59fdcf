# SPDX-License-Identifier: Apache-2.0
"""How other libraries keep the two linear maps around a codebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fastvq.compat._keys import Keys

# of fastvq's modules
_OURS = ("project_in", "project_out")


class Projections(NamedTuple):
    r"""The two maps by their names; 1x1 convolutions are maps as well.

    A ``normed`` weight is kept as its direction v and the lengths g of its rows,
    :math:`W = g \, v / \lVert v \rVert`. The length of v is of no meaning, and written as g.
    """

    names: tuple[str, str] = _OURS
    convolved: bool = False
    biased: bool = True
    normed: bool = False
    optional: bool = True

    def read(self, keys: Keys, at: str = "") -> dict[str, Tensor]:
        """Takes them, their names starting with ``at``, if they are there or must be."""
        state = {}
        for ours, theirs in zip(_OURS, self.names, strict=True):
            name = at + theirs
            if self.optional and f"{name}.weight" not in keys.left:
                continue
            weight = self._weight(keys, name)
            weight = weight.squeeze(-1) if self.convolved else weight
            bias = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
            state[f"{ours}.weight"] = weight
            state[f"{ours}.bias"] = keys.take(f"{name}.bias") if self.biased else bias
        return state

    def write(self, peer: str, state: Mapping[str, Tensor], at: str = "") -> dict[str, Tensor]:
        """The maps of a fastvq state dict in the library's names, starting with ``at``."""
        found = {}
        for ours, theirs in zip(_OURS, self.names, strict=True):
            name, weight = at + theirs, state.get(f"{ours}.weight")
            if weight is None:
                continue
            bias = state[f"{ours}.bias"]
            if self.biased:
                found[f"{name}.bias"] = bias.clone()
            elif bool(bias.any()):
                raise ValueError(f"{peer} has no bias in its projections, got one")
            weight = (weight.unsqueeze(-1) if self.convolved else weight).clone()
            if self.normed:
                found |= {f"{name}.weight_g": _lengths(weight), f"{name}.weight_v": weight}
            else:
                found[f"{name}.weight"] = weight
        return found

    def _weight(self, keys: Keys, name: str) -> Tensor:
        if not self.normed:
            return keys.take(f"{name}.weight")
        lengths, directions = keys.take(f"{name}.weight_g"), keys.take(f"{name}.weight_v")
        # the quotient first: 1 where v has the length g, so that what was written comes back
        return directions * (lengths / _lengths(directions))


def _lengths(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)
