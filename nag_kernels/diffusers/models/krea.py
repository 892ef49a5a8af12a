# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Krea 2."""

import torch

from ..attention.generic import Layout
from ..attention.text_modules import TextModule
from ..denoiser_calls import Denoiser
from .layers import layers_named, sum_of
from .spec import ModelSpec


def krea2(model: Denoiser) -> list[TextModule]:
    """Attention within the text, and positions, of which each text has the same (zero)."""

    def fuse(forward, text, hidden_states, attention_mask=None):
        masks = (None, None) if attention_mask is None else text.split(attention_mask, dim=-1)
        texts = zip(text.split(hidden_states), masks, strict=True)
        return torch.cat([forward(x, attention_mask=mask) for x, mask in texts], dim=1)

    def turn(forward, text, position_ids):
        positive = position_ids[: text.length_positive]
        negative = positive[:1].expand(text.length_negative, -1)
        return forward(torch.cat([positive, negative, position_ids[text.length_positive :]]))

    return [(model.text_fusion, "forward", fuse), (model.rotary_emb, "forward", turn)]


MODELS: dict[str, ModelSpec] = {
    "Krea2Transformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        hard_masks=True,
        layers=layers_named("attn"),
        layer_count=sum_of("num_layers"),
        layout=Layout("first", ("Krea2AttnProcessor",), masks=True),
        exact="float64, float32; before the gate",
        text_modules=lambda transformer: krea2(transformer),
        two_calls=True,
    ),
}
