# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Kandinsky 5 and 6."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..attention.base import PackedText
from ..attention.generic import Layout
from ..attention.text_modules import TextModule, begun_anew
from ..denoiser_calls import Denoiser
from .layers import layers_named, sum_of
from .spec import ModelSpec


def kandinsky(
    forward: Callable[..., Any], text: PackedText, texts: Tensor, time: Tensor, rope: Tensor, *mask: Tensor | None
) -> Tensor:
    """Attention within the text; `rope` holds the positions of both."""
    masks = (text.split(x) if isinstance(x, Tensor) else (x, x) for x in mask)
    each = zip(text.split(texts), text.split(rope, dim=-5), *masks, strict=True)
    return torch.cat([forward(x, time, *more) for x, *more in each], dim=1)


def kandinsky6(model: Denoiser) -> list[TextModule]:
    """As `kandinsky`, for the video and for its sound; the model numbers the tokens of both texts in a row."""

    def turn(forward, text, positions):
        return forward(begun_anew(positions, text))

    turns: list[TextModule]
    turns = [(x, "forward", turn) for x in (model.video_text_rope_embeddings, model.audio_text_rope_embeddings)]
    layers = [*model.video_text_transformer_blocks, *model.audio_text_transformer_blocks]
    return [*turns, *((layer, "forward", kandinsky) for layer in layers)]


class Kandinsky6(ModelSpec):
    def idle_layers(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        return ("audio_dec_block",) if arguments.get("audio_hidden_states") is None else ()


MODELS: dict[str, ModelSpec] = {
    "Kandinsky5Transformer3DModel": ModelSpec(
        text={"encoder_hidden_states": 1, "text_rope_pos": -1},
        layers=layers_named("cross_attention"),
        layer_count=sum_of("num_visual_blocks"),
        layout=Layout("cross", ("Kandinsky5AttnProcessor",)),
        exact="float32 (no float64)",
        text_modules=lambda transformer: [(x, "forward", kandinsky) for x in transformer.text_transformer_blocks],
        two_calls=True,
    ),
    "Kandinsky6Transformer3DModel": Kandinsky6(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        hard_masks=True,
        layers=layers_named("cross_attention"),
        layer_count=lambda transformer: 2 * transformer.config.num_visual_blocks,
        layout=Layout("cross", ("Kandinsky6AttnProcessor",), masks=True),
        exact="float32 (no float64)",
        text_modules=lambda transformer: kandinsky6(transformer),
        negative_call={"expand_prompts": False},  # a language model writes a story around a prompt
        two_calls=True,
    ),
}
