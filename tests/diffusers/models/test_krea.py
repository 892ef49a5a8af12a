# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Krea 2."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import ready_made
from tiny import SEEN, TEXT, Tiny, TinyPipeline, noise, times, token_ids


def krea2():
    return diffusers.Krea2Transformer2DModel(
        in_channels=16, num_layers=2, attention_head_dim=12, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, timestep_embed_dim=8, text_hidden_dim=TEXT, num_text_layers=2, text_num_attention_heads=2,
        text_num_key_value_heads=2, text_intermediate_size=16, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(4, 4, 4),
    )  # fmt: skip


def _krea2_open():
    """Its gates open, as the oracle guides after them."""
    model = krea2()
    for block in model.transformer_blocks:
        block.attn.to_gate = _Open()
    return model


class _Open(torch.nn.Module):
    def forward(self, x):
        return torch.full_like(x, 100.0)


def _krea2_arguments(rows, dtype):
    return {"hidden_states": noise(rows, 16, 16, seed=3, dtype=dtype), "timestep": times(rows, dtype)}


def _krea2_text(x, mask):
    layers = torch.stack([x, x.flip(-1)], dim=2)
    ids = torch.cat([torch.zeros(x.shape[1], 3), token_ids(1, 4, 4)])
    return {"encoder_hidden_states": layers, "position_ids": ids, "encoder_attention_mask": mask}


TINY: dict[str, Tiny] = {
    "Krea2Transformer2DModel": Tiny(_krea2_open, _krea2_arguments, 16, _krea2_text, seen=SEEN, whole=krea2),
}


PIPELINES: dict[str, TinyPipeline] = {
    "krea 2": TinyPipeline(
        ready_made("Krea2Pipeline", TINY["Krea2Transformer2DModel"], masks="prompt_embeds_mask", length=7, layers=2),
        two_calls=True,
        scales=(0.0, 0.8),
    ),
}
