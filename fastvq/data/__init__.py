# SPDX-License-Identifier: Apache-2.0
"""Readers of images, sound and video: what models train on, split alike on every machine."""

from fastvq.data.arrays import array_file
from fastvq.data.audio import audio_folder
from fastvq.data.cifar import cifar
from fastvq.data.clips import clips
from fastvq.data.digits import digits
from fastvq.data.examples import ExampleSet, Splits
from fastvq.data.folders import folder
from fastvq.data.hugging_face import from_hugging_face
from fastvq.data.idx import mnist
from fastvq.data.mu_law import mu_law_decode, mu_law_encode
from fastvq.data.photos import photos
from fastvq.data.signals import ecg, eeg
from fastvq.data.sources import DIGITS, DataConfig, load, padded
from fastvq.data.torch_datasets import from_torch
from fastvq.data.video import video_folder

__all__ = [
    "DIGITS",
    "DataConfig",
    "ExampleSet",
    "Splits",
    "array_file",
    "audio_folder",
    "cifar",
    "clips",
    "digits",
    "ecg",
    "eeg",
    "folder",
    "from_hugging_face",
    "from_torch",
    "load",
    "mnist",
    "mu_law_decode",
    "mu_law_encode",
    "padded",
    "photos",
    "video_folder",
]
