# SPDX-License-Identifier: Apache-2.0
"""What label and context add inside the layers of the two-stream priors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Conditions(nn.Module):
    """A table row for the label and a 1x1 convolution of the context, for two streams.

    Args:
        num_label_rows: rows of the table; 0 for a prior without classes.
        context_channels: channels of the context; 0 for a prior without.
        channels: what each of the two streams takes.
    """

    def __init__(self, num_label_rows: int, context_channels: int, channels: int) -> None:
        super().__init__()
        self.label = nn.Embedding(num_label_rows, 2 * channels) if num_label_rows else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.1)
        self.context = None
        if context_channels:
            self.context = nn.Conv2d(context_channels, 2 * channels, 1, bias=False)

    def forward(
        self, label_rows: Tensor | None, context: Tensor | None
    ) -> Sequence[Tensor | float]:
        """What is added to the two streams, each ``[B, channels, H or 1, W or 1]``."""
        added = []
        if self.label is not None:
            added.append(self.label(label_rows)[:, :, None, None])
        if self.context is not None:
            added.append(self.context(context))
        return sum(added).chunk(2, dim=1) if added else (0.0, 0.0)
