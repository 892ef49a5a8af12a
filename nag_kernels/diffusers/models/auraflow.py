# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""AuraFlow."""

from collections.abc import Callable
from typing import Any

import torch

from ..attention.generic import GenericAttention, Layout
from ..denoiser_calls import Denoiser
from .layers import layers_named, sum_of
from .spec import ModelSpec

REGISTERS = 8  # tokens of the model itself, before those of a prompt


class WithRegisters(GenericAttention):
    """AuraFlow puts tokens of its own before each prompt."""

    def _lengths(self) -> tuple[int, int]:
        positive, negative = super()._lengths()
        return positive + REGISTERS, negative + REGISTERS


def auraflow(model: Denoiser) -> Callable[..., Any]:
    """The model puts tokens of its own before the text: text- gets them too."""

    def apart(forward, text, texts):
        positive, negative = text.split(forward(texts))
        return torch.cat([positive, model.register_tokens.to(positive).expand(len(positive), -1, -1), negative], dim=1)

    return apart


MODELS: dict[str, ModelSpec] = {
    "AuraFlowTransformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        layers=layers_named("attn"),
        layer_count=sum_of("num_mmdit_layers", "num_single_dit_layers"),
        layout=Layout("first", ("AuraFlowAttnProcessor2_0",), attention=WithRegisters),
        text_modules=lambda transformer: [(transformer.context_embedder, "forward", auraflow(transformer))],
    ),
}
