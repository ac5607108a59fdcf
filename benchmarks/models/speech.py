# SPDX-License-Identifier: Apache-2.0
"""Spoken digits through codes at a 64th of their rate, a WaveNet speaking them again.

Needs a folder of recordings named as the Free Spoken Digit Dataset names them,
``<digit>_<speaker>_<index>.wav`` at 8 kHz; the files of index 0 to 4 are never trained on.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.models.seeds import median
from fastvq import data as datasets
from fastvq import training
from fastvq.data import DataConfig, ExampleSet, mu_law_decode, mu_law_encode
from fastvq.models import WaveNetVQVAE, WaveNetVQVAEConfig
from fastvq.training import ModelTraining, media, metrics

MODEL = WaveNetVQVAEConfig(
    num_speakers=6,
    encoder_input="spectrum",
    heard_codes=16,
    hidden_channels=128,
    residual_channels=64,
    residual_blocks=4,
    codebook_size=512,
    codebook_dim=32,
    decay=0.95,
    wavenet_channels=48,
    wavenet_gate_channels=48,
    wavenet_skip_channels=64,
    wavenet_layers=10,
    wavenet_cycle=8,
)
RATE, LENGTH = 8000, 4096
TRAINING = ModelTraining(
    steps=8000,
    batch_size=8,
    learning_rate=2e-3,
    warmup_steps=100,
    averaging=0.998,
    validate_every=1000,
)
_TEMPERATURE = 0.8
_HEARD, _SPOKEN = 12, 60
_TEST_INDICES = 5
_WINDOW, _HOP = 256, 64


def measure(out: Path, recordings: Path, seed: int) -> dict[str, Any]:
    """One seed: how far speech decoded from codes is from the original, and what codes know."""
    source = DataConfig(
        source=str(arranged(recordings, out / "speech")),
        sample_rate=RATE,
        length=LENGTH,
        label_pattern=r"_([a-z]+)_",
    )
    run = out / f"speech-{seed}"
    how = dataclasses.replace(TRAINING, seed=seed)
    model = training.train_model(source, MODEL, how, run, resume=True, report=_quiet)
    assert isinstance(model, WaveNetVQVAE)
    splits = training.load_data(run, model)
    # every digit of every speaker alike, and as many to hear as one has patience for
    chosen = torch.arange(0, len(splits.test), len(splits.test) // _SPOKEN)[:_SPOKEN]
    spoken = splits.test.subset(chosen)
    originals = spoken.batch(torch.arange(len(spoken)))
    kept = model.reconstruct(
        originals,
        spoken.labels,
        temperature=_TEMPERATURE,
        generator=torch.Generator().manual_seed(seed),
    )
    heard = slice(None, None, len(spoken) // _HEARD)
    media.save_reconstructions(
        originals[heard], kept[heard], "audio", out / f"speech-{seed}-wav", rate=RATE
    )
    found = training.evaluate(model, splits, "test")
    listener = Listener(source)
    digits = digits_of(source).test.labels[chosen]
    return {
        "bits_per_second": found["bits"]["nominal"] * RATE / LENGTH,
        "reconstruction_bits_per_sample": found["bits_per_dim"]["reconstruction"],
        "codes_used": found["levels"][0]["codes_used"],
        "log_spectral_distance": distance(originals, kept),
        "mu_law_log_spectral_distance": mu_law_distance(originals),
        "digits_from_codes": digits_from_codes(model, source),
        "digits_heard": listener.hears(kept, digits),
        "digits_heard_in_originals": listener.hears(originals, digits),
    }


def arranged(recordings: Path, folder: Path) -> Path:
    """Links to the recordings in folders ``train`` and ``test`` by their index."""
    for file in sorted(recordings.glob("*.wav")):
        part = "test" if int(file.stem.rpartition("_")[2]) < _TEST_INDICES else "train"
        link = folder / part / file.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(file.resolve())
    return folder


def digits_of(source: DataConfig) -> datasets.Splits:
    """The same recordings labelled with what is said instead of who says it."""
    quiet = dataclasses.replace(source, label_pattern=r"^(\d)_")
    return datasets.load(quiet, multiple=MODEL.stride, report=_quiet)


def digits_from_codes(model: WaveNetVQVAE, source: DataConfig) -> float:
    """How often a linear classifier of codes alone names the digit of a test recording.

    It sees the code vectors of an eighth of the recording at a time, averaged; the model has never
    seen a digit's name. By chance it would be right one time in ten.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    splits = digits_of(source)

    def features(examples: ExampleSet) -> Any:
        (codes,) = metrics.encode_examples(model, examples)
        with torch.no_grad():
            vectors = model.quantizer.decode(codes)  # [N, D, l]
        return torch.nn.functional.adaptive_avg_pool1d(vectors, 8).flatten(1).numpy()

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    classifier.fit(features(splits.train), splits.train.labels.numpy())
    return float(classifier.score(features(splits.test), splits.test.labels.numpy()))


class Listener:
    """A classifier of digits that has only ever heard real recordings, clean and with some noise.

    It sees the power in 24 bands, evenly spaced on the mel scale, of a 16th of the recording at a
    time, in decibels from 30 below the loudest up: how loud it is, and silence, are nothing to it.
    """

    def __init__(self, source: DataConfig) -> None:
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        train = digits_of(source).train
        sound = _decoded(train.batch(torch.arange(len(train))))
        noise = torch.randn(sound.shape, generator=torch.Generator().manual_seed(0))
        # 15 dB below the recording
        noisy = sound + noise * (sound.square().mean(1, keepdim=True) * 10**-1.5).sqrt()
        self._classifier = make_pipeline(StandardScaler(), SVC(C=10))
        heard = torch.cat([self._features(sound), self._features(noisy)])
        self._classifier.fit(heard.numpy(), torch.cat([train.labels, train.labels]).numpy())

    def hears(self, data: Tensor, digits: Tensor) -> float:
        """The share of examples in which it hears the digit that was said."""
        features = self._features(_decoded(data))
        return float(self._classifier.score(features.numpy(), digits.numpy()))

    @staticmethod
    def _features(sound: Tensor) -> Tensor:
        power = torch.einsum("mf,bft->bmt", _mel_bands(24), _spectrum(sound))
        loudest = power.amax((1, 2), keepdim=True).clamp_min(1e-9)
        bands = (power / loudest + 1e-3).log10()
        return torch.nn.functional.adaptive_avg_pool2d(bands[:, None], (24, 16)).flatten(1)


def _mel_bands(count: int) -> Tensor:
    """Weights ``[count, bins]`` of triangular bands that overlap by half."""
    mel = 2595 * (1 + torch.linspace(0, RATE / 2, _WINDOW // 2 + 1) / 700).log10()
    edges = torch.linspace(0, float(mel[-1]), count + 2)
    width = edges[1]
    return (1 - (mel - edges[1:-1, None]).abs() / width).clamp_min(0)


def distance(originals: Tensor, kept: Tensor) -> float:
    """Log-spectral distance in dB, root mean square over frequencies, mean over frames.

    Of power spectra of 32 ms windows, no bin taken for weaker than 60 dB below the strongest of
    the original: silence would otherwise decide.
    """
    return float(_spectral(_decoded(originals), _decoded(kept)))


def mu_law_distance(originals: Tensor) -> float:
    """The same for mu-law at the rate of the codes: the best of 1 to 4 bits at fewer samples."""
    sound = _decoded(originals)
    bits_per_second = 9 * RATE / 64
    found = []
    for bits in range(1, 5):
        factor = round(RATE / (bits_per_second / bits))
        low = torch.nn.functional.avg_pool1d(sound[:, None], factor)[:, 0]
        levels = mu_law_encode(low).double() / 255
        steps = 2**bits - 1
        coarse = (levels * steps).round() / steps
        back = mu_law_decode((coarse * 255).round().to(torch.uint8))
        again = torch.nn.functional.interpolate(
            back[:, None].float(), size=sound.shape[1], mode="linear"
        )
        found.append(float(_spectral(sound, again[:, 0])))
    return min(found)


def _decoded(data: Tensor) -> Tensor:
    return media.sound(data)[:, 0].float()


def _spectrum(sound: Tensor) -> Tensor:
    window = torch.hann_window(_WINDOW)
    return torch.stft(sound, _WINDOW, _HOP, window=window, return_complex=True).abs().square()


def _spectral(originals: Tensor, kept: Tensor) -> Tensor:
    ours, theirs = _spectrum(originals), _spectrum(kept)
    floor = ours.amax((1, 2), keepdim=True) * 1e-6
    ratio = 10 * (ours.clamp_min(floor).log10() - theirs.clamp_min(floor).log10())
    return ratio.square().mean(1).sqrt().mean()


def run(out: Path, recordings: Path, seeds: int) -> dict[str, Any]:
    """The section."""
    return {"speech": median([measure(out, recordings, seed) for seed in range(seeds)])}


def lines(found: dict[str, Any]) -> list[str]:
    """The section as lines of a table."""
    speech = found["speech"]
    return [
        f"speech at {speech['bits_per_second']:.0f} bits per second: log-spectral distance "
        f"{speech['log_spectral_distance']:.1f} dB, mu-law at that rate "
        f"{speech['mu_law_log_spectral_distance']:.1f} dB",
        f"speech: {speech['digits_from_codes']:.0%} of digits told from codes alone (chance 10 %); "
        f"a classifier of real speech hears {speech['digits_heard']:.0%} of the digits in the "
        f"reconstructions, {speech['digits_heard_in_originals']:.0%} in the originals",
        f"speech: {speech['codes_used']:.0f} of 512 codes",
    ]


def _quiet(_: str) -> None:
    """No progress in the table."""
