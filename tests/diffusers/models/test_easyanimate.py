# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny EasyAnimate."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import ready_made
from tiny import TEXT, Tiny, TinyPipeline, seeded, videos


def easyanimate(**config):
    """Its last block has one stream."""
    return diffusers.EasyAnimateTransformer3DModel(**{
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "patch_size": 2, "num_layers": 2,
        "mmdit_layers": 1, "time_embed_dim": 8, "text_embed_dim": TEXT, "text_embed_dim_t5": TEXT, **config,
    })  # fmt: skip


def _two_texts(x, mask):
    return {"encoder_hidden_states": x, "encoder_hidden_states_t5": x[:, 1:].flip(-1)}


TINY: dict[str, Tiny] = {
    "EasyAnimateTransformer3DModel": Tiny(easyanimate, videos, 16),
    "EasyAnimateTransformer3DModel of two texts": Tiny(easyanimate, videos, 16, _two_texts),
}
VIDEO = torch.linspace(0, 1, 5 * 64 * 64).view(1, 1, 5, 64, 64).expand(-1, 3, -1, -1, -1)


def easyanimate_pipeline(name, **call):
    def more():
        vae = seeded(lambda: diffusers.AutoencoderKLMagvit(
            latent_channels=4, block_out_channels=[4, 4, 4, 4], layers_per_block=1, norm_num_groups=2
        ))  # fmt: skip
        return {
            "vae": vae,
            "transformer": seeded(
                lambda: easyanimate(in_channels=12 if call else 4, resize_inpaint_mask_directly=False)
            ),
        }

    masks = {"masks": "prompt_attention_mask", "length": 7}
    return ready_made(
        name, TINY["EasyAnimateTransformer3DModel"], **masks, rows=1 if call else 2, more=more, num_frames=5, **call
    )


PIPELINES: dict[str, TinyPipeline] = {
    "easyanimate": TinyPipeline(easyanimate_pipeline("EasyAnimatePipeline")),
    "easyanimate filled in": TinyPipeline(
        easyanimate_pipeline("EasyAnimateInpaintPipeline", video=VIDEO, mask_video=(VIDEO[:, :1] > 0.5).float())
    ),
}
