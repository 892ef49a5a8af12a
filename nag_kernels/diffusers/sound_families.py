# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The part of the table of families that goes the generic route and draws sounds."""

from .family import Family
from .generic_families import blocks, named
from .rebound_processor import Layout
from .texts_apart import longcat_audio

SOUND_FAMILIES: dict[str, Family] = {
    "StableAudioDiTModel": Family(
        text={"encoder_hidden_states": 1},  # and the length of the sound after it
        sites=named("attn2"),
        site_count=blocks("num_layers"),
        layout=Layout("cross", ("StableAudioAttnProcessor2_0",)),
        unknown=("attention_mask", "encoder_attention_mask"),
    ),
    "StableAudio3DiTModel": Family(
        text={"encoder_hidden_states": 1, "encoder_attention_mask": 1},  # an embedding stands in for what is not seen
        sites=named("cross_attn"),
        site_count=blocks("depth"),
        layout=Layout("cross", ("StableAudio3CrossAttnProcessor",), difference=True),
        refuse=lambda transformer: (
            None if transformer.config.use_differential_attention else "its attention is not the difference of two"
        ),
        exact="float32 (no float64)",
    ),
    "AceStepTransformer1DModel": Family(
        text={"encoder_hidden_states": 1},  # and lyrics and a voice before it
        sites=named("cross_attn"),
        site_count=blocks("num_hidden_layers"),
        layout=Layout("cross", ("AceStepAttnProcessor2_0",)),
        prompt_first=True,
    ),
    "LongCatAudioDiTTransformer": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        hard_masks=True,
        sites=named("cross_attn"),
        site_count=blocks("dit_depth"),
        layout=Layout("cross", ("AudioDiTCrossAttnProcessor",), masks=True),
        apart=lambda transformer, text: longcat_audio(transformer),
        two_calls=True,
    ),
}
