# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Wan-Animate."""

from diffusers.models.transformers.transformer_wan_animate import WanAttention, WanAttnProcessor

from .spec import ModelSpec
from .wan import wan_like

MODELS: dict[str, ModelSpec] = {
    "WanAnimateTransformer3DModel": wan_like(WanAttention, WanAttnProcessor, by_timestep=True),
}
