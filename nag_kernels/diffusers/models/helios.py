# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Helios."""

from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    "HeliosTransformer3DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        layers=layers_named("attn2"),
        layer_count=sum_of("num_layers"),
        layout=Layout("cross", ("HeliosAttnProcessor",)),
        two_calls=True,
        by_timestep=True,
    ),
}
