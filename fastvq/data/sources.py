# SPDX-License-Identifier: Apache-2.0
"""From the name of a data set to its splits; what the command line calls."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastvq import _checks
from fastvq.data import arrays, audio, folders, video
from fastvq.data.cifar import cifar, is_cifar
from fastvq.data.clips import clips
from fastvq.data.digits import digits
from fastvq.data.examples import Splits
from fastvq.data.files import UNREADABLE, Report
from fastvq.data.hugging_face import from_hugging_face, is_on_disk
from fastvq.data.idx import is_mnist, mnist
from fastvq.data.photos import photos
from fastvq.data.signals import ecg, eeg

DIGITS = "digits"
HUGGING_FACE = "hf:"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data, and how they are read.

    A field that is ``None`` takes what the reader of the source does by default. One that is set
    and that the reader of the source does not use is an error of `load`.

    Attributes:
        source: a name (``"digits"``, ``"photos"``, ``"eeg"``, ``"ecg"``, ``"clips"``), ``"hf:"``
            and the name of a Hugging Face data set, or a path: the folder of images, of WAV files,
            of videos (with `frames`), of MNIST's or CIFAR's files, of a saved Hugging Face data
            set, or an ``.npy`` or ``.npz`` file.
        image_size: pixels per side after resizing and cropping (folders of images and videos,
            Hugging Face), or of a tile or frame (photos, clips).
        channels: 1 for grey, 3 for RGB (folders of images and videos, Hugging Face, photos, clips).
            Of the others it is what it is.
        label_pattern: regular expression whose first group, in the name of every file, is the class
            (folders of images, WAV files and videos).
        unreadable: ``"refuse"`` or ``"skip"`` what cannot be decoded (the same).
        length: samples of an example (WAV files and Hugging Face sound, which need it; eeg, ecg).
        sample_rate: samples per second to resample to (WAV files, Hugging Face sound).
        tail: ``"pad"`` or ``"drop"`` what does not fill an example at the end of a recording (the
            same).
        frames: frames of a clip (videos, which are told from images by it; clips).
        frame_stride: from one frame of a clip to the next (videos).
        layout: order of the axes, such as ``"NHWC"`` (``.npy``, ``.npz``).
        array_key: the array or column of the data (``.npz``, Hugging Face).
        labels_key: the array or column of the classes (``.npz``, Hugging Face).
        coarse: the 20 superclasses of CIFAR-100 in place of its 100 classes (CIFAR).
    """

    source: str = DIGITS
    image_size: int | None = None
    channels: int = 3
    label_pattern: str | None = None
    unreadable: str = "refuse"
    length: int | None = None
    sample_rate: int | None = None
    tail: str = "pad"
    frames: int | None = None
    frame_stride: int = 1
    layout: str | None = None
    array_key: str | None = None
    labels_key: str | None = None
    coarse: bool = False

    def __post_init__(self) -> None:
        folders.check_pixels(self.image_size, self.channels)
        _checks.one_of("unreadable", self.unreadable, UNREADABLE)
        _checks.one_of("tail", self.tail, audio.TAILS)
        for name in ("length", "sample_rate", "frames", "frame_stride"):
            if getattr(self, name) is not None:
                _checks.positive(name, getattr(self, name))
        if self.layout is not None:
            _checks.one_of("layout", self.layout, arrays.LAYOUTS)


class _Reader(NamedTuple):
    """How a kind of source is read.

    Attributes:
        what: what a source is taken for, in words.
        read: the reader; of a path or a name it is the first argument.
        fields: the fields of `DataConfig` that it takes.
        reports: whether it takes ``report``.
    """

    what: str
    read: Callable[..., Splits]
    fields: tuple[str, ...] = ()
    reports: bool = False


NAMED = {
    DIGITS: _Reader("handwritten digits", digits),
    "photos": _Reader("tiles of photos", photos, ("image_size", "channels")),
    "eeg": _Reader("an EEG", eeg, ("length",)),
    "ecg": _Reader("an ECG", ecg, ("length",)),
    "clips": _Reader("synthetic camera motion", clips, ("frames", "image_size", "channels")),
}
_FILES = ("label_pattern", "unreadable")
_SOUND = ("length", "sample_rate", "tail")
_HUGGING_FACE = _Reader(
    "a Hugging Face data set",
    from_hugging_face,
    ("array_key", "labels_key", "image_size", "channels", *_SOUND),
    reports=True,
)
_ARRAYS = _Reader(
    "an array", arrays.array_file, ("layout", "array_key", "labels_key"), reports=True
)
_MNIST = _Reader("IDX files", mnist)
_CIFAR = _Reader("CIFAR", cifar, ("coarse",))
_AUDIO = _Reader("WAV files", audio.audio_folder, (*_SOUND, *_FILES), reports=True)
_VIDEO = _Reader(
    "videos",
    video.video_folder,
    ("frames", "frame_stride", "image_size", "channels", *_FILES),
    reports=True,
)
_IMAGES = _Reader("images", folders.folder, ("image_size", "channels", *_FILES), reports=True)


def load(
    config: DataConfig, *, multiple: int | Sequence[int] = 1, report: Report = print
) -> Splits:
    """Reads the data that ``config`` names, their sizes padded to a multiple.

    Args:
        config: the source and how to read it.
        multiple: what each axis must be a multiple of, one number for all or one for each: the
            stride of the model. Examples are padded at the end of each axis by repeating their last
            values.
        report: takes the lines about what a path was taken for, padding and skipped files.

    Raises:
        FileNotFoundError: neither a name nor a path.
        ValueError: a field of ``config`` that the source does not use, or one that it needs; what
            the readers raise.
        ModuleNotFoundError: a library that the reader needs is absent.
    """
    reader, arguments = _reader(config.source, config)
    if config.source not in NAMED:
        report(f"{config.source} is read as {reader.what}")
    splits = reader.read(*arguments, **_options(config, reader, report))
    if "channels" not in reader.fields and config.channels not in (
        _default("channels"),
        splits.train.channels,
    ):
        raise ValueError(
            f"channels of {reader.what} cannot be chosen: must be {splits.train.channels}, "
            f"got {config.channels}"
        )
    return padded(splits, multiple, report=report)


def padded(splits: Splits, multiple: int | Sequence[int], *, report: Report = print) -> Splits:
    """Splits whose examples are padded at the end of each axis by repeating their last values.

    Args:
        splits: as `load` gives them.
        multiple: what each axis must be a multiple of, one number for all or one for each.
        report: takes a line where anything is added.
    """
    result = Splits(*(part.padded(multiple) for part in splits))
    size, padding = result.train.size, result.train.padding
    if any(padding):
        report(
            f"{_PLURAL[result.train.kind]} of {_times(size)} are padded to "
            f"{_times(n + more for n, more in zip(size, padding, strict=True))}, "
            f"a multiple of {multiple if isinstance(multiple, int) else _times(multiple)}"
        )
    return result


_PLURAL = {"image": "images", "audio": "sounds", "signal": "signals", "video": "clips"}


def _reader(source: str, config: DataConfig) -> tuple[_Reader, tuple[str, ...]]:
    """The reader of a source, and its first argument where it takes one."""
    if source in NAMED:
        return NAMED[source], ()
    if source.startswith(HUGGING_FACE):
        return _HUGGING_FACE, (source.removeprefix(HUGGING_FACE),)
    path = Path(source)
    if path.is_file():
        if path.suffix.lower() not in arrays.SUFFIXES:
            raise ValueError(f"{path}: a file must be .npy or .npz, got {path.suffix or 'neither'}")
        return _ARRAYS, (source,)
    if is_mnist(path):
        return _MNIST, (source,)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: no such folder or file, and no data set of that name: {', '.join(NAMED)}, "
            f"{HUGGING_FACE}NAME"
        )
    if is_on_disk(path):
        return _HUGGING_FACE, (source,)
    if is_cifar(path):
        return _CIFAR, (source,)
    return _of_folder(path, config), (source,)


def _of_folder(path: Path, config: DataConfig) -> _Reader:
    """What a folder of files of the user's own holds, by their suffixes."""
    if config.frames is not None:
        return _VIDEO
    suffixes = {
        Path(name).suffix.lower()
        for _, _, names in os.walk(path)
        for name in names
        if not name.startswith(".")
    }
    sound, images = suffixes & audio.SUFFIXES, suffixes & folders.SUFFIXES
    if sound and images:
        raise ValueError(
            f"{path}: must hold images or WAV files, got both "
            f"({', '.join(sorted(images | sound))}): name the folder of one of them"
        )
    return _AUDIO if sound else _IMAGES


def _options(config: DataConfig, reader: _Reader, report: Report) -> dict[str, Any]:
    """The arguments of a reader that are set.

    Raises:
        ValueError: another field is set.
    """
    given = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name != "source" and getattr(config, field.name) != field.default
    }
    for name in given:
        # what channels there are is compared after reading
        if name not in reader.fields and name != "channels":
            raise ValueError(
                f"{name} is not used by {config.source}, which is read as {reader.what} "
                f"({', '.join(reader.fields) or 'no field'} may be set)"
            )
    if reader is _AUDIO and config.length is None:
        raise ValueError(f"length must be given for the WAV files of {config.source}, got None")
    options = {name: value for name, value in given.items() if name in reader.fields}
    return options | ({"report": report} if reader.reports else {})


def _default(name: str) -> Any:
    return next(field.default for field in dataclasses.fields(DataConfig) if field.name == name)


def _times(size: Iterable[int]) -> str:
    return "x".join(map(str, size))
