# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Lumina 2 and Lumina-Next."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..attention.base import PackedText
from ..attention.generic import Layout
from ..attention.text_modules import TextModule
from ..denoiser_calls import Denoiser
from .layers import layers_named, sum_of
from .spec import ModelSpec


def lumina2(model: Denoiser) -> list[TextModule]:
    """Attention within the text, and positions and lengths that are read from its mask.

    The image has the positions that it has after text+.
    """

    def positions(forward, text, image, mask):
        first, second = text.split(mask)
        image_tokens, of_first, turns, *_ = forward(image, first)
        both = torch.cat([of_first, forward(image, second)[1]], dim=1)
        rows, length = mask.shape
        whole = length + turns.shape[1]
        return image_tokens, both, turns, torch.cat([both, turns], dim=1), [length] * rows, [whole] * rows

    def refine(forward, text, hidden_states, mask, turns):
        texts = zip(*(text.split(x) for x in (hidden_states, mask, turns)), strict=True)
        return torch.cat([forward(*each) for each in texts], dim=1)

    layers = [(layer, "forward", refine) for layer in model.context_refiner]
    return [(model.rope_embedder, "forward", positions), *layers]


def lumina_next(forward: Callable[..., Any], text: PackedText, timestep: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
    """As `mochi`: the time is embedded together with a mean of text+."""
    return forward(timestep, text.split(texts)[0], text.split(mask)[0])


MODELS: dict[str, ModelSpec] = {
    "Lumina2Transformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        hard_masks=True,
        layers=layers_named("attn"),
        layer_count=sum_of("num_layers"),
        layout=Layout("first", ("Lumina2AttnProcessor2_0",)),
        text_modules=lambda transformer: lumina2(transformer),
        two_calls=True,
    ),
    "LuminaNextDiT2DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        masks=("encoder_mask",),
        layers=layers_named("attn2"),
        layer_count=sum_of("num_layers"),
        layout=Layout("cross", ("LuminaAttnProcessor2_0",), masks=True),
        exact="float64, float32; before the gate",
        text_modules=lambda transformer: [(transformer.time_caption_embed, "forward", lumina_next)],
        prompt_first=True,
    ),
}
