# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny LongCat-AudioDiT."""

import functools
import types
import unittest.mock

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import NEGATIVE, t5
from tiny import SEEN, TEXT, WHOLE, Tiny, TinyPipeline, masked_text, noise, seeded, times


def longcat_audio(**config):
    return diffusers.LongCatAudioDiTTransformer(
        dit_dim=32, dit_depth=2, dit_heads=2, dit_text_dim=TEXT, latent_dim=4, ff_mult=2.0, **config
    )


def _longcat_audio_unpooled():
    """The oracle's run with the negative would have a mean of it in its time."""
    return longcat_audio(adaln_use_text_cond=False)


def _longcat_audio_arguments(rows, dtype):
    seen = torch.ones(rows, 15, dtype=torch.bool)  # as in its pipeline
    return {"hidden_states": noise(rows, 15, 4, seed=3, dtype=dtype), "timestep": times(rows, dtype),
            "latent_cond": noise(rows, 15, 4, seed=4, dtype=dtype), "attention_mask": seen}  # fmt: skip


TINY: dict[str, Tiny] = {
    "LongCatAudioDiTTransformer": Tiny(
        _longcat_audio_unpooled, _longcat_audio_arguments, WHOLE, masked_text, seen=SEEN, tau=2.0, whole=longcat_audio
    ),
    "LongCatAudioDiTTransformer local": Tiny(
        lambda: longcat_audio(adaln_use_text_cond=False, adaln_type="local", text_conv=False),
        _longcat_audio_arguments,
        WHOLE,
        masked_text,
        seen=SEEN,
        tau=2.0,
        whole=functools.partial(longcat_audio, adaln_type="local", text_conv=False),
    ),
}


def longcat_audio_pipeline():
    config = types.SimpleNamespace(sample_rate=16, downsampling_ratio=2)
    pipe = diffusers.LongCatAudioDiTPipeline(
        unittest.mock.Mock(config=config), **t5(), transformer=seeded(longcat_audio), scheduler=None
    )
    return pipe, {"audio_duration_s": 2.0}, {"prompt": ["a small red cat", "two small cats of grey wool"]}, NEGATIVE


PIPELINES: dict[str, TinyPipeline] = {
    "longcat audio": TinyPipeline(longcat_audio_pipeline, two_calls=True),
}
