# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Mochi."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import MASKED, ready_made
from tiny import SEEN, TEXT, Tiny, TinyPipeline, masked_text, videos


def mochi():
    return diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=12, num_layers=2, pooled_projection_dim=16, in_channels=4,
        out_channels=4, text_embed_dim=TEXT, time_embed_dim=8, max_sequence_length=16,
    )  # fmt: skip


def _mochi_pooled_alike():
    """The oracle's run with the negative would have the mean of the negative in its time."""
    model = mochi()
    model.time_embed.pooler = _Nothing()
    return model


class _Nothing(torch.nn.Module):
    def forward(self, x, mask):
        return x.new_zeros(len(x), 24)


TINY: dict[str, Tiny] = {
    "MochiTransformer3DModel": Tiny(
        _mochi_pooled_alike, videos, 16, masked_text, text_first=False, seen=SEEN, whole=mochi
    ),
}


PIPELINES: dict[str, TinyPipeline] = {
    "mochi": TinyPipeline(ready_made("MochiPipeline", TINY["MochiTransformer3DModel"], num_frames=7, **MASKED)),
}
