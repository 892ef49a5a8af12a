# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny OmniGen."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from stand_in import alone
from tiny import SEEN, Tiny, images, times


def _omnigen():
    return diffusers.OmniGenTransformer2DModel(
        in_channels=4, patch_size=2, hidden_size=32, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
        num_layers=2, pad_token_id=0, vocab_size=64, time_step_dim=4, pos_embed_max_size=8, max_position_embeddings=64,
        original_max_position_embeddings=32, rope_scaling={"long_factor": list(range(1, 9)), "short_factor": [1] * 8},
    )  # fmt: skip


def _omnigen_arguments(rows, dtype):
    return images(rows, dtype) | {"timestep": times(rows, dtype), "input_img_latents": []}


def _omnigen_text(x, mask):
    rows, length = x.shape[:2]
    whole = length + 1 + 16  # the time comes before the image
    seen = torch.ones(rows, length, dtype=torch.bool) if mask is None else mask
    seen = torch.nn.functional.pad(seen, (0, 17), value=True)
    mask = seen[:, None].expand(-1, whole, -1).to(x)
    positions = torch.arange(whole).repeat(rows, 1)
    ids = (x.sum(-1) * 99).long() % 60 + 3
    return {"input_ids": ids, "input_image_sizes": {}, "attention_mask": mask, "position_ids": positions}


TINY: dict[str, Tiny] = {
    "OmniGenTransformer2DModel": Tiny(_omnigen, _omnigen_arguments, 16, _omnigen_text, seen=SEEN),
}
EXAMPLES = (
    {"omnigen": alone(TINY["OmniGenTransformer2DModel"])} if hasattr(diffusers, "OmniGenTransformer2DModel") else {}
)
