# SPDX-License-Identifier: Apache-2.0
"""Quantizers: modules with state, one a file."""

from fastvq.nn.bsq import BSQ
from fastvq.nn.codebook import Codebook, Usage
from fastvq.nn.fsq import FSQ
from fastvq.nn.grouped_residual_vq import GroupedResidualVQ
from fastvq.nn.gumbel_vq import GumbelVQ
from fastvq.nn.ibq import IBQ
from fastvq.nn.learning import EMA, Frozen, Gradient
from fastvq.nn.lfq import LFQ
from fastvq.nn.multi_scale_vq import MultiScaleQuantized, MultiScaleVQ
from fastvq.nn.projected_residual_vq import ProjectedResidualVQ
from fastvq.nn.qinco import QINCo
from fastvq.nn.quantized import Quantized
from fastvq.nn.random_projection import RandomProjectionQuantizer
from fastvq.nn.regularizers import Diversity, Orthogonality
from fastvq.nn.residual_fsq import ResidualFSQ
from fastvq.nn.residual_lfq import ResidualLFQ
from fastvq.nn.residual_simvq import ResidualSimVQ
from fastvq.nn.residual_vq import ResidualVQ
from fastvq.nn.revival import Revival
from fastvq.nn.simvq import SimVQ
from fastvq.nn.start import Given, KMeans, Uniform
from fastvq.nn.vector_quantizer import VectorQuantizer

__all__ = [
    "BSQ",
    "EMA",
    "FSQ",
    "IBQ",
    "LFQ",
    "Codebook",
    "Diversity",
    "Frozen",
    "Given",
    "Gradient",
    "GroupedResidualVQ",
    "GumbelVQ",
    "KMeans",
    "MultiScaleQuantized",
    "MultiScaleVQ",
    "Orthogonality",
    "ProjectedResidualVQ",
    "QINCo",
    "Quantized",
    "RandomProjectionQuantizer",
    "ResidualFSQ",
    "ResidualLFQ",
    "ResidualSimVQ",
    "ResidualVQ",
    "Revival",
    "SimVQ",
    "Uniform",
    "Usage",
    "VectorQuantizer",
]
