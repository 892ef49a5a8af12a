# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Kandinsky 3."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..attention.base import PackedText
from ..attention.generic import Layout
from .layers import layers_named
from .spec import ModelSpec


def kandinsky3(forward: Callable[..., Any], text: PackedText, time: Tensor, texts: Tensor, bias: Tensor) -> Tensor:
    """As `mochi`: a mean of text+, and attention of it to text+, are a part of the time."""
    return forward(time, text.split(texts)[0], text.split(bias, dim=-1)[0])


MODELS: dict[str, ModelSpec] = {
    "Kandinsky3UNet": ModelSpec(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        layers=lambda modules: (
            (x, layer) for x, layer in layers_named("attention")(modules) if ".attentions.0." not in x
        ),
        layer_count=lambda unet: 2 * unet.config.layers_per_block * (len(unet.config.block_out_channels) - 1),
        layout=Layout("cross", ("AttnProcessor2_0",), masks=True),
        text_modules=lambda unet: [(unet.add_time_condition, "forward", kandinsky3)],
    ),
}
