# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""CogVideoX and ConsisID."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..attention.base import PackedText
from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import ModelSpec


def cogvideox(forward: Callable[..., Any], text: PackedText, texts: Tensor, video: Tensor) -> Tensor:
    """Text and video leave their embedding as one sequence, with positions that know one text."""
    positive, negative = text.split(texts)
    first, second = forward(positive, video), forward(negative, video)
    return torch.cat(
        [first[:, : positive.shape[1]], second[:, : negative.shape[1]], first[:, positive.shape[1] :]], dim=1
    )


def _cogvideox() -> ModelSpec:
    return ModelSpec(
        text={"encoder_hidden_states": 1},
        layers=layers_named("attn1"),
        layer_count=sum_of("num_layers"),
        layout=Layout("first", ("CogVideoXAttnProcessor2_0",)),
        text_modules=lambda transformer: [(transformer.patch_embed, "forward", cogvideox)],
    )


MODELS: dict[str, ModelSpec] = {
    "CogVideoXTransformer3DModel": _cogvideox(),
    "ConsisIDTransformer3DModel": _cogvideox(),
}
