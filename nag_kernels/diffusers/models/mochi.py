# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Mochi."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.generic import GenericAttention, Layout
from ..denoiser_calls import Denoiser
from .layers import layers_named, sum_of
from .spec import ModelSpec


class RowByRow(GenericAttention):
    """Mochi calls attention for each row of the batch, with the tokens alone that are attended to."""

    _row = 0  # the next one

    def _attend_once(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Of the next row: its settings, and as many tokens as its masks show. Each text comes back with its padding, zeros,
        as the processor fills up what it gets at the end."""
        shared, text, i = self.shared, self._packed, self._row
        assert text.mask_positive is not None
        assert text.mask_negative is not None
        if i == 0:
            self._count()
            self._seen = [x.sum(dim=1).tolist() for x in (text.mask_positive, text.mask_negative)]
        rows = len(text.mask_positive)
        own = {name: x[i : i + 1] for name in ("nag_scale", "nag_tau", "nag_alpha", "steered")
               if (x := getattr(text, name)) is not None and x.ndim}  # fmt: skip
        lengths = {"length_positive": self._seen[0][i], "length_negative": self._seen[1][i]}
        self._row = (i + 1) % rows
        try:
            self.text = dataclasses.replace(text, mask_positive=None, mask_negative=None, **lengths, **own)
            attended = self._attend_sequence(query, key, value)
            image, *texts = attended.split((attended.shape[1] - sum(lengths.values()), *lengths.values()), dim=1)
            whole = (len(mask[i]) for mask in (text.mask_positive, text.mask_negative))
            padded = (F.pad(x, (0, 0, 0, 0, 0, n - x.shape[1])) for x, n in zip(texts, whole, strict=True))
            return torch.cat([image, *padded], dim=1)
        finally:
            self.shared = shared


def mochi(model: Denoiser) -> Callable[..., Any]:
    """The time is embedded together with a mean of the text: of text+."""

    def embed(forward, text, timestep, texts, mask, hidden_dtype=None):
        prompt, seen = text.split(texts)[0], text.split(mask)[0]
        conditioning, _ = forward(timestep, prompt, seen, hidden_dtype=hidden_dtype)
        return conditioning, model.time_embed.caption_proj(texts)

    return embed


MODELS: dict[str, ModelSpec] = {
    "MochiTransformer3DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        hard_masks=True,
        layers=layers_named("attn1"),
        layer_count=sum_of("num_layers"),
        layout=Layout("last", ("MochiAttnProcessor2_0",), attention=RowByRow),
        text_modules=lambda transformer: [(transformer.time_embed, "forward", mochi(transformer))],
    ),
}
