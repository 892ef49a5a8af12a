# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""OmniGen."""

import math
from collections.abc import Mapping
from typing import Any

from ..attention.dual_forward import DualForward
from ..denoiser_calls import Denoiser
from .layers import layers_named, sum_of
from .spec import ModelSpec


def _image_to_be_drawn(denoiser: Denoiser, arguments: Mapping[str, Any], length: int) -> slice:
    height, width = arguments["hidden_states"].shape[-2:]
    return slice(length - height * width // denoiser.config.patch_size**2, length)


MODELS: dict[str, ModelSpec] = {
    "OmniGenTransformer2DModel": ModelSpec(
        text={"input_ids": 1},
        layers=layers_named("self_attn"),
        layer_count=sum_of("num_layers"),
        dual_forward=DualForward(
            text=("input_ids", "input_image_sizes", "attention_mask", "position_ids"), image=_image_to_be_drawn
        ),
        prompt_first=True,
        cfg_above=-math.inf,  # it always has it
    ),
}
