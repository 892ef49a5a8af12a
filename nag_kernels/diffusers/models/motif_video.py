# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Motif-Video."""

from collections.abc import Iterator

from torch.nn import Module

from ..attention.base import Masks
from ..attention.generic import GenericAttention, Layout
from ..denoiser_calls import Denoiser, Modules
from .layers import layers_named
from .spec import ModelSpec


class LastPrompt(GenericAttention):
    """Attention to the last of several prompts alone."""

    def _lengths(self) -> tuple[int, int]:
        return self._packed.parts[-1]

    def _masks(self) -> Masks:
        positive, negative = super()._masks()
        assert positive is not None
        assert negative is not None
        length_positive, length_negative = self._lengths()
        return positive[:, -length_positive:], negative[:, -length_negative:]


def _layers(modules: Modules) -> Iterator[tuple[str, Module]]:
    """Attention to image and text and, after it, to the text alone; the last blocks see no text."""
    config = modules[""].config
    seeing = config.num_single_layers - config.num_decoder_layers
    for name, module in layers_named("attn", "cross_attn")(modules):
        stream, block, *_ = name.split(".")
        if stream == "transformer_blocks" or int(block) < seeing:
            yield name, module


def _count(denoiser: Denoiser) -> int:
    config = denoiser.config
    single = config.num_single_layers - config.num_decoder_layers
    both = [
        (config.num_layers, config.enable_text_cross_attention_dual),
        (single, config.enable_text_cross_attention_single),
    ]
    return sum(layers * (2 if cross else 1) for layers, cross in both)


MODELS: dict[str, ModelSpec] = {
    "MotifVideoTransformer3DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        concatenated=(("image_embeds", None), ("encoder_hidden_states", "encoder_attention_mask")),
        hard_masks=True,
        layers=_layers,
        layer_count=_count,
        layout=(
            Layout("last", ("MotifVideoAttnProcessor2_0",), masks=True),
            Layout("cross", ("MotifVideoCrossAttnProcessor2_0",), masks=True, attention=LastPrompt),
        ),
        exact="float32 (no float64)",
        two_calls=True,
    ),
}
