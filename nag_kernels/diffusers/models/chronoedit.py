# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""ChronoEdit."""

from diffusers.models.transformers.transformer_chronoedit import WanAttention, WanAttnProcessor

from .spec import ModelSpec
from .wan import wan_like

MODELS: dict[str, ModelSpec] = {
    "ChronoEditTransformer3DModel": wan_like(WanAttention, WanAttnProcessor),
}
