# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Allegro."""

from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    "AllegroTransformer3DModel": ModelSpec(
        text={"encoder_hidden_states": -2},  # [B, T, C], or [B, 1, T, C] by its pipeline
        masks=("encoder_attention_mask",),
        layers=layers_named("attn2"),
        layer_count=sum_of("num_layers"),
        layout=Layout("cross", ("AllegroAttnProcessor2_0",), masks=True),
    ),
}
