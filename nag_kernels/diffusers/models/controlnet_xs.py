# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion with ControlNet-XS (UNetControlNetXSModel)."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.nn import Module

from ..attention.base import PackedText
from ..attention.generic import Layout
from ..attention.text_modules import TextModule
from ..denoiser_calls import Denoiser, Modules, named_modules
from .layers import layers_named
from .spec import ModelSpec
from .unet import unet_settings


def _layers(control: bool) -> Callable[[Modules], Iterator[tuple[str, Module]]]:
    """Of a UNet with ControlNet-XS: the layers of the UNet, or of the control, that see the text."""
    return lambda modules: ((x, layer) for x, layer in layers_named("attn2")(modules) if (".ctrl_" in x) == control)


def _count(unet: Denoiser) -> int:
    """Two in each block on the way down, three on the way up, one between."""
    config = unet.config
    layers = config.transformer_layers_per_block
    layers = layers if isinstance(layers, (list, tuple)) else [layers] * len(config.down_block_types)
    down = sum(2 * n for n, kind in zip(layers, config.down_block_types, strict=True) if "CrossAttn" in kind)
    up = sum(3 * n for n, kind in zip(reversed(layers), config.up_block_types, strict=True) if "CrossAttn" in kind)
    return down + layers[-1] + up


def _control(unet: Denoiser) -> list[TextModule]:
    return [(layer, "forward", prompt_alone) for _, layer in _layers(control=True)(named_modules(unet))]


def prompt_alone(
    forward: Callable[..., Any], text: PackedText, hidden_states: Tensor, encoder_hidden_states: Tensor, **options: Any
) -> Tensor:
    """Attention that is not guided: to text+."""
    return forward(hidden_states, text.split(encoder_hidden_states)[0], **options)


MODELS: dict[str, ModelSpec] = {
    "UNetControlNetXSModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        layers=_layers(control=False),
        layer_count=_count,
        layout=Layout("cross", ("AttnProcessor2_0",)),
        settings=unet_settings,
        text_modules=lambda unet: _control(unet),
    ),
}
