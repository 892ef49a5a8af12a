# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny LTX-Video."""

from collections.abc import Callable

import pytest

pytest.importorskip("diffusers")

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel
from pipeline_parts import IMAGE, LARGE, Tokenizer, t5_encoder
from tiny import TEXT, DropIn, TinyPipeline, noise, seeded, times


def ltx():
    return LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32, num_layers=2,
        caption_channels=TEXT,
    )  # fmt: skip


def ltx_pipeline():
    return LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=t5_encoder(), tokenizer=Tokenizer(16),
        transformer=seeded(ltx),
    )  # fmt: skip


def _arguments(rows, dtype):
    shape = {"num_frames": 1, "height": 4, "width": 4}
    return {"hidden_states": noise(rows, 16, 4, seed=3, dtype=dtype), "timestep": times(rows), **shape}


def ltx_vae():
    return seeded(lambda: diffusers.AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8), patch_size=1,
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1), decoder_inject_noise=(False,) * 5,
        decoder_spatio_temporal_scaling=(True, True, True, False),
    ))  # fmt: skip


def ltx_with(name, **call):
    def build():
        pipe = getattr(diffusers, name)(**ltx_pipeline().components | {"vae": ltx_vae()})
        size = {"height": 64, "width": 64, "num_frames": 9, "max_sequence_length": 12}
        return pipe, size | call, {"prompt": "a small red cat"}, "a large blue dog on grass"

    return build


DROP_IN: dict[str, DropIn] = {
    "ltx": DropIn(ltx, _arguments),
}


FULL_PIPELINES: dict[str, Callable] = {
    "ltx": ltx_pipeline,
}


PIPELINES: dict[str, TinyPipeline] = {
    "ltx from an image": TinyPipeline(ltx_with("LTXImageToVideoPipeline", image=IMAGE)),
    "ltx with conditions": TinyPipeline(ltx_with("LTXConditionPipeline", image=LARGE[0])),
    "ltx of several prompts": TinyPipeline(
        ltx_with("LTXI2VLongMultiPromptPipeline", temporal_tile_size=16, temporal_overlap=8)
    ),
}
