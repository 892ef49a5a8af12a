# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny HiDream."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from stand_in import alone
from tiny import TEXT, Tiny, images, noise


def _hidream():
    model = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, caption_channels=[TEXT, TEXT], text_emb_dim=8, num_routed_experts=2, num_activated_experts=1,
        axes_dims_rope=(8, 4, 4), max_resolution=(8, 8), llama_layers=[0, 1],
    )  # fmt: skip
    return model


def _hidream_arguments(rows, dtype):
    image = images(rows, dtype)
    return {"hidden_states": image["hidden_states"], "timesteps": image["timestep"],
            "pooled_embeds": noise(rows, 8, seed=4, dtype=dtype)}  # fmt: skip


def _hidream_text(x, mask):
    return {"encoder_hidden_states_t5": x[:, :-1], "encoder_hidden_states_llama3": torch.stack([x.flip(-1), -x])}


TINY: dict[str, Tiny] = {
    "HiDreamImageTransformer2DModel": Tiny(_hidream, _hidream_arguments, 16, _hidream_text, text_first=False),
}
EXAMPLES = (
    {"hidream": alone(TINY["HiDreamImageTransformer2DModel"])}
    if hasattr(diffusers, "HiDreamImageTransformer2DModel")
    else {}
)
