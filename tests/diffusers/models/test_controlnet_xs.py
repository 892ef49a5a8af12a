# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Stable Diffusion with ControlNet-XS."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import IMAGE, NEGATIVE
from test_unet import sd15_pipeline
from tiny import TEXT, WHOLE, Tiny, TinyPipeline, noise, seeded, unet_arguments


def controlnet_xs():
    return diffusers.UNetControlNetXSModel(
        sample_size=8, block_out_channels=(16, 32), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=2, cross_attention_dim=TEXT,
        transformer_layers_per_block=(2, 1), num_attention_heads=4, ctrl_conditioning_embedding_out_channels=(4, 4),
        ctrl_block_out_channels=(4, 8), ctrl_num_attention_heads=2, ctrl_max_norm_num_groups=2,
    )  # fmt: skip


class _Nothing(torch.nn.Module):
    def forward(self, hidden_states, *_, **__):
        return torch.zeros_like(hidden_states)


def _controlnet_xs_blind():
    """The oracle's run with the negative would have another control."""
    model = controlnet_xs()
    for name, block in list(model.named_modules()):
        if ".ctrl_" in name and hasattr(block, "attn2"):
            block.attn2 = _Nothing()
    return model


def _controlnet_xs_arguments(rows, dtype):
    control = {"controlnet_cond": noise(rows, 3, 16, 16, seed=6, dtype=dtype), "conditioning_scale": 0.7}
    return unet_arguments(rows, dtype) | control


TINY: dict[str, Tiny] = {
    "UNetControlNetXSModel": Tiny(_controlnet_xs_blind, _controlnet_xs_arguments, WHOLE, tau=3.0, whole=controlnet_xs),
}


def controlnet_xs_pipeline():
    """The control is a part of the denoiser."""
    parts = {k: v for k, v in sd15_pipeline().components.items() if k != "image_encoder"}
    parts |= {"unet": seeded(controlnet_xs), "controlnet": None, "requires_safety_checker": False}
    pipe = diffusers.StableDiffusionControlNetXSPipeline(**parts)
    pipe.vae_scale_factor = 2  # by which this control makes its image smaller
    call = {"image": IMAGE[..., :16, :16], "control_guidance_end": 0.7, "negative_prompt": ""}
    return pipe, call, {"prompt": "a small red cat"}, NEGATIVE


PIPELINES: dict[str, TinyPipeline] = {
    "controlnet xs": TinyPipeline(controlnet_xs_pipeline),
}
