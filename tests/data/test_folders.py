# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image

from fastvq import data
from fastvq.data import files
from fastvq.data.decoding import decode


def write(path, size=(8, 8), mode="RGB", value=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    value = len(str(path)) % 200 if value is None else value
    Image.new(mode, size, value if mode != "RGB" else (value, 0, 255 - value)).save(path, **options)


def everything(splits):
    return [part.batch(torch.arange(len(part))) for part in splits]


def test_a_flat_folder_without_labels(tmp_path):
    for i in range(20):
        write(tmp_path / f"{i:02d}.png", value=i)
    splits = data.folder(tmp_path)
    assert [len(part) for part in splits] == [16, 2, 2]
    assert splits.train.classes == ()
    assert set(splits.train.labels.tolist()) == {-1}
    reds = sorted(round(float(x[0, 0, 0]) * 255) for part in everything(splits) for x in part)
    assert reds == list(range(20))


def test_the_split_depends_on_the_paths_alone(tmp_path):
    for i in range(20):
        write(tmp_path / f"{i:02d}.png", value=i)
    first, again = everything(data.folder(tmp_path)), everything(data.folder(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_class_subfolders_give_labels_at_any_depth(tmp_path):
    for name, value in (("cat", 10), ("bird", 20)):
        for i in range(5):
            write(tmp_path / name / ("deep" if i % 2 else "") / f"{i}.png", value=value)
    splits = data.folder(tmp_path)
    assert splits.train.classes == ("bird", "cat")
    for part, images in zip(splits, everything(splits), strict=True):
        reds = (images[:, 0, 0, 0] * 255).round().int().tolist()
        assert [{20: 0, 10: 1}[red] for red in reds] == part.labels.tolist()


def test_an_image_outside_the_subfolders_takes_all_labels_away(tmp_path):
    for i in range(4):
        write(tmp_path / "cat" / f"{i}.png")
    write(tmp_path / "stray.png")
    lines = []
    assert data.folder(tmp_path, report=lines.append).train.classes == ()
    assert lines == ["stray.png lies in no subfolder, as 1 of 5 do: no example has a label"]


def test_split_folders_are_taken_as_they_are(tmp_path):
    for split, count, value in (("train", 10, 1), ("test", 4, 3)):
        for name in ("a", "b"):
            for i in range(count):
                write(tmp_path / split / name / f"{i}.png", value=value)
    splits = data.folder(tmp_path)
    assert [len(part) for part in splits] == [17, 3, 8]
    assert splits.test.classes == ("a", "b")
    values = [set((x[:, 0, 0, 0] * 255).round().tolist()) for x in everything(splits)]
    assert values == [{1}, {1}, {3}]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_grey_or_rgb(tmp_path, mode, channels):
    suffix = "tif" if mode in ("CMYK", "I;16") else "png"
    path = tmp_path / f"x.{suffix}"
    Image.new(mode, (4, 6), 0).save(path)
    pixels = decode(path, image_size=None, channels=channels)
    assert pixels.shape == (channels, 6, 4)
    assert pixels.dtype == np.uint8
    # nothing drawn: black, but white where it is transparent or where no ink is white
    assert set(pixels.flatten()) == {255 if mode in ("LA", "RGBA", "CMYK") else 0}


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path):
    path = tmp_path / "x.png"
    values = np.array([[0, 257], [32768, 65535]], np.uint16)
    Image.fromarray(values).save(path)
    assert decode(path, image_size=None, channels=1).tolist() == [[[0, 1], [128, 255]]]


def test_the_shorter_side_is_resized_and_the_centre_kept(tmp_path):
    image = np.zeros((8, 24), np.uint8)
    image[:, 8:16] = 200
    Image.fromarray(image).save(tmp_path / "x.png")
    assert decode(tmp_path / "x.png", image_size=8, channels=1).min() == 200
    small = decode(tmp_path / "x.png", image_size=4, channels=1)
    assert small.shape == (1, 4, 4)
    assert small[0, :, 1:3].min() > 190
    assert decode(tmp_path / "x.png", image_size=16, channels=1).shape == (1, 16, 16)


def test_turned_upright(tmp_path):
    image = Image.fromarray(np.array([[0, 50, 100]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "x.png", exif=exif)
    assert decode(tmp_path / "x.png", image_size=None, channels=1).tolist() == [[[0], [50], [100]]]


def broken_folder(tmp_path):
    for i in range(6):
        write(tmp_path / f"{i}.png")
    (tmp_path / "empty.png").touch()
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "short.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "notes.txt").write_text("passed over")
    (tmp_path / ".hidden.png").write_text("passed over")


def test_unreadable_images_are_refused_by_name_and_number(tmp_path):
    broken_folder(tmp_path)
    with pytest.raises(ValueError, match="3 of 9 images cannot be read") as caught:
        data.folder(tmp_path)
    for name in ("empty.png", "short.png", "text.jpg"):
        assert name in str(caught.value)


def test_unreadable_images_are_skipped_by_name_and_number(tmp_path):
    broken_folder(tmp_path)
    lines = []
    splits = data.folder(tmp_path, unreadable="skip", report=lines.append)
    assert sum(len(part) for part in splits) == 6
    assert "3 of 9 images cannot be read and are skipped" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["empty.png", "short.png", "text.jpg"]


def test_files_too_many_for_memory_are_read_batch_by_batch(tmp_path, monkeypatch):
    for i in range(10):
        write(tmp_path / f"{i}.png", value=i)
    held = everything(data.folder(tmp_path))
    monkeypatch.setattr(files, "MEMORY_BYTES", 0)
    read = everything(data.folder(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(held, read, strict=True))


def test_two_images_are_all_for_training(tmp_path):
    write(tmp_path / "0.png")
    write(tmp_path / "1.png")
    splits = data.folder(tmp_path)
    assert [len(part) for part in splits] == [2, 0, 0]
    assert len(splits.part("all")) == 2
    with pytest.raises(ValueError, match="the test split must hold at least one example, got none"):
        splits.part("test")


def test_refused_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        data.folder(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no image in this folder"):
        data.folder(tmp_path)
    (tmp_path / "x.png").touch()
    with pytest.raises(ValueError, match="1 of 1 images cannot be read"):
        data.folder(tmp_path, unreadable="skip", report=[].append)
    write(tmp_path / "x.png")
    write(tmp_path / "y.png", size=(8, 6))
    with pytest.raises(ValueError, match=r"x.png is 8x8, y.png is 8x6"):
        data.folder(tmp_path)
    assert data.folder(tmp_path, image_size=4).train.size == (4, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"channels": 4}, ValueError, "channels must be 1 or 3, got 4"),
        ({"unreadable": "skipp"}, ValueError, "did you mean 'skip'"),
        ({"image_size": 0}, ValueError, "image_size must be at least 1, got 0"),
        ({"image_size": "8"}, TypeError, "image_size must be an int, got str"),
    ],
)
def test_refused_options(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        data.folder(tmp_path, **options)
    with pytest.raises(error, match=message):
        data.DataConfig(**options)
