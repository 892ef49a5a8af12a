# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny PixArt."""

from collections.abc import Callable

import pytest

pytest.importorskip("diffusers")

from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel
from pipeline_parts import Tokenizer, ddim, image_vae, t5_encoder
from tiny import TEXT, DropIn, images, seeded


def pixart():
    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=32, sample_size=8, patch_size=2, caption_channels=TEXT,
        use_additional_conditions=False,
    )  # fmt: skip


def pixart_pipeline():
    return PixArtAlphaPipeline(
        tokenizer=Tokenizer(16),
        text_encoder=t5_encoder(),
        vae=image_vae(),
        transformer=seeded(pixart),
        scheduler=ddim(),
    )


def _arguments(rows, dtype):
    return images(rows, dtype) | {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}


DROP_IN: dict[str, DropIn] = {
    "pixart": DropIn(pixart, _arguments),
}


FULL_PIPELINES: dict[str, Callable] = {
    "pixart": pixart_pipeline,
}
