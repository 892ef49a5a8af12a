# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""PixArt-alpha and PixArt-Sigma."""

from diffusers.models.attention_processor import AttnProcessor2_0, FusedAttnProcessor2_0

from nag_kernels import published

from ..attention.cross import NAGAttnProcessor2_0
from .layers import cross_attentions
from .spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    "PixArtTransformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        layers=cross_attentions,
        layer_count=lambda transformer: transformer.config.num_layers,
        processors={AttnProcessor2_0: NAGAttnProcessor2_0, FusedAttnProcessor2_0: NAGAttnProcessor2_0},
        settings=lambda transformer: published.PIXART,
        keeps_text=True,
    ),
}
