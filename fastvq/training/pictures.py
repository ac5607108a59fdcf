# SPDX-License-Identifier: Apache-2.0
"""Pictures a person can look at: grids of images, and curves of a run.

Small images are enlarged by a whole factor without smoothing, so that every pixel can be seen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastvq import _files

if TYPE_CHECKING:
    from PIL.Image import Image

# the side of one image in a grid, in screen pixels, that small images are enlarged towards
_CELL = 64
_GAP = 4
_TEXT = 14
_BACKGROUND = (255, 255, 255)


def image_grid(images: Tensor, columns: int, *, row_names: Sequence[str] = ()) -> Image:
    """Lays images out row after row.

    Args:
        images: ``[N, C, H, W]`` in [0, 1], C 1 or 3.
        columns: images in a row.
        row_names: written to the left of each row.
    """
    from PIL import Image, ImageDraw, ImageFont

    count, _, height, width = images.shape
    scale = max(1, _CELL // max(height, width))
    step_x, step_y = width * scale + _GAP, height * scale + _GAP
    rows = -(-count // columns)
    font = ImageFont.load_default(size=_TEXT)
    left = _GAP + max((int(font.getlength(name)) + _GAP for name in row_names), default=0)
    canvas = Image.new("RGB", (left + columns * step_x, _GAP + rows * step_y), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for row, name in enumerate(row_names):
        middle = _GAP + row * step_y + height * scale // 2
        draw.text((_GAP, middle), name, fill=0, font=font, anchor="lm")
    for index, image in enumerate(to_images(images)):
        row, column = divmod(index, columns)
        large = image.resize((width * scale, height * scale), Image.Resampling.NEAREST)
        canvas.paste(large, (left + column * step_x, _GAP + row * step_y))
    return canvas


def to_images(images: Tensor) -> list[Image]:
    """``[N, C, H, W]`` in [0, 1] as 8-bit pictures, values rounded to the nearest level."""
    from PIL import Image

    levels = (images.clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).contiguous()
    pixels = levels.numpy()
    return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]


def reconstructions(originals: Tensor, kept: Tensor, columns: int = 16) -> Image:
    """Rows of originals, each with its reconstructions below it."""
    pairs, names = [], []
    for start in range(0, len(originals), columns):
        for name, images in (("original", originals), ("decoded", kept)):
            row = images[start : start + columns]
            blank = torch.ones(columns - len(row), *row.shape[1:])
            pairs.append(torch.cat([row, blank]))
            names.append(name)
    return image_grid(torch.cat(pairs), columns, row_names=names)


def waves(
    rows: Sequence[Tensor], names: Sequence[str], path: str | os.PathLike[str], shown: int = 8
) -> None:
    """Draws signals as curves into a PNG, those of the same position in one panel.

    Args:
        rows: ``[N, C, L]`` each, e.g. originals and what was kept of them.
        names: of the rows, for the legend.
        path: the PNG.
        shown: how many of the N.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = min(shown, len(rows[0]))
    figure = Figure(figsize=(9, 1.1 * count + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0]
    for index, axes in enumerate(panels):
        for row, name in zip(rows, names, strict=True):
            # the channels of a signal one above the other would hide each other
            axes.plot(row[index, 0].numpy(), linewidth=0.8, label=name)
        axes.set_yticks([])
    if any(names):
        panels[0].legend(loc="upper right", fontsize=7, ncols=len(names))
    with _files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


class Panel(NamedTuple):
    """One pair of curves.

    Attributes:
        title: above the panel.
        lines: of ``metrics.jsonl``.
        trained: name of the metric of the training lines.
        validated: name of the metric of the validation lines.
        scale: ``"linear"`` or ``"log"``.
    """

    title: str
    lines: Sequence[dict[str, Any]]
    trained: str
    validated: str
    scale: str


def curves(panels: Sequence[Panel], path: str | os.PathLike[str]) -> None:
    """Draws training and validation curves side by side into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(panels), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        for split, name in (("train", panel.trained), ("validation", panel.validated)):
            points = [(line["step"], line[name]) for line in panel.lines if line["split"] == split]
            axes.plot(*zip(*points, strict=True), label=f"{split}: {name}")
        axes.set(title=panel.title, xlabel="step", yscale=panel.scale)
        axes.grid(alpha=0.3)
        axes.legend()
    with _files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def save_picture(picture: Image, path: str | os.PathLike[str]) -> None:
    """Writes a PNG, whole or not at all."""
    with _files.replacing(path) as temporary:
        picture.save(temporary, format="PNG")


def spreads(
    title: str,
    rows: Mapping[str, Mapping[str, float]],
    path: str | os.PathLike[str],
    *,
    figure: str,
) -> None:
    """Draws the median and the range of a figure of each variant of an experiment into a PNG.

    Args:
        title: what was varied.
        rows: variant -> ``median``, ``least`` and ``largest``.
        path: the PNG.
        figure: what the values are, for the axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots()
    medians = [row["median"] for row in rows.values()]
    ranges = [
        [row["median"] - row["least"] for row in rows.values()],
        [row["largest"] - row["median"] for row in rows.values()],
    ]
    axes.errorbar(range(len(rows)), medians, yerr=ranges, fmt="o-", capsize=4)
    axes.set_xticks(range(len(rows)), list(rows), rotation=20 if max(map(len, rows)) > 6 else 0)
    axes.set(title=title, ylabel=figure, ylim=(0, None))
    axes.grid(alpha=0.3)
    with _files.replacing(path) as temporary:
        drawing.savefig(temporary, format="png", dpi=120)
