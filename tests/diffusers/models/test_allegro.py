# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Allegro."""

import pytest

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import ready_made
from tiny import SEEN, TEXT, WHOLE, Tiny, TinyPipeline, masked_text, videos


def _allegro():
    return diffusers.AllegroTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=48, sample_height=4, sample_width=8, sample_frames=2, caption_channels=TEXT,
    )  # fmt: skip


TINY: dict[str, Tiny] = {
    "AllegroTransformer3DModel": Tiny(_allegro, videos, WHOLE, masked_text, seen=SEEN, tau=4.0),
    "AllegroTransformer3DModel by its pipeline": Tiny(
        _allegro,
        videos,
        WHOLE,
        lambda x, mask: masked_text(x, mask) | {"encoder_hidden_states": x[:, None]},
        seen=SEEN,
        tau=4.0,
    ),
}


PIPELINES: dict[str, TinyPipeline] = {
    "allegro": TinyPipeline(
        ready_made(
            "AllegroPipeline",
            TINY["AllegroTransformer3DModel"],
            scheduler=diffusers.DDIMScheduler,
            masks="prompt_attention_mask",
            length=7,
            num_frames=8,
            clean_caption=False,
            negative_prompt=None,
        )
    ),
}
