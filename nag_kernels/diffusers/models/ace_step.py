# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""ACE-Step."""

from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    "AceStepTransformer1DModel": ModelSpec(
        text={"encoder_hidden_states": 1},  # and lyrics and a voice before it
        layers=layers_named("cross_attn"),
        layer_count=sum_of("num_hidden_layers"),
        layout=Layout("cross", ("AceStepAttnProcessor2_0",)),
        prompt_first=True,
    ),
}
