# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""PRX."""

from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import Family

MODELS: dict[str, Family] = {
    "PRXTransformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("attention_mask",),
        hard_masks=True,
        sites=layers_named("attention"),
        site_count=sum_of("depth"),
        layout=Layout("keys", ("PRXAttnProcessor2_0",), masks=True),
    ),
}
