# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny FLUX.3, which diffusers has as a modular pipeline alone."""

import pytest

pytest.importorskip("diffusers")

import diffusers
import torch
from tiny import TEXT, Tiny, noise, times, token_ids


def flux3(**config):
    return diffusers.Flux3Transformer2DModel(
        in_channels=16, cond_in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT, timestep_channels=16, axes_dims_rope=(4, 4, 4, 4), **config,
    )  # fmt: skip


def _arguments(rows, dtype):
    return {"hidden_states": noise(rows, 16, 16, seed=3, dtype=dtype), "timestep": times(rows, dtype),
            "img_ids": token_ids(1, 4, 4, 1)}  # fmt: skip


def _from_an_image(rows, dtype):
    """Another image's tokens follow, which are guided as those of the image are."""
    return _arguments(rows, dtype) | {"image_cond_hidden_states": noise(rows, 4, 16, seed=5, dtype=dtype),
                                      "image_cond_ids": token_ids(1, 2, 2, 1)}  # fmt: skip


def _distilled(rows, dtype):
    return _arguments(rows, dtype) | {"target_timestep": times(rows, dtype) / 2}


def _text(x, mask):
    return {"encoder_hidden_states": x, "txt_ids": torch.nn.functional.pad(torch.arange(x.shape[1])[:, None], (3, 0))}


TINY: dict[str, Tiny] = {
    "Flux3Transformer2DModel": Tiny(flux3, _arguments, 16, _text),
    "Flux3Transformer2DModel from an image": Tiny(flux3, _from_an_image, 20, _text),
    "Flux3Transformer2DModel distilled": Tiny(lambda: flux3(flow_map=True), _distilled, 16, _text),
}
