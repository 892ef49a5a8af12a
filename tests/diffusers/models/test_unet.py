# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny UNets of Stable Diffusion 1.5, 2 and XL, Kolors and AnimateDiff."""

import sys
import unittest.mock
from collections.abc import Callable

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from pipeline_parts import CAT, FRAMES, NEGATIVE, SMALL, clip, clip_tokenizer, ddim, embeds, image_vae, with_text
from tiny import POOLED, TEXT, WHOLE, DropIn, Tiny, TinyPipeline, frames, noise, seeded, unet_arguments
from transformers import CLIPTextModel, CLIPTextModelWithProjection


def unet_sd15():
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT,
    )  # fmt: skip


def unet_sdxl(**config):
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), cross_attention_dim=2 * TEXT, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=POOLED + 6 * 8, **config,
    )  # fmt: skip


def sd15_pipeline():
    return StableDiffusionPipeline(
        vae=image_vae(), text_encoder=clip(CLIPTextModel), tokenizer=clip_tokenizer(), unet=seeded(unet_sd15),
        scheduler=ddim(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl_pipeline():
    return StableDiffusionXLPipeline(
        vae=image_vae(), text_encoder=clip(CLIPTextModel), text_encoder_2=clip(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(), tokenizer_2=clip_tokenizer(), unet=seeded(unet_sdxl), scheduler=ddim(),
        add_watermarker=False,
    )  # fmt: skip


def kolors():
    """A UNet like SDXL's, whose text is projected before it reaches attention."""
    return unet_sdxl(encoder_hid_dim_type="text_proj", encoder_hid_dim=TEXT)


def unet_motion(**config):
    config = {"num_attention_heads": 4, "cross_attention_dim": TEXT, **config}
    return diffusers.UNetMotionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, motion_num_attention_heads=2,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), **config,
    )  # fmt: skip


def unet_motion_xl(**config):
    return unet_motion(
        transformer_layers_per_block=(2, 1), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=POOLED + 6 * 8, **config,
    )  # fmt: skip


def _frames_xl(rows, dtype):
    added = {"text_embeds": noise(rows, POOLED, seed=4, dtype=dtype), "time_ids": noise(rows, 6, seed=5, dtype=dtype)}
    return frames(rows, dtype) | {"added_cond_kwargs": added}


def _text_of_each_frame(x, mask):
    return {"encoder_hidden_states": torch.stack([x, x.flip(-1)], dim=1).flatten(0, 1)}


def sdxl_arguments(rows, dtype):
    added = {"text_embeds": noise(rows, POOLED, seed=4, dtype=dtype), "time_ids": noise(rows, 6, seed=5, dtype=dtype)}
    return unet_arguments(rows, dtype) | {"added_cond_kwargs": added}


TINY: dict[str, Tiny] = {
    "UNet2DConditionModel of Kolors": Tiny(kolors, sdxl_arguments, WHOLE, tau=3.0),
    "UNetMotionModel": Tiny(unet_motion, frames, WHOLE, _text_of_each_frame, tau=4.0),
    "UNetMotionModel xl": Tiny(unet_motion_xl, _frames_xl, WHOLE, _text_of_each_frame, tau=4.0),
}


def _motion(name, like="sd15", unet=unet_motion, **parts):
    """Of AnimateDiff, with text encoders."""
    stable = FULL_PIPELINES[like]().components
    known = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
    parts = {part: stable[part] for part in known if part in stable} | parts
    adapter = diffusers.MotionAdapter(block_out_channels=(8,), motion_num_attention_heads=2, motion_norm_num_groups=8)
    return getattr(diffusers, name)(**parts, unet=seeded(unet), motion_adapter=adapter)


def animatediff():
    """In few steps, of two prompts."""
    pipe = _motion("AnimateDiffPipeline", scheduler=diffusers.LCMScheduler())
    return pipe, {"height": 8, "width": 8, "num_frames": 3}, {"prompt": ["a small red cat", "a fox"]}, NEGATIVE


def animatediff_xl():
    pipe = _motion("AnimateDiffSDXLPipeline", "sdxl", lambda: unet_motion_xl(cross_attention_dim=2 * TEXT))
    return pipe, {"height": 8, "width": 8, "num_frames": 3}, CAT, NEGATIVE


def animatediff_from_a_video():
    call = {"video": FRAMES, "height": 8, "width": 8, "strength": 0.99}
    return _motion("AnimateDiffVideoToVideoPipeline"), call, CAT, NEGATIVE


def _controlnet():
    return diffusers.ControlNetModel(
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=4, cross_attention_dim=TEXT,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), conditioning_embedding_out_channels=(16,),
    )  # fmt: skip


def animatediff_controlled(name, **given):
    def build():
        call = {"conditioning_frames": FRAMES, "height": 8, "width": 8} | given
        return _motion(name, controlnet=seeded(_controlnet)), call, CAT, NEGATIVE

    return build


def animatediff_sparsely_controlled():
    control = seeded(lambda: diffusers.SparseControlNetModel(
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=4, motion_num_attention_heads=2,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), cross_attention_dim=TEXT,
    ))  # fmt: skip
    call = {"conditioning_frames": [SMALL], "controlnet_frame_indices": [1], "height": 8, "width": 8, "num_frames": 3}
    return _motion("AnimateDiffSparseControlNetPipeline", controlnet=control), call, CAT, NEGATIVE


def pia():
    pipe = _motion("PIAPipeline", unet=lambda: unet_motion(in_channels=9))
    return pipe, {"image": SMALL, "height": 8, "width": 8, "num_frames": 3}, CAT, NEGATIVE


def kolors_pipeline():
    """Of its module: the library has it only beside sentencepiece, which ready-made text does not need."""
    with unittest.mock.patch.dict(sys.modules, sentencepiece=unittest.mock.Mock()):
        from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline

    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipe = KolorsPipeline(unet=seeded(kolors), scheduler=diffusers.EulerDiscreteScheduler(), **parts)
    texts = [{"prompt_embeds": embeds(n, 2, 7, TEXT), "pooled_prompt_embeds": embeds(n, 2, POOLED)} for n in (7, 5, 6)]
    return pipe, *with_text(texts, height=64, width=64)


DROP_IN: dict[str, DropIn] = {
    "sd15": DropIn(unet_sd15, unet_arguments),
    "sdxl": DropIn(unet_sdxl, sdxl_arguments, 2 * TEXT),
}


FULL_PIPELINES: dict[str, Callable] = {
    "sd15": sd15_pipeline,
    "sdxl": sdxl_pipeline,
}


PIPELINES: dict[str, TinyPipeline] = {
    "animatediff": TinyPipeline(animatediff),
    "animatediff xl": TinyPipeline(animatediff_xl),
    "animatediff from a video": TinyPipeline(animatediff_from_a_video),
    "animatediff controlled": TinyPipeline(animatediff_controlled("AnimateDiffControlNetPipeline", num_frames=3)),
    "animatediff from a video, controlled": TinyPipeline(
        animatediff_controlled("AnimateDiffVideoToVideoControlNetPipeline", video=FRAMES, strength=0.99)
    ),
    "animatediff sparsely controlled": TinyPipeline(animatediff_sparsely_controlled),
    "pia": TinyPipeline(pia),
    "kolors": TinyPipeline(kolors_pipeline),
}
