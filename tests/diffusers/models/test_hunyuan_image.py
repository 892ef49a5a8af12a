# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny HunyuanImage."""

import pytest

pytest.importorskip("diffusers")

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from pipeline_parts import two_encoders, with_text
from tiny import SEEN, TEXT, Tiny, TinyPipeline, masked_text, seeded, timed_images, two_masked_texts


def _hunyuan_image(second):
    return diffusers.HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=(2, 2), text_embed_dim=TEXT, text_embed_2_dim=TEXT if second else None,
        rope_axes_dim=(8, 8),
    )  # fmt: skip


TINY: dict[str, Tiny] = {
    "HunyuanImageTransformer2DModel": Tiny(
        lambda: _hunyuan_image(False), timed_images, 16, masked_text, text_first=False, seen=SEEN
    ),
    "HunyuanImageTransformer2DModel of two texts": Tiny(
        lambda: _hunyuan_image(True), timed_images, 16, two_masked_texts, text_first=False, seen=((7, 3, 5), (5, 4, 1))
    ),
}


def hunyuan_image_pipeline():
    """As Hunyuan Video 1.5."""
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "vae"))
    parts |= {"transformer": seeded(TINY["HunyuanImageTransformer2DModel of two texts"].build)}
    guider = diffusers.AdaptiveProjectedMixGuidance(guidance_scale=3.0, adaptive_projected_guidance_start_step=9)
    pipe = diffusers.HunyuanImagePipeline(**parts, scheduler=FlowMatchEulerDiscreteScheduler(), guider=guider)
    return pipe, *with_text(two_encoders(), height=256, width=256)


PIPELINES: dict[str, TinyPipeline] = {
    "hunyuan image": TinyPipeline(hunyuan_image_pipeline, two_calls=True),
}
