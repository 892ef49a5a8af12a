# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Guided attention in diffusers pipelines: `guide` for whole pipelines, processors for single layers."""

import importlib
from typing import TYPE_CHECKING, Any

try:
    import diffusers  # the installed library
except ImportError as error:
    message = "nag_kernels.diffusers needs the diffusers library: pip install diffusers transformers accelerate"
    raise ImportError(message) from error

if [int(x) for x in diffusers.__version__.split(".")[:2]] < [0, 37]:
    raise ImportError(f"nag_kernels.diffusers needs diffusers 0.37 or newer, found {diffusers.__version__}")

from .attention.base import PackedText
from .diagnose import diagnose
from .encode_negative import encode_negative
from .guide import disable_guidance, enable_guidance, guide, guided
from .guided_denoiser import GuidedDenoiser
from .guider import NormalizedAttentionGuidance
from .models.registry import supported

if TYPE_CHECKING:
    from .attention.cross import NAGAttnProcessor2_0
    from .models.chroma import NAGChromaAttnProcessor2_0
    from .models.flux import NAGFluxAttnProcessor2_0, NAGFluxIPAdapterAttnProcessor
    from .models.flux2 import NAGFlux2AttnProcessor, NAGFlux2ParallelSelfAttnProcessor
    from .models.hunyuan_video import NAGHunyuanVideoAttnProcessor2_0
    from .models.ltx import NAGLTXVideoAttnProcessor
    from .models.ltx2 import NAGLTX2AudioVideoAttnProcessor, NAGLTX2PerturbedAttnProcessor
    from .models.qwen_image import NAGQwenDoubleStreamAttnProcessor2_0
    from .models.sana import NAGSanaAttnProcessor2_0
    from .models.sd3 import NAGJointAttnProcessor2_0, NAGSD3IPAdapterJointAttnProcessor2_0
    from .models.unet import NAGIPAdapterAttnProcessor2_0
    from .models.wan import NAGWanAttnProcessor2_0
    from .models.z_image import NAGZSingleStreamAttnProcessor

# A processor's file is imported when it is asked for: each imports the model that it serves.
_PROCESSORS = {
    "NAGAttnProcessor2_0": ".attention.cross",
    "NAGChromaAttnProcessor2_0": ".models.chroma",
    "NAGFlux2AttnProcessor": ".models.flux2",
    "NAGFlux2ParallelSelfAttnProcessor": ".models.flux2",
    "NAGFluxAttnProcessor2_0": ".models.flux",
    "NAGFluxIPAdapterAttnProcessor": ".models.flux",
    "NAGHunyuanVideoAttnProcessor2_0": ".models.hunyuan_video",
    "NAGIPAdapterAttnProcessor2_0": ".models.unet",
    "NAGJointAttnProcessor2_0": ".models.sd3",
    "NAGLTX2AudioVideoAttnProcessor": ".models.ltx2",
    "NAGLTX2PerturbedAttnProcessor": ".models.ltx2",
    "NAGLTXVideoAttnProcessor": ".models.ltx",
    "NAGQwenDoubleStreamAttnProcessor2_0": ".models.qwen_image",
    "NAGSanaAttnProcessor2_0": ".models.sana",
    "NAGSD3IPAdapterJointAttnProcessor2_0": ".models.sd3",
    "NAGWanAttnProcessor2_0": ".models.wan",
    "NAGZSingleStreamAttnProcessor": ".models.z_image",
}

__all__ = [
    "GuidedDenoiser",
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
    "NormalizedAttentionGuidance",
    "PackedText",
    "diagnose",
    "disable_guidance",
    "enable_guidance",
    "encode_negative",
    "guide",
    "guided",
    "supported",
]


def __getattr__(name: str) -> Any:
    if name not in _PROCESSORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PROCESSORS[name], __package__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
