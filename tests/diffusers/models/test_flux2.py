# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny FLUX.2."""

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from pipeline_parts import embeds, four_steps, no_text_encoders
from tiny import TEXT, DropIn, image_tokens, seeded


def flux2():
    return Flux2Transformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip


def _arguments(rows, dtype):
    ids = torch.cartesian_prod(*map(torch.arange, (1, 4, 4, 1))).float()[None]
    return image_tokens(rows, dtype) | {"img_ids": ids}


def flux2_pipeline():
    """Without its text encoder, a large language model, and a call of four steps."""
    vae = AutoencoderKLFlux2(
        block_out_channels=(4,), layers_per_block=1, latent_channels=4, norm_num_groups=1,
        down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
    )  # fmt: skip
    return four_steps(Flux2KleinPipeline(**no_text_encoders(), vae=vae, transformer=seeded(flux2)), guidance_scale=1.0)


def flux2_with_embeds():
    return *flux2_pipeline(), *({"prompt_embeds": embeds(n, 2, n, TEXT)} for n in (9, 6))


DROP_IN: dict[str, DropIn] = {
    "flux2": DropIn(flux2, _arguments),
}
READY_MADE = {"flux2": flux2_pipeline}
EXAMPLES = {"flux 2": flux2_with_embeds}
