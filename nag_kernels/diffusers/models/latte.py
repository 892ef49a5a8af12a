# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Latte."""

from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    "LatteTransformer3DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        layers=layers_named("attn2"),  # the blocks between frames have none
        layer_count=sum_of("num_layers"),
        layout=Layout("cross", ("AttnProcessor2_0",), by_frame=True),
        must_be_none=("encoder_attention_mask",),
    ),
}
