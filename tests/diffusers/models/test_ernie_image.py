# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny ERNIE-Image."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from pipeline_parts import embeds, with_text
from tiny import SAME, TEXT, Tiny, TinyPipeline, images, seeded


def _ernie():
    return diffusers.ErnieImageTransformer2DModel(
        hidden_size=32, num_attention_heads=2, num_layers=2, ffn_hidden_size=32, in_channels=4, out_channels=4, patch_size=2,
        text_in_dim=TEXT + 1, rope_axes_dim=(8, 4, 4),
    )  # fmt: skip


def _ernie_text(x, mask):
    """Texts of as many tokens as are seen; the image's positions say how many these are."""
    mask = SAME[: len(x), : x.shape[1]] if mask is None else mask
    return {"text_bth": torch.nn.functional.pad(x, (0, 1), value=0.5), "text_lens": mask.sum(dim=1)}


def _ernie_in_one_place():
    """Its image where it is, whatever the text: of texts of other lengths the oracle's two runs would have other images."""
    model = _ernie()
    positions = model.pos_embed.forward
    model.pos_embed.forward = lambda ids: positions(torch.cat([ids[:, :16].clamp(max=3), ids[:, 16:]], dim=1))
    return model


TINY: dict[str, Tiny] = {
    "ErnieImageTransformer2DModel": Tiny(
        _ernie, images, 16, _ernie_text, text_first=False, seen=((4, 3, 5), (4, 3, 5)), tau=2.0
    ),
    "ErnieImageTransformer2DModel in one place": Tiny(
        _ernie_in_one_place, images, 16, _ernie_text, text_first=False, seen=((7, 3, 5), (5, 4, 3)), tau=2.0
    ),
}


def ernie_image_pipeline():
    """Each row's text has its own length."""
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipe = diffusers.ErnieImagePipeline(
        seeded(TINY["ErnieImageTransformer2DModel"].build), scheduler=FlowMatchEulerDiscreteScheduler(), **parts
    )
    texts = [{"prompt_embeds": [embeds(n + i, n - 2 * i, TEXT + 1) for i in range(2)]} for n in (7, 5, 6)]
    return pipe, *with_text(texts, height=128, width=128)


PIPELINES: dict[str, TinyPipeline] = {
    "ernie image": TinyPipeline(ernie_image_pipeline),
}
