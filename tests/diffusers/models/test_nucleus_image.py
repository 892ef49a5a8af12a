# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Nucleus-Image."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import ready_made
from tiny import TEXT, UNSEEN, Tiny, TinyPipeline, noise, text_with_its_mask, times


def _nucleus():
    model = diffusers.NucleusMoEImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=4, attention_head_dim=16, num_attention_heads=4, num_key_value_heads=2,
        joint_attention_dim=TEXT, axes_dims_rope=(4, 6, 6), dense_moe_strategy="leave_first_block_dense", num_experts=2,
        moe_intermediate_dim=16, capacity_factors=1.0,
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if "experts" in name:
            torch.nn.init.normal_(parameter, std=0.2)  # of which it leaves what was in memory
    return model


def _nucleus_arguments(rows, dtype):
    return {"hidden_states": noise(rows, 16, 16, seed=3, dtype=dtype), "timestep": times(rows, dtype),
            "img_shapes": [(1, 4, 4)] * rows}  # fmt: skip


TINY: dict[str, Tiny] = {
    "NucleusMoEImageTransformer2DModel": Tiny(_nucleus, _nucleus_arguments, 16, text_with_its_mask, seen=UNSEEN),
}


PIPELINES: dict[str, TinyPipeline] = {
    "nucleus": TinyPipeline(
        ready_made(
            "NucleusMoEImagePipeline",
            TINY["NucleusMoEImageTransformer2DModel"],
            masks="prompt_embeds_mask",
            length=7,
            more=lambda: {"processor": None},
        ),
        two_calls=True,
    ),
}
