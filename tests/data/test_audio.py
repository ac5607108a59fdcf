# SPDX-License-Identifier: Apache-2.0
"""WAV files of every format, written byte by byte."""

import struct

import numpy as np
import pytest
import torch

from fastvq import data
from fastvq.data import files
from fastvq.data.wav import read_wav, resampled

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
# what follows the format in the sub-format of WAVE_FORMAT_EXTENSIBLE
GUID = bytes.fromhex("00001000800000AA00389B71")


def chunk(name, content):
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def wav(content, *, bits, tag=PCM, channels=1, rate=8000, extensible=False, before=b""):
    """A RIFF file: the chunks ``fmt ``, what comes between, and ``data``."""
    align = channels * bits // 8
    head = struct.pack(
        "<HHIIHH", EXTENSIBLE if extensible else tag, channels, rate, rate * align, align, bits
    )
    if extensible:
        head += struct.pack("<HHII", 22, bits, 0, tag) + GUID
    body = b"WAVE" + chunk(b"fmt ", head) + before + chunk(b"data", content)
    return chunk(b"RIFF", body)


def integers(values, bits):
    if bits == 8:
        return bytes(v + 128 for v in values)
    return b"".join(v.to_bytes(bits // 8, "little", signed=True) for v in values)


def write(path, values, rate=8000):
    """16-bit mono."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav(integers(values, 16), bits=16, rate=rate))


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_integers_fill_minus_one_to_one(tmp_path, bits, extensible):
    top = 2 ** (bits - 1)
    values = [0, 1, -1, top // 2, top - 1, -top]
    (tmp_path / "x.wav").write_bytes(wav(integers(values, bits), bits=bits, extensible=extensible))
    recording = read_wav(tmp_path / "x.wav")
    assert recording.samples.tolist() == [v / top for v in values]
    assert recording.rate == 8000


@pytest.mark.parametrize("extensible", [False, True])
@pytest.mark.parametrize("bits", [32, 64])
def test_floats_are_as_they_are(tmp_path, bits, extensible):
    values = np.array([0, 0.25, -1.5], f"<f{bits // 8}")
    content = wav(values.tobytes(), bits=bits, tag=FLOAT, extensible=extensible)
    (tmp_path / "x.wav").write_bytes(content)
    assert read_wav(tmp_path / "x.wav").samples.tolist() == [0, 0.25, -1.5]


def test_channels_are_averaged_and_other_chunks_passed_over(tmp_path):
    content = integers([100, 300, -200, 0], 16)
    between = chunk(b"LIST", b"abc") + chunk(b"junk", b"12345")
    (tmp_path / "x.wav").write_bytes(wav(content, bits=16, channels=2, before=between))
    assert (read_wav(tmp_path / "x.wav").samples * 32768).tolist() == [200, -100]


def test_chunks_in_order_the_last_filled_with_silence_or_dropped(tmp_path):
    values = list(range(-5000, 5000, 1000))
    write(tmp_path / "x.wav", values)
    levels = data.mu_law_encode(torch.tensor(values, dtype=torch.float64) / 32768).tolist()
    padded = data.audio_folder(tmp_path, length=4).train
    assert (padded.kind, padded.channels, padded.size, padded.rate) == ("audio", 1, (4,), 8000)
    assert padded.read(torch.arange(3)).flatten().tolist() == [*levels, 128, 128]
    dropped = data.audio_folder(tmp_path, length=4, tail="drop").train
    assert dropped.read(torch.arange(2)).flatten().tolist() == levels[:8]
    assert len(dropped) == 2
    assert len(data.audio_folder(tmp_path, length=5).train) == 2
    with pytest.raises(ValueError, match="no file holds a chunk of 11 samples"):
        data.audio_folder(tmp_path, length=11, tail="drop")


def test_resampled_to_another_rate(tmp_path):
    at = np.arange(800) / 8000
    tone = (16384 * np.sin(2 * np.pi * 200 * at)).round().astype(int).tolist()
    write(tmp_path / "x.wav", tone)
    found = resampled(read_wav(tmp_path / "x.wav"), 22050).samples
    expected = 0.5 * np.sin(2 * np.pi * 200 * np.arange(2205) / 22050)
    # the ripple of the filter, away from the ends where the signal is cut off; seen: 0.0004
    assert np.abs(found - expected)[200:-200].max() < 0.001
    whole = data.audio_folder(tmp_path, length=2205, sample_rate=22050).train
    assert whole.rate == 22050
    levels = whole.read(torch.tensor([0])).flatten()
    assert torch.equal(levels, data.mu_law_encode(torch.from_numpy(found)))


def test_another_rate_is_refused_by_name(tmp_path):
    write(tmp_path / "a.wav", [0] * 8)
    write(tmp_path / "b.wav", [0] * 8, rate=16000)
    with pytest.raises(ValueError, match=r"b.wav: its sample rate must be 8000, .* got 16000"):
        data.audio_folder(tmp_path, length=4)
    assert len(data.audio_folder(tmp_path, length=4, sample_rate=8000).train) == 3


def spoken(folder, count=20):
    """Names of the Free Spoken Digit Dataset; all samples of file i have the value 500 i."""
    for i in range(count):
        name = f"{i % 3}_{('jackson', 'theo')[i % 2]}_{i:02d}.wav"
        write(folder / name, [500 * i] * 10)


def test_splits_are_by_file(tmp_path):
    spoken(tmp_path)
    splits = data.audio_folder(tmp_path, length=4, tail="drop")
    assert [len(part) for part in splits] == [32, 4, 4]
    levels = [set(part.read(torch.arange(len(part))).flatten().tolist()) for part in splits]
    assert [len(part) for part in levels] == [16, 2, 2]
    assert len(set.union(*levels)) == 20


@pytest.mark.parametrize(
    ("pattern", "classes"), [(r"^(\d)_", ("0", "1", "2")), (r"_(\w+)_", ("jackson", "theo"))]
)
def test_labels_from_the_names(tmp_path, pattern, classes):
    spoken(tmp_path)
    splits = data.audio_folder(tmp_path, length=10, label_pattern=pattern)
    assert splits.train.classes == classes
    for part in splits:
        levels = part.read(torch.arange(len(part)))[:, 0, 0]
        number = (data.mu_law_decode(levels) * 32768 / 500).round().int()
        assert part.labels.tolist() == (number % len(classes)).tolist()


def test_labels_from_the_subfolders(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for name in ("no", "yes"):
            for i in range(count):
                write(tmp_path / split / name / f"{i}.wav", [len(name) * 1000] * 7)
    splits = data.audio_folder(tmp_path, length=4)
    assert splits.test.classes == ("no", "yes")
    assert [len(part) for part in splits] == [10, 2, 8]
    assert splits.test.labels.tolist() == [0] * 4 + [1] * 4
    for part in splits:
        levels = part.read(torch.arange(len(part)))[:, 0, 0]
        samples = data.mu_law_decode(levels) * 32768
        assert torch.equal(part.labels, (samples > 2500).long())


def test_files_too_many_for_memory_are_decoded_anew(tmp_path, monkeypatch):
    spoken(tmp_path)
    held = [part.read(torch.arange(len(part))) for part in data.audio_folder(tmp_path, length=3)]
    monkeypatch.setattr(files, "MEMORY_BYTES", 30)
    read = data.audio_folder(tmp_path, length=3)
    for part, expected in zip(read, held, strict=True):
        assert torch.equal(part.read(torch.arange(len(part))), expected)


SOUND = wav(integers(range(100), 16), bits=16)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not understood"),
        (b"this is text, not sound", "not understood"),
        (SOUND[:100], "cut short: must be 244 bytes by its header, got 100"),
        (SOUND[:20], "cut short"),
        (chunk(b"RIFF", b"AVI " + SOUND[12:]), "Not a WAV file"),
        (chunk(b"RIFF", b"WAVE"), "must hold a format and data"),
        (chunk(b"RIFF", SOUND[8:36]), "must hold a format and data"),
        (wav(b"", bits=16), "must hold samples, got none"),
        (wav(b"1234", bits=16, channels=0), "must hold a format and data"),
        (wav(b"1234", bits=16, rate=0), "sample rate must be at least 1, got 0"),
        (wav(b"1234", bits=8, tag=7), "MULAW"),
        (wav(struct.pack("<f", np.nan), bits=32, tag=FLOAT), "samples must be finite"),
    ],
)
def test_refused_files(tmp_path, content, message):
    spoken(tmp_path, 3)
    (tmp_path / "1_bad_99.wav").write_bytes(content)
    with pytest.raises(ValueError, match="1 of 4 WAV files cannot be read") as caught:
        data.audio_folder(tmp_path, length=4)
    assert "1_bad_99.wav" in str(caught.value)
    assert message in str(caught.value)
    lines = []
    splits = data.audio_folder(tmp_path, length=10, unreadable="skip", report=lines.append)
    assert [len(part) for part in splits] == [1, 1, 1]
    assert "1_bad_99.wav" in lines[1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"length": 0}, ValueError, "length must be at least 1, got 0"),
        ({"tail": "cut"}, ValueError, "tail must be one of pad, drop, got 'cut'"),
        ({"sample_rate": 0}, ValueError, "sample_rate must be at least 1"),
        ({"label_pattern": "("}, ValueError, "is no regular expression"),
        ({"label_pattern": "x"}, ValueError, "must hold a group for the class, got 'x'"),
        ({"label_pattern": "_(t)"}, ValueError, "0_jackson_00.wav: label_pattern must match"),
    ],
)
def test_refused_options(tmp_path, options, error, message):
    spoken(tmp_path, 3)
    with pytest.raises(error, match=message):
        data.audio_folder(tmp_path, **{"length": 4} | options)


def test_refused_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        data.audio_folder(tmp_path / "absent", length=4)
    (tmp_path / "x.mp3").touch()
    with pytest.raises(FileNotFoundError, match="no WAV file in this folder"):
        data.audio_folder(tmp_path, length=4)
