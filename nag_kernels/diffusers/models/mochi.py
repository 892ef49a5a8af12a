# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Mochi."""

from collections.abc import Callable

from torch.nn import Module

from ..attention.generic import Layout
from ..attention.text_modules import of_each
from .layers import layers_named, sum_of
from .spec import Family


def mochi(model: Module) -> Callable:
    """The time is embedded together with a mean of the text: of text+."""

    def embed(forward, text, timestep, texts, mask, hidden_dtype=None):
        conditioning, _ = forward(timestep, of_each(texts, text)[0], of_each(mask, text)[0], hidden_dtype=hidden_dtype)
        return conditioning, model.time_embed.caption_proj(texts)

    return embed


MODELS: dict[str, Family] = {
    "MochiTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        hard_masks=True,
        sites=layers_named("attn1"),
        site_count=sum_of("num_layers"),
        layout=Layout("last", ("MochiAttnProcessor2_0",), row_by_row=True),
        apart=lambda transformer, text: [(transformer.time_embed, "forward", mochi(transformer))],
    ),
}
