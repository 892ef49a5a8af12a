# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""ERNIE-Image."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..attention.base import PackedText
from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import ModelSpec


def ernie_image(forward: Callable[..., Any], text: PackedText, positions: Tensor) -> Tensor:
    """The text's numbers, after the image's positions [B, S + T+ + T-, 3], begin anew for text-."""
    numbers = positions.narrow(1, positions.shape[1] - text.length_negative, text.length_negative).clone()
    numbers[..., 0] -= text.length_positive
    return forward(torch.cat([positions[:, : -text.length_negative], numbers], dim=1))


MODELS: dict[str, ModelSpec] = {
    "ErnieImageTransformer2DModel": ModelSpec(
        text={"text_bth": 1},
        masks=("text_lens",),
        hard_masks=True,
        layers=layers_named("self_attention"),
        layer_count=sum_of("num_layers"),
        layout=Layout("last", ("ErnieImageSingleStreamAttnProcessor",), masks=True),
        text_modules=lambda transformer: [(transformer.pos_embed, "forward", ernie_image)],
        negative_call={"use_pe": False},  # a language model that enhances prompts
    ),
}
