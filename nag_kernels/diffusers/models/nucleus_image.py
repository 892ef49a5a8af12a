# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Nucleus-Image."""

from ..attention.generic import Layout
from ..attention.text_modules import numbered_anew
from .layers import layers_named, sum_of
from .spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    "NucleusMoEImageTransformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        masks=("encoder_hidden_states_mask",),
        hard_masks=True,
        layers=layers_named("attn"),
        layer_count=sum_of("num_layers"),
        layout=Layout("last keys", ("NucleusMoEAttnProcessor2_0",), masks=True),
        text_modules=lambda transformer: [(transformer.pos_embed, "forward", numbered_anew)],
        two_calls=True,
    ),
}
