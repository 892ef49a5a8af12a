# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""EasyAnimate."""

from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    "EasyAnimateTransformer3DModel": ModelSpec(
        text={"encoder_hidden_states": 1, "encoder_hidden_states_t5": 1},
        concatenated=(("encoder_hidden_states", None), ("encoder_hidden_states_t5", None)),
        layers=layers_named("attn1"),
        layer_count=sum_of("num_layers"),
        layout=Layout("first", ("EasyAnimateAttnProcessor2_0",)),
    ),
}
