# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""GLM-Image."""

from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import Family

MODELS: dict[str, Family] = {
    "GlmImageTransformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=layers_named("attn1"),
        site_count=sum_of("num_layers"),
        layout=Layout("first", ("GlmImageAttnProcessor",)),
        two_calls=True,
        unknown=("attention_mask",),
    ),
}
