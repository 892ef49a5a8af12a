# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny MiniMax-H3, which diffusers has as a modular pipeline alone."""

import pytest

pytest.importorskip("diffusers")

import diffusers
import torch
from tiny import TEXT, Tiny, noise

GIVEN, SOUND, VIDEO = 4, 6, 8  # rows of each behind the text, in this order


def minimax_h3(**config):
    config = {"in_channels": 4, "audio_in_channels": 4, **config}
    return diffusers.MiniMaxH3Transformer3DModel(
        num_attention_heads=2, attention_head_dim=16, hidden_size=32, num_layers=2, num_refiner_layers=1, ffn_dim=32,
        text_dim=TEXT, freq_dim=16, time_embed_hidden_dim=16, time_embed_dim=16, rope_freq_dim=2, **config,
    )  # fmt: skip


def _arguments(rows, dtype):
    return {"hidden_states": noise(rows, GIVEN + VIDEO, 16, seed=3, dtype=dtype),
            "audio_hidden_states": noise(rows, SOUND, 4, seed=4, dtype=dtype),
            "timestep": torch.tensor([0.2, 0.5, 0.999])}  # fmt: skip


def _text(x, mask):
    """A token of a picture is among its own. Its length moves all that comes after it."""
    length = x.shape[1]
    places = torch.arange(length + GIVEN + SOUND + VIDEO)
    text, given, sound, video = places.split((length, GIVEN, SOUND, VIDEO))
    tags, times = torch.zeros_like(places), torch.zeros_like(places)
    tags[text], tags[0], tags[sound] = 1, 0, 2
    times[sound], times[given] = 1, 2
    return {"encoder_hidden_states": x, "text_indices": text, "audio_indices": sound, "token_tags": tags,
            "video_indices": torch.cat([given, video]), "timestep_indices": times,
            "position_ids": torch.stack([places, places % 4, places % 3], dim=1)}  # fmt: skip


TINY: dict[str, Tiny] = {
    "MiniMaxH3Transformer3DModel": Tiny(minimax_h3, _arguments, GIVEN + SOUND + VIDEO, _text),
}
