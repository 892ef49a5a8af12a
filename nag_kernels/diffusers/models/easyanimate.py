# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""EasyAnimate."""

from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import Family

MODELS: dict[str, Family] = {
    "EasyAnimateTransformer3DModel": Family(
        text={"encoder_hidden_states": 1, "encoder_hidden_states_t5": 1},
        parts=(("encoder_hidden_states", None), ("encoder_hidden_states_t5", None)),
        sites=layers_named("attn1"),
        site_count=sum_of("num_layers"),
        layout=Layout("first", ("EasyAnimateAttnProcessor2_0",)),
    ),
}
