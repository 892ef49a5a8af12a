# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny UNets of ModelScope's text-to-video and of I2VGen-XL."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import CAT, FRAMES, NEGATIVE, SMALL
from test_unet import sd15_pipeline
from tiny import TEXT, WHOLE, Tiny, TinyPipeline, frames, noise, seeded
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

UNET3D = {
    "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 4, "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "cross_attention_dim": TEXT,
}  # fmt: skip


def unet3d():
    return diffusers.UNet3DConditionModel(**UNET3D)


def i2vgen_xl():
    return diffusers.I2VGenXLUNet(**UNET3D)


def _i2vgen_xl_arguments(rows, dtype):
    return frames(rows, dtype) | {"fps": torch.full((rows,), 8), "image_latents": noise(rows, 4, 2, 8, 8, seed=4, dtype=dtype),
                                   "image_embeddings": noise(rows, 1, TEXT, seed=5, dtype=dtype)}  # fmt: skip


TINY: dict[str, Tiny] = {
    "UNet3DConditionModel": Tiny(unet3d, frames, WHOLE, tau=4.0),
    "I2VGenXLUNet": Tiny(i2vgen_xl, _i2vgen_xl_arguments, WHOLE, tau=2.0),
}


def _modelscope(name, unet, **parts):
    """Of the older UNets of videos, with a text encoder."""
    stable = sd15_pipeline().components
    parts |= {part: stable[part] for part in ("vae", "text_encoder", "tokenizer", "scheduler")}
    return getattr(diffusers, name)(**parts, unet=seeded(unet))


def modelscope():
    call = {"height": 8, "width": 8, "num_frames": 3}
    return _modelscope("TextToVideoSDPipeline", unet3d), call, {"prompt": ["a small red cat", "a fox"]}, NEGATIVE


def modelscope_from_a_video():
    call = {"video": torch.cat([SMALL] * 3), "strength": 0.99}
    return _modelscope("VideoToVideoSDPipeline", unet3d), call, CAT, NEGATIVE


def i2vgen_xl_pipeline():
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
        projection_dim=TEXT,
    )  # fmt: skip
    parts = {"image_encoder": seeded(lambda: CLIPVisionModelWithProjection(config)),
             "feature_extractor": CLIPImageProcessor(size=8, crop_size=8)}  # fmt: skip
    call = {"image": FRAMES[0], "height": 8, "width": 8, "num_frames": 3, "clip_skip": None}
    return _modelscope("I2VGenXLPipeline", i2vgen_xl, **parts), call, CAT, NEGATIVE


PIPELINES: dict[str, TinyPipeline] = {
    "modelscope": TinyPipeline(modelscope),
    "modelscope from a video": TinyPipeline(modelscope_from_a_video),
    "i2vgen-xl": TinyPipeline(i2vgen_xl_pipeline),
}
