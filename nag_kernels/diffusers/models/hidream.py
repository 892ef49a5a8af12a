# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""HiDream."""

from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import Family

MODELS: dict[str, Family] = {
    "HiDreamImageTransformer2DModel": Family(
        text={"encoder_hidden_states_t5": 1, "encoder_hidden_states_llama3": 2},
        parts=(("encoder_hidden_states_t5", None), *(("encoder_hidden_states_llama3", None),) * 2),
        sites=layers_named("attn1"),
        site_count=sum_of("num_layers", "num_single_layers"),
        layout=Layout("last", ("HiDreamAttnProcessor",)),
        timestep="timesteps",
    ),
}
