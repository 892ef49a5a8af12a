# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""PRX."""

from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    "PRXTransformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        masks=("attention_mask",),
        hard_masks=True,
        layers=layers_named("attention"),
        layer_count=sum_of("depth"),
        layout=Layout("keys", ("PRXAttnProcessor2_0",), masks=True),
    ),
}
