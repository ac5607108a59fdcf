# SPDX-License-Identifier: Apache-2.0
"""Whole models: encoders, decoders and the quantizers between them."""

from fastvq.models.vqvae import VQVAE, Decoder, Encoder, VQVAEConfig, VQVAEOutput

__all__ = ["VQVAE", "Decoder", "Encoder", "VQVAEConfig", "VQVAEOutput"]
