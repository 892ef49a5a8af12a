# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""aMUSEd (UVit2DModel)."""

from ..attention.generic import Layout
from .layers import layers_named
from .spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    "UVit2DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        layers=lambda modules: (
            (x, layer) for x, layer in layers_named("attn1", "attn2")(modules) if layer.is_cross_attention
        ),
        layer_count=lambda unet: unet.config.num_hidden_layers + 2 * 2 * unet.config.num_res_blocks,
        layout=Layout("cross", ("AttnProcessor2_0",)),
        timestep="",  # it is told none
    ),
}
