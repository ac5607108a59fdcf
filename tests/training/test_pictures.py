# SPDX-License-Identifier: Apache-2.0
import numpy as np
import torch
from PIL import Image

from fastvq.training import pictures


def test_every_pixel_of_a_grid_is_enlarged_and_in_its_place():
    images = torch.rand(5, 1, 8, 8)
    grid = np.asarray(pictures.image_grid(images, 3))
    levels = (images * 255).round().byte().numpy()
    assert grid.shape == (4 + 2 * 68, 4 + 3 * 68, 3)
    for index in range(5):
        row, column = divmod(index, 3)
        cell = grid[4 + row * 68 :, 4 + column * 68 :][:64, :64]
        for channel in range(3):
            assert np.array_equal(cell[..., channel], np.kron(levels[index, 0], np.ones((8, 8))))
    assert (grid[4 + 68 :, 4 + 2 * 68 :] == 255).all()


def test_colour_and_large_images_keep_their_size():
    images = torch.zeros(1, 3, 70, 100)
    images[:, 1] = 1
    grid = pictures.image_grid(images, 1)
    assert grid.size == (4 + 100 + 4, 4 + 70 + 4)
    assert grid.getpixel((50, 50)) == (0, 255, 0)


def test_names_stand_left_of_the_rows():
    images = torch.zeros(2, 1, 8, 8)
    plain, named = (pictures.image_grid(images, 1, row_names=n) for n in ((), ("0", "night")))
    margin = named.width - plain.width
    assert margin > 20
    written = np.asarray(named)[:, :margin].min(axis=(1, 2))
    assert written[4:68].min() < 128
    assert written[72:136].min() < 128


def test_values_are_rounded_to_the_nearest_level_and_clamped():
    image = torch.tensor([-1.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 2.0]).reshape(1, 1, 1, 5)
    assert np.asarray(pictures.to_images(image)[0]).tolist() == [[0, 0, 1, 255, 255]]


def test_reconstructions_stand_below_their_originals():
    originals, kept = torch.zeros(5, 1, 8, 8), torch.full((5, 1, 8, 8), 0.5)
    picture = np.asarray(pictures.reconstructions(originals, kept, columns=3))
    rows = [picture[4 + 68 * row + 32, -36].tolist() for row in range(4)]
    assert rows == [[0] * 3, [128] * 3, [255] * 3, [255] * 3]


def test_curves_are_a_picture(tmp_path):
    lines = [
        {"step": step, "split": split, "loss": 1 / step}
        for step in (1, 2, 3)
        for split in ("train", "validation")
    ]
    panel = pictures.Panel("a", lines, "loss", "loss", "log")
    pictures.curves([panel, panel], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 2 * picture.height
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
