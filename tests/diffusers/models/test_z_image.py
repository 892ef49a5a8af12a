# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Z-Image."""

import pytest

pytest.importorskip("diffusers")

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from pipeline_parts import embeds, with_text
from tiny import TEXT, Tiny, TinyPipeline, noise, seeded, times


def _z_image():
    return diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=TEXT,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip


def _z_image_arguments(rows, dtype):
    return {"x": list(noise(rows, 4, 1, 8, 8, seed=3, dtype=dtype)), "t": times(rows, dtype)}


def _z_image_text(x, mask):
    lengths = [x.shape[1]] * len(x) if mask is None else mask.sum(1).tolist()
    return {"cap_feats": [row[:length] for row, length in zip(x, lengths, strict=True)]}


TINY: dict[str, Tiny] = {
    # Padded to multiples of 32, which for the oracle must be the same in a row: the image's positions begin after them.
    "ZImageTransformer2DModel": Tiny(
        _z_image,
        _z_image_arguments,
        32,
        _z_image_text,
        text_first=False,
        lengths=(40, 36),
        seen=((40, 3, 5), (36, 4, 1)),
    ),
}


def z_image_pipeline():
    pipe = diffusers.ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(), None, None, None, seeded(TINY["ZImageTransformer2DModel"].build)
    )
    texts = [{"prompt_embeds": [embeds(n + i, n, TEXT) for i in range(2)]} for n in (7, 5, 3)]
    return pipe, *with_text(texts, height=64, width=64)


PIPELINES: dict[str, TinyPipeline] = {
    "z image": TinyPipeline(z_image_pipeline, scales=(0.0, 0.8), prompt_first=True),
}
