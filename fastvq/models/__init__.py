# SPDX-License-Identifier: Apache-2.0
"""Whole models: encoders, decoders and the quantizers between them."""

from fastvq.models.autoencoder import AutoEncoder, AutoEncoderConfig, AutoEncoderOutput
from fastvq.models.base import Bits, Coder
from fastvq.models.networks import Decoder, Encoder
from fastvq.models.vqvae import VQVAE, VQVAEConfig
from fastvq.models.vqvae2 import VQVAE2, VQVAE2Config
from fastvq.models.wavenet_vqvae import WaveNetVQVAE, WaveNetVQVAEConfig, WaveNetVQVAEOutput

__all__ = [
    "VQVAE",
    "VQVAE2",
    "AutoEncoder",
    "AutoEncoderConfig",
    "AutoEncoderOutput",
    "Bits",
    "Coder",
    "Decoder",
    "Encoder",
    "VQVAE2Config",
    "VQVAEConfig",
    "WaveNetVQVAE",
    "WaveNetVQVAEConfig",
    "WaveNetVQVAEOutput",
]
