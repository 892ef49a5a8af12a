# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Latte."""

import pytest

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import ready_made
from tiny import TEXT, Tiny, TinyPipeline, videos_of_squares


def _latte():
    return diffusers.LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=32,
        sample_size=8, patch_size=2, norm_type="ada_norm_single", norm_elementwise_affine=False, caption_channels=TEXT,
        video_length=2, attention_bias=True, num_embeds_ada_norm=1000, activation_fn="gelu-approximate",
    )  # fmt: skip


TINY: dict[str, Tiny] = {
    "LatteTransformer3DModel": Tiny(_latte, videos_of_squares, 16, tau=4.0),
}


PIPELINES: dict[str, TinyPipeline] = {
    "latte": TinyPipeline(
        ready_made(
            "LattePipeline",
            TINY["LatteTransformer3DModel"],
            length=7,
            scheduler=diffusers.DDIMScheduler,
            video_length=2,
            mask_feature=False,
            clean_caption=False,
            negative_prompt=None,
        )
    ),
}
