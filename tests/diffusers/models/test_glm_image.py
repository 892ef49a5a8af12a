# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny GLM-Image."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import ready_made
from stand_in import filled
from tiny import TEXT, Tiny, TinyPipeline, error, images

from nag_kernels.diffusers import guide

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")


def _glm_image():
    return diffusers.GlmImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        text_embed_dim=TEXT, time_embed_dim=8, condition_dim=4, prior_vq_quantizer_codebook_size=16,
    )  # fmt: skip


def _glm_image_arguments(rows, dtype):
    sizes = {name: torch.full((rows, 2), 8.0, dtype=dtype) for name in ("target_size", "crop_coords")}
    prior = {
        "prior_token_id": torch.arange(16).expand(rows, -1),
        "prior_token_drop": torch.zeros(rows, 16, dtype=torch.bool),
    }
    return images(rows, dtype) | sizes | prior


TINY: dict[str, Tiny] = {
    "GlmImageTransformer2DModel": Tiny(_glm_image, _glm_image_arguments, 16),
}


PIPELINES: dict[str, TinyPipeline] = {
    "glm image": TinyPipeline(
        ready_made(
            "GlmImagePipeline",
            TINY["GlmImageTransformer2DModel"],
            length=7,
            prior_token_ids=torch.arange(16).expand(2, -1),
            more=lambda: dict.fromkeys(("processor", "vision_language_encoder")),
        ),
        two_calls=True,
    ),
}


def test_keys_of_another_image():
    if not hasattr(diffusers, "GlmImageTransformer2DModel"):
        pytest.skip("this diffusers has no GLM-Image")
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    pipe = filled(TINY["GlmImageTransformer2DModel"])
    caches = pipe.arguments["kv_caches"] = GlmImageKVCache(2)
    caches.set_mode("write")
    plain = pipe(pipe.prompt)
    caches.set_mode("skip")
    with guide(pipe, "negative"):
        assert error(pipe(pipe.prompt), plain) > 1e-4
    caches.set_mode("read")
    with pytest.raises(ValueError, match="as many keys as queries, 28, got 51"), guide(pipe, "negative"):
        pipe(pipe.prompt)
