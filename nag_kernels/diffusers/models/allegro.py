# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Allegro."""

from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import Family

MODELS: dict[str, Family] = {
    "AllegroTransformer3DModel": Family(
        text={"encoder_hidden_states": -2},  # [B, T, C], or [B, 1, T, C] by its pipeline
        masks=("encoder_attention_mask",),
        sites=layers_named("attn2"),
        site_count=sum_of("num_layers"),
        layout=Layout("cross", ("AllegroAttnProcessor2_0",), masks=True),
    ),
}
