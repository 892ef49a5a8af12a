# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""More tiny random models as in `tiny_families`: of video pipelines."""

import diffusers
import torch
from tiny_family import WHOLE, Tiny, times
from tiny_models import POOLED, TEXT, noise


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


def _frames(rows, dtype):
    return {"sample": noise(rows, 4, 2, 8, 8, seed=3, dtype=dtype), "timestep": times(rows)}


def _frames_xl(rows, dtype):
    added = {"text_embeds": noise(rows, POOLED, seed=4, dtype=dtype), "time_ids": noise(rows, 6, seed=5, dtype=dtype)}
    return _frames(rows, dtype) | {"added_cond_kwargs": added}


def _text_of_each_frame(x, mask):
    return {"encoder_hidden_states": torch.stack([x, x.flip(-1)], dim=1).flatten(0, 1)}


VIDEOS = {
    "UNetMotionModel": Tiny(unet_motion, _frames, WHOLE, _text_of_each_frame, tau=4.0),
    "UNetMotionModel xl": Tiny(unet_motion_xl, _frames_xl, WHOLE, _text_of_each_frame, tau=4.0),
}
