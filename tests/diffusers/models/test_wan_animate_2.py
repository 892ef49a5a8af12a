# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Wan-Animate 2, which diffusers has as a modular pipeline alone."""

import importlib
from unittest import mock

import pytest

pytest.importorskip("diffusers")

import diffusers
import torch
from test_wan import attention_to_first_frame
from tiny import TEXT, WHOLE, Tiny, noise, times

MODULE = "diffusers.models.transformers.transformer_wan_animate_2"


def wan_animate_2(frames=1, size=8, **config):
    """frames, size: latent frames of a video, and tokens of each, for which its mask is made: it would compile one."""
    config = {"in_dim": 12, "out_dim": 4, "num_layers": 2, **config}
    model = diffusers.WanAnimate2Transformer3DModel(
        dim=24, ffn_dim=32, freq_dim=16, text_dim=TEXT, num_heads=2, text_len=8, **config
    )
    module = importlib.import_module(MODULE)
    plain = module.create_block_mask
    with mock.patch.object(module, "create_block_mask", lambda *x, _compile, **named: plain(*x, **named)):
        model.block_masks[frames, size] = model.create_mask(frames, size, "cpu")
    return model


def _arguments(rows, dtype):
    """Two frames of 8 tokens, beside a frame of the video whose movements they take."""
    module = importlib.import_module(MODULE)
    cache = module.WanAnimate2KVCache(2)
    for i, layer in enumerate(cache.layer_caches):
        layer.store(*noise(2, rows, 8, 2, 12, seed=5 + i, dtype=dtype))
    return {"hidden_states": list(noise(rows, 4, 2, 4, 8, seed=3, dtype=dtype)), "timestep": times(rows),
            "condition_latents": list(noise(rows, 8, 2, 4, 8, seed=4, dtype=dtype)), "kv_cache": cache,
            "kv_cache_mode": "cached", "seq_len": 16, "reference_grid_sizes": torch.tensor([[1, 2, 4]] * rows), "origin_len": 1,
            "origin_area": [32, 64],
            "encoder_hidden_states_image": noise(rows, 3, 1280, seed=9, dtype=dtype)}  # fmt: skip


def _text(x, mask):
    return {"encoder_hidden_states": list(x)}


TINY: dict[str, Tiny] = {
    "WanAnimate2Transformer3DModel": Tiny(
        wan_animate_2, _arguments, WHOLE, _text, double=False, beside=attention_to_first_frame
    ),
}
