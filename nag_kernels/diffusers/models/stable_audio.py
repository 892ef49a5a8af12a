# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Stable Audio and Stable Audio 3."""

from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import Family

MODELS: dict[str, Family] = {
    "StableAudioDiTModel": Family(
        text={"encoder_hidden_states": 1},  # and the length of the sound after it
        sites=layers_named("attn2"),
        site_count=sum_of("num_layers"),
        layout=Layout("cross", ("StableAudioAttnProcessor2_0",)),
        unknown=("attention_mask", "encoder_attention_mask"),
    ),
    "StableAudio3DiTModel": Family(
        text={"encoder_hidden_states": 1, "encoder_attention_mask": 1},  # an embedding stands in for what is not seen
        sites=layers_named("cross_attn"),
        site_count=sum_of("depth"),
        layout=Layout("cross", ("StableAudio3CrossAttnProcessor",), difference=True),
        refuse=lambda transformer: (
            None if transformer.config.use_differential_attention else "its attention is not the difference of two"
        ),
        exact="float32 (no float64)",
    ),
}
