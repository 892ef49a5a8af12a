# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Ideogram 4."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from stand_in import alone
from tiny import SEEN, TEXT, Tiny, noise, times


def _ideogram4():
    return diffusers.Ideogram4Transformer2DModel(
        in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, intermediate_size=32, adaln_dim=8,
        llm_features_dim=TEXT, mrope_section=(4, 2, 2),
    )  # fmt: skip


def _ideogram4_arguments(rows, dtype):
    image = noise(rows, 16, 16, seed=3, dtype=dtype)
    return {"hidden_states": torch.nn.functional.pad(image, (0, 0, 7, 0)), "timestep": times(rows, dtype)}


def _ideogram4_text(x, mask):
    """Padded to seven tokens, which are not seen, before those of the image."""
    rows, length = x.shape[:2]
    seen = torch.ones(rows, length, dtype=torch.bool) if mask is None else mask
    seen = torch.nn.functional.pad(seen, (0, 7 - length))
    one = torch.ones(rows, 16, dtype=torch.long)
    return {"encoder_hidden_states": torch.nn.functional.pad(x, (0, 0, 0, 23 - length)),
            "position_ids": torch.arange(23)[None, :, None].expand(rows, -1, 3),
            "segment_ids": torch.cat([seen.long() - (~seen).long(), one], dim=1),
            "indicator": torch.cat([3 * seen.long() - (~seen).long(), 2 * one], dim=1)}  # fmt: skip


TINY: dict[str, Tiny] = {
    "Ideogram4Transformer2DModel": Tiny(_ideogram4, _ideogram4_arguments, 16, _ideogram4_text, seen=SEEN),
}
EXAMPLES = (
    {"ideogram 4": alone(TINY["Ideogram4Transformer2DModel"])}
    if hasattr(diffusers, "Ideogram4Transformer2DModel")
    else {}
)
