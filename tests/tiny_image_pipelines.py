# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Pipelines over tiny random models of further families that draw images or sounds, as in `tiny_pipelines`."""

import sys
import unittest.mock

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_image_families import kolors as tiny_kolors
from tiny_models import POOLED, TEXT, seeded
from tiny_pipelines import denoiser, embeds, with_text


def ernie_image():
    """Each row's text has its own length."""
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipe = diffusers.ErnieImagePipeline(
        denoiser("ErnieImageTransformer2DModel"), scheduler=FlowMatchEulerDiscreteScheduler(), **parts
    )
    texts = [{"prompt_embeds": [embeds(n + i, n - 2 * i, TEXT + 1) for i in range(2)]} for n in (7, 5, 6)]
    return pipe, *with_text(texts, height=128, width=128)


def kolors():
    """Of its module: the library has it only beside sentencepiece, which ready-made text does not need."""
    with unittest.mock.patch.dict(sys.modules, sentencepiece=unittest.mock.Mock()):
        from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline

    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipe = KolorsPipeline(unet=seeded(tiny_kolors), scheduler=diffusers.EulerDiscreteScheduler(), **parts)
    texts = [{"prompt_embeds": embeds(n, 2, 7, TEXT), "pooled_prompt_embeds": embeds(n, 2, POOLED)} for n in (7, 5, 6)]
    return pipe, *with_text(texts, height=64, width=64)


IMAGES = {
    "ernie image": ernie_image,
    "kolors": kolors,
}
