# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Lumina 2 and Lumina-Next."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Module

from ..attention.base import PackedText
from ..attention.generic import Layout
from ..attention.text_modules import Part, of_each
from .layers import layers_named, sum_of
from .spec import Family


def lumina2(model: Module) -> list[Part]:
    """Attention within the text, and positions and lengths that are read from its mask.

    The image has the positions that it has after text+.
    """

    def positions(forward, text, image, mask):
        first, second = of_each(mask, text)
        image_tokens, of_first, turns, *_ = forward(image, first)
        both = torch.cat([of_first, forward(image, second)[1]], dim=1)
        rows, length = mask.shape
        whole = length + turns.shape[1]
        return image_tokens, both, turns, torch.cat([both, turns], dim=1), [length] * rows, [whole] * rows

    def refine(forward, text, hidden_states, mask, turns):
        texts = zip(*(of_each(x, text) for x in (hidden_states, mask, turns)), strict=True)
        return torch.cat([forward(*each) for each in texts], dim=1)

    layers = [(layer, "forward", refine) for layer in model.context_refiner]
    return [(model.rope_embedder, "forward", positions), *layers]


def lumina_next(forward: Callable, text: PackedText, timestep: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
    """As `mochi`: the time is embedded together with a mean of text+."""
    return forward(timestep, of_each(texts, text)[0], of_each(mask, text)[0])


MODELS: dict[str, Family] = {
    "Lumina2Transformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        hard_masks=True,
        sites=layers_named("attn"),
        site_count=sum_of("num_layers"),
        layout=Layout("first", ("Lumina2AttnProcessor2_0",)),
        apart=lambda transformer, text: lumina2(transformer),
        two_calls=True,
    ),
    "LuminaNextDiT2DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_mask",),
        sites=layers_named("attn2"),
        site_count=sum_of("num_layers"),
        layout=Layout("cross", ("LuminaAttnProcessor2_0",), masks=True),
        exact="float64, float32; before the gate",
        apart=lambda transformer, text: [(transformer.time_caption_embed, "forward", lumina_next)],
        prompt_first=True,
    ),
}
