# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Guided attention in diffusers pipelines: `guide` for whole pipelines, processors for single layers."""

try:
    import diffusers  # the installed library
except ImportError as error:
    message = "nag_kernels.diffusers needs the diffusers library: pip install 'nag-kernels[diffusers]'"
    raise ImportError(message) from error

if [int(x) for x in diffusers.__version__.split(".")[:2]] < [0, 39]:
    raise ImportError(f"nag_kernels.diffusers needs diffusers 0.39 or newer, found {diffusers.__version__}")

from .after_flux import NAGChromaAttnProcessor2_0, NAGFlux2AttnProcessor, NAGFlux2ParallelSelfAttnProcessor
from .cross_attention import (
    NAGAttnProcessor2_0,
    NAGLTX2AudioVideoAttnProcessor,
    NAGLTX2PerturbedAttnProcessor,
    NAGLTXVideoAttnProcessor,
    NAGSanaAttnProcessor2_0,
    NAGWanAttnProcessor2_0,
)
from .diagnose import diagnose
from .families import supported
from .guide import disable_guidance, enable_guidance, guide, guided
from .guided_processor import PackedText
from .ip_adapter import (
    NAGFluxIPAdapterAttnProcessor,
    NAGIPAdapterAttnProcessor2_0,
    NAGSD3IPAdapterJointAttnProcessor2_0,
)
from .joint_attention import (
    NAGFluxAttnProcessor2_0,
    NAGJointAttnProcessor2_0,
    NAGQwenDoubleStreamAttnProcessor2_0,
)
from .text_last import NAGHunyuanVideoAttnProcessor2_0, NAGZSingleStreamAttnProcessor

__all__ = [
    "NAGAttnProcessor2_0",
    "NAGChromaAttnProcessor2_0",
    "NAGFlux2AttnProcessor",
    "NAGFlux2ParallelSelfAttnProcessor",
    "NAGFluxAttnProcessor2_0",
    "NAGFluxIPAdapterAttnProcessor",
    "NAGHunyuanVideoAttnProcessor2_0",
    "NAGIPAdapterAttnProcessor2_0",
    "NAGJointAttnProcessor2_0",
    "NAGLTX2AudioVideoAttnProcessor",
    "NAGLTX2PerturbedAttnProcessor",
    "NAGLTXVideoAttnProcessor",
    "NAGQwenDoubleStreamAttnProcessor2_0",
    "NAGSD3IPAdapterJointAttnProcessor2_0",
    "NAGSanaAttnProcessor2_0",
    "NAGWanAttnProcessor2_0",
    "NAGZSingleStreamAttnProcessor",
    "PackedText",
    "diagnose",
    "disable_guidance",
    "enable_guidance",
    "guide",
    "guided",
    "supported",
]
