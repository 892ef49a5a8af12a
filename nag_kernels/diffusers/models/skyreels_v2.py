# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""SkyReels V2."""

from diffusers.models.transformers.transformer_skyreels_v2 import SkyReelsV2Attention, SkyReelsV2AttnProcessor

from .spec import ModelSpec
from .wan import wan_like

MODELS: dict[str, ModelSpec] = {
    "SkyReelsV2Transformer3DModel": wan_like(SkyReelsV2Attention, SkyReelsV2AttnProcessor, by_timestep=True),
}
