# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Ideogram 4."""

from collections.abc import Mapping
from typing import Any

from ..attention.dual_forward import DualForward
from ..denoiser_calls import Denoiser
from .layers import layers_named, sum_of
from .spec import ModelSpec


def _indicated_image(denoiser: Denoiser, arguments: Mapping[str, Any], length: int) -> slice:
    shown = arguments["indicator"] == 2  # tokens of the image to be drawn, at the end of each row
    image = int(shown[0].sum())
    if not bool(shown[:, length - image :].all()) or bool(shown[:, : length - image].any()):
        raise ValueError("guide: indicator must show the image at the end of each row, equally long in all")
    return slice(length - image, length)


MODELS: dict[str, ModelSpec] = {
    "Ideogram4Transformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        layers=layers_named("attention"),
        layer_count=sum_of("num_layers"),
        dual_forward=DualForward(
            text=("encoder_hidden_states", "position_ids", "segment_ids", "indicator"), image=_indicated_image
        ),
        unconditional_denoiser="unconditional_transformer",
        two_calls=True,
    ),
}
