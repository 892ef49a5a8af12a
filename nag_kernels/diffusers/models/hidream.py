# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""HiDream."""

from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    "HiDreamImageTransformer2DModel": ModelSpec(
        text={"encoder_hidden_states_t5": 1, "encoder_hidden_states_llama3": 2},
        concatenated=(("encoder_hidden_states_t5", None), *(("encoder_hidden_states_llama3", None),) * 2),
        layers=layers_named("attn1"),
        layer_count=sum_of("num_layers", "num_single_layers"),
        layout=Layout("last", ("HiDreamAttnProcessor",)),
        timestep="timesteps",
    ),
}
