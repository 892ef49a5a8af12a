# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Cosmos 1, 2 and 3."""

import inspect
from collections.abc import Mapping
from typing import Any

from ..attention.dual_forward import DualForward
from ..attention.generic import Layout
from ..denoiser_calls import Denoiser
from .layers import layers_named, sum_of
from .spec import ModelSpec


def _whole_sequence(denoiser: Denoiser, arguments: Mapping[str, Any], length: int) -> slice:
    """All of it is drawn: the text is elsewhere."""
    return slice(0, length)


def _refuse(denoiser: Denoiser) -> str | None:
    if "return_dict" not in inspect.signature(type(denoiser).forward).parameters:
        return "the first form of Cosmos 3 in diffusers (0.39) calls its model otherwise: take a newer diffusers"
    return None


_COSMOS3_PLACES = [f"{x}_{of}_indexes" for x in ("vision", "sound", "action") for of in ("sequence", "mse_loss")]


MODELS: dict[str, ModelSpec] = {
    "CosmosTransformer3DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        layers=layers_named("attn2"),
        layer_count=sum_of("num_layers"),
        layout=Layout("cross", ("CosmosAttnProcessor2_0",)),
        two_calls=True,
        must_be_none=("attention_mask",),
    ),
    "Cosmos3OmniTransformer": ModelSpec(
        text={"input_ids": 0},
        layers=layers_named("self_attn"),
        layer_count=sum_of("num_hidden_layers"),
        dual_forward=DualForward(
            text=("input_ids", "text_indexes", "position_ids", "und_len", "sequence_length", *_COSMOS3_PLACES),
            image=_whole_sequence,
            after=lambda layer: layer.to_add_out,
        ),
        negative_call={"add_resolution_template": False, "add_duration_template": False},
        two_calls=True,
        timestep="vision_timesteps",
        refuse=_refuse,
    ),
}
