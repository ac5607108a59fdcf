# SPDX-License-Identifier: Apache-2.0
"""Image files to pixels: every mode to 8-bit grey or RGB, one size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastvq.data.muting import MUTED

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def decode(file: Path, *, image_size: int | None, channels: int) -> Pixels:
    """Decodes one file by the rule of `fastvq.data.folder`: uint8 ``[C, H, W]``.

    Raises:
        OSError: the file cannot be opened or is cut short.
        ValueError: its values have no stated range (float images).
    """
    from PIL import Image

    with MUTED, Image.open(file) as opened:
        opened.load()
        return pixels(opened, image_size=image_size, channels=channels)


def decode_frames(file: Path, *, image_size: int | None, channels: int) -> Pixels:
    """Decodes every frame of a moving image (GIF, WebP): uint8 ``[T, C, H, W]``.

    Raises:
        OSError, ValueError: as `decode`.
    """
    from PIL import Image, ImageSequence

    with MUTED, Image.open(file) as opened:
        return np.stack(
            [
                pixels(frame, image_size=image_size, channels=channels)
                for frame in ImageSequence.Iterator(opened)
            ]
        )


def pixels(image: Image, *, image_size: int | None, channels: int) -> Pixels:
    """One image of any mode by the rule of `fastvq.data.folder`: uint8 ``[C, H, W]``.

    Raises:
        ValueError: its values have no stated range (float images).
    """
    from PIL import ImageOps

    upright = _eight_bits(ImageOps.exif_transpose(image))
    upright = upright.convert("L" if channels == 1 else "RGB")
    if image_size is not None:
        upright = _fit(upright, image_size)
    values: Pixels = np.asarray(upright, np.uint8).reshape(upright.height, upright.width, channels)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _eight_bits(image: Image) -> Image:
    """The image in L, RGB or another mode that converts to them without loss of range."""
    from PIL import Image as pil

    if image.mode == "F":
        raise ValueError("a float image: its range is not stated")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit values to 255 instead of scaling them
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values must be in [0, 65535], got [{values.min()}, {values.max()}]")
        return pil.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = pil.new("RGBA", image.size, (255, 255, 255, 255))
        return pil.alpha_composite(white, image)
    return image


def _fit(image: Image, size: int) -> Image:
    """The shorter side to ``size``, then the centre ``size x size``."""
    from PIL import Image as pil

    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), pil.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
