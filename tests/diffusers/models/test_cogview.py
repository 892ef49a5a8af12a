# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny CogView 3+ and 4."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import ready_made
from tiny import TEXT, Tiny, TinyPipeline, images


def _cogview4():
    return diffusers.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        text_embed_dim=TEXT, time_embed_dim=8, condition_dim=4, rope_axes_dim=(8, 8), sample_size=8,
    )  # fmt: skip


def _cogview4_arguments(rows, dtype):
    sizes = {"original_size": 8.0, "target_size": 8.0, "crop_coords": 0.0}
    return images(rows, dtype) | {name: torch.full((rows, 2), x, dtype=dtype) for name, x in sizes.items()}


def _cogview3():
    return diffusers.CogView3PlusTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        text_embed_dim=TEXT, time_embed_dim=8, condition_dim=4, pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip


TINY: dict[str, Tiny] = {
    "CogView4Transformer2DModel": Tiny(_cogview4, _cogview4_arguments, 16),
    "CogView3PlusTransformer2DModel": Tiny(_cogview3, _cogview4_arguments, 16),
}


PIPELINES: dict[str, TinyPipeline] = {
    "cogview4": TinyPipeline(ready_made("CogView4Pipeline", TINY["CogView4Transformer2DModel"]), two_calls=True),
    "cogview3": TinyPipeline(
        ready_made(
            "CogView3PlusPipeline",
            TINY["CogView3PlusTransformer2DModel"],
            length=7,
            scheduler=diffusers.CogVideoXDDIMScheduler,
        )
    ),
}
