# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Lumina 2 and Lumina-Next."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from pipeline_parts import MASKED, ready_made
from tiny import SAME, SEEN, TEXT, WHOLE, Tiny, TinyPipeline, images, masked_text, timed_images


def _lumina2():
    return diffusers.Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
        num_attention_heads=2, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 4, 4), axes_lens=(32, 8, 8),
        cap_feat_dim=TEXT,
    )  # fmt: skip


def _lumina2_text(x, mask):
    return masked_text(x, SAME[: len(x), : x.shape[1]] if mask is None else mask)


def lumina_next():
    model = diffusers.LuminaNextDiT2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=32, num_layers=2, num_attention_heads=4, num_kv_heads=2,
        multiple_of=8, cross_attention_dim=TEXT,
    )  # fmt: skip
    torch.nn.init.zeros_(model.pad_token)  # of which it leaves what was in memory
    return model


class _Pooled(torch.nn.Module):
    def forward(self, x):
        return torch.linspace(-1, 1, 32).to(x).expand(len(x), -1)


def _lumina_next_pooled_alike():
    """The oracle's run with the negative would have the pooled negative in its time."""
    model = lumina_next()
    model.time_caption_embed.caption_embedder = _Pooled()
    return model


def _lumina_next_arguments(rows, dtype):
    turns = get_2d_rotary_pos_embed_lumina(8, 8, 8)
    return timed_images(rows, dtype) | {"image_rotary_emb": turns, "cross_attention_kwargs": {}}


def _lumina_next_text(x, mask):
    mask = torch.ones(x.shape[:2], dtype=torch.long) if mask is None else mask.long()
    return {"encoder_hidden_states": x, "encoder_mask": mask}


TINY: dict[str, Tiny] = {
    # As many tokens seen of both texts, for the oracle: the image's positions begin after them.
    "Lumina2Transformer2DModel": Tiny(_lumina2, images, 16, _lumina2_text, seen=((4, 3, 5), (4, 3, 5)), alone=True),
    "LuminaNextDiT2DModel": Tiny(
        _lumina_next_pooled_alike,
        _lumina_next_arguments,
        WHOLE,
        _lumina_next_text,
        layer=lambda site: None,
        seen=SEEN,
        tau=4.0,
        whole=lumina_next,
    ),
}


PIPELINES: dict[str, TinyPipeline] = {
    "lumina next": TinyPipeline(
        ready_made(
            "LuminaPipeline",
            TINY["LuminaNextDiT2DModel"],
            masks="prompt_attention_mask",
            length=7,
            clean_caption=False,
        ),
        prompt_first=True,
    ),
    "lumina 2": TinyPipeline(
        ready_made("Lumina2Pipeline", TINY["Lumina2Transformer2DModel"], **MASKED), two_calls=True
    ),
}
