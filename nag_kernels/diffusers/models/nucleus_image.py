# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Nucleus-Image."""

from ..attention.generic import Layout
from ..attention.text_modules import numbered_anew
from .layers import layers_named, sum_of
from .spec import Family

MODELS: dict[str, Family] = {
    "NucleusMoEImageTransformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_hidden_states_mask",),
        hard_masks=True,
        sites=layers_named("attn"),
        site_count=sum_of("num_layers"),
        layout=Layout("last keys", ("NucleusMoEAttnProcessor2_0",), masks=True),
        apart=lambda transformer, text: [(transformer.pos_embed, "forward", numbered_anew)],
        two_calls=True,
    ),
}
