# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from PIL import Image

from fastvq import data
from fastvq.data import files


def frame(value, size=(8, 6)):
    return Image.new("L", size, value)


def write_folder(path, values, size=(8, 6)):
    path.mkdir(parents=True)
    for i, value in enumerate(values):
        # 2 before 10: by name alone the order would be another
        frame(value, size).save(path / f"frame{i}.png")


def write_gif(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = (frame(value) for value in values)
    first.save(path, save_all=True, append_images=rest, duration=40)


def write_array(path, values, channels=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.broadcast_to(
        np.array(values, np.uint8).reshape(-1, *[1] * (2 + len(channels))),
        (len(values), 6, 8, *channels),
    )
    np.savez(path, video=array) if path.suffix == ".npz" else np.save(path, array)


WRITERS = {
    "folder": lambda path, values: write_folder(path / "x", values),
    "gif": lambda path, values: write_gif(path / "x.gif", values),
    "npz": lambda path, values: write_array(path / "x.npz", values, (3,)),
    "npy": lambda path, values: write_array(path / "x.npy", values),
}


def greys(part):
    """The grey of each frame of each clip."""
    clips = part.read(torch.arange(len(part)))
    assert torch.equal(clips.flatten(3).amin(3), clips.flatten(3).amax(3))
    return clips[:, 0, :, 0, 0].tolist()


@pytest.mark.parametrize("form", WRITERS)
def test_clips_of_every_form_in_order(tmp_path, form):
    WRITERS[form](tmp_path, range(0, 240, 20))  # 12 frames
    whole = data.video_folder(tmp_path, frames=2, frame_stride=2, channels=1).train
    assert (whole.kind, whole.channels, whole.size) == ("video", 1, (2, 6, 8))
    assert greys(whole) == [[0, 40], [80, 120], [160, 200]]
    # from frames 0, 5 and 10: the last clip needs no frame after its own
    assert len(data.video_folder(tmp_path, frames=1, frame_stride=5, channels=1).train) == 3
    assert greys(data.video_folder(tmp_path, frames=12, channels=3).train) == [
        list(range(0, 240, 20))
    ]


def test_what_does_not_fill_a_clip_is_left_out(tmp_path):
    write_folder(tmp_path / "long", range(7))
    write_folder(tmp_path / "short", range(2))
    lines = []
    whole = data.video_folder(tmp_path, frames=3, channels=1, report=lines.append).train
    assert greys(whole) == [[0, 1, 2], [3, 4, 5]]
    assert lines == [f"{tmp_path / 'short'} is left out: a clip needs 3 frames, got 2"]
    with pytest.raises(ValueError, match="no video holds a clip of 8 frames"):
        data.video_folder(tmp_path, frames=8, report=lines.append)


def test_the_folder_itself_may_be_the_video(tmp_path):
    write_folder(tmp_path / "x", range(4))
    assert greys(data.video_folder(tmp_path / "x", frames=4, channels=1).train) == [[0, 1, 2, 3]]


def test_splits_are_by_video(tmp_path):
    for i in range(20):
        write_array(tmp_path / f"{i:02d}.npy", [10 * i] * 6)
    splits = data.video_folder(tmp_path, frames=2, channels=1)
    assert [len(part) for part in splits] == [48, 6, 6]
    found = [{clip[0] for clip in greys(part)} for part in splits]
    assert [len(part) for part in found] == [16, 2, 2]
    assert len(set.union(*found)) == 20


def test_the_class_is_the_folder_above_the_video(tmp_path):
    for name, value in (("run", 50), ("walk", 100)):
        write_folder(tmp_path / name / "a", [value] * 4)
        write_gif(tmp_path / name / "b.gif", [value, value + 1])
    splits = data.video_folder(tmp_path, frames=2, channels=1)
    assert splits.train.classes == ("run", "walk")
    for part in splits:
        assert [clip[0] // 100 for clip in greys(part)] == part.labels.tolist()
    named = data.video_folder(tmp_path, frames=2, label_pattern="^([ab])")
    assert named.train.classes == ("a", "b")


def test_all_to_one_size(tmp_path):
    write_folder(tmp_path / "a", range(2))
    write_folder(tmp_path / "b", range(2), size=(12, 20))
    with pytest.raises(
        ValueError, match=r"videos must be of one size .*: a is 8x6x2, b is 12x20x2"
    ):
        data.video_folder(tmp_path, frames=2)
    assert data.video_folder(tmp_path, frames=2, image_size=4).train.size == (2, 4, 4)


@pytest.mark.parametrize("form", WRITERS)
def test_videos_too_many_for_memory_are_decoded_anew(tmp_path, form, monkeypatch):
    WRITERS[form](tmp_path, range(0, 240, 20))
    held = data.video_folder(tmp_path, frames=3, frame_stride=2).train
    monkeypatch.setattr(files, "MEMORY_BYTES", 0)
    read = data.video_folder(tmp_path, frames=3, frame_stride=2).train
    assert torch.equal(read.read(torch.arange(2)), held.read(torch.arange(2)))


def break_array(path):
    np.save(path / "bad.npy", np.zeros((4, 6, 8, 2), np.uint8))


def break_sizes(path):
    write_folder(path / "bad", range(3))
    frame(9, (6, 6)).save(path / "bad" / "frame9.png")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda path: (path / "bad.gif").write_text("text"), "UnidentifiedImageError"),
        (lambda path: (path / "bad.npz").write_text("text"), "bad.npz: "),
        (break_array, "must be [T, H, W, C] with 1 or 3 channels, got [4, 6, 8, 2]"),
        (break_sizes, "frame0.png is 8x6, frame9.png is 6x6"),
    ],
)
def test_unreadable_videos_are_refused_or_skipped(tmp_path, broken, message):
    write_folder(tmp_path / "good", range(4))
    broken(tmp_path)
    with pytest.raises(ValueError, match="1 of 2 videos cannot be read") as caught:
        data.video_folder(tmp_path, frames=2)
    assert message in str(caught.value)
    lines = []
    splits = data.video_folder(tmp_path, frames=2, unreadable="skip", report=lines.append)
    assert len(splits.train) == 2
    assert "bad" in lines[1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"frames": 0}, ValueError, "frames must be at least 1, got 0"),
        ({"frame_stride": 0}, ValueError, "frame_stride must be at least 1, got 0"),
        ({"channels": 2}, ValueError, "channels must be 1 or 3, got 2"),
        ({}, FileNotFoundError, "no video in this folder"),
    ],
)
def test_refused_calls(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        data.video_folder(tmp_path, **{"frames": 2} | options)
