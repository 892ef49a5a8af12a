# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""GLM-Image."""

from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    "GlmImageTransformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        layers=layers_named("attn1"),
        layer_count=sum_of("num_layers"),
        layout=Layout("first", ("GlmImageAttnProcessor",)),
        two_calls=True,
        must_be_none=("attention_mask",),
    ),
}
