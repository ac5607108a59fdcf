# SPDX-License-Identifier: Apache-2.0
"""The tensors of a checkpoint, taken one by one, so that none is missed and none is passed over."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# enough to recognize a layout by
_SHOWN = 6


class Keys:
    """What lies below a prefix of a state dict, until it is taken."""

    def __init__(self, peer: str, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        self.peer, self.prefix = peer, prefix
        self.left = {
            name.removeprefix(prefix): tensor.detach()
            for name, tensor in state_dict.items()
            if name.startswith(prefix)
        }
        if not self.left:
            raise ValueError(
                f"state_dict must have keys that start with {prefix!r}, got {shown(state_dict)}"
            )

    def take(self, name: str) -> Tensor:
        """The tensor; it must be there."""
        if name not in self.left:
            raise ValueError(
                f"state_dict must hold {self.prefix}{name} in the layout of {self.peer}, "
                f"left are {shown(self.left)}"
            )
        return self.left.pop(name)

    def maybe(self, name: str) -> Tensor | None:
        """The tensor, or ``None`` where there is none."""
        return self.left.pop(name, None)

    def count(self, pattern: str) -> int:
        """How many levels there are; ``{}`` in the pattern stands for the number of one."""
        levels = 0
        while any(name.startswith(pattern.format(levels)) for name in self.left):
            levels += 1
        # none at all shows as the first level that is missed
        return max(levels, 1)

    def finish(self) -> None:
        """Raises where something was not taken."""
        if self.left:
            raise ValueError(
                f"state_dict holds {shown(self.left)} below {self.prefix!r}, for which "
                f"the layout of {self.peer} has no place here"
            )


def shown(names: Mapping[str, object]) -> str:
    """The first few names."""
    listed = ", ".join(list(names)[:_SHOWN])
    more = len(names) - _SHOWN
    return f"{listed} and {more} more" if more > 0 else listed or "nothing"
