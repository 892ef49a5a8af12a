# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Stable Audio and Stable Audio 3."""

from typing import Any

import torch
from torch import Tensor

from nag_kernels import guidance

from ..attention.generic import GenericAttention, Layout
from ..attention.joint import plain_attention
from .layers import layers_named, sum_of
from .spec import ModelSpec


class Difference(GenericAttention):
    """Stable Audio 3 calls attention twice in a layer and takes the first less the second."""

    first: Any = None  # what the first attention has left for the second

    def begin(self) -> None:
        self.first = None

    def _attend_once(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """It is the difference that is guided. All of it comes back from the second attention, for a layer that subtracts it."""
        if self.first is not None:
            self._count()
        if self._packed.rule == "vsf":  # no more than other values, whose difference can be taken
            self.first = ()
            return self._attend_sequence(query, key, value)
        texts = zip(*(x.split(self._lengths(), dim=1) for x in (key, value)), strict=True)
        both = [plain_attention(query, *text) for text in texts]
        if self.first is None:
            self.first = both
            return torch.zeros_like(both[0])
        positive, negative = ((first - second).flatten(2) for first, second in zip(self.first, both, strict=True))
        if not self.steers:
            return -positive.view_as(both[0])
        settings = self._settings_for(query, slice(0, query.shape[0]))
        if self._packed.watch is not None:
            self._packed.watch.branches(self, positive, negative, settings)
        return -guidance(positive, negative, *settings, rule=self._packed.rule).view_as(both[0])


MODELS: dict[str, ModelSpec] = {
    "StableAudioDiTModel": ModelSpec(
        text={"encoder_hidden_states": 1},  # and the length of the sound after it
        layers=layers_named("attn2"),
        layer_count=sum_of("num_layers"),
        layout=Layout("cross", ("StableAudioAttnProcessor2_0",)),
        must_be_none=("attention_mask", "encoder_attention_mask"),
    ),
    "StableAudio3DiTModel": ModelSpec(
        text={"encoder_hidden_states": 1, "encoder_attention_mask": 1},  # an embedding stands in for what is not seen
        layers=layers_named("cross_attn"),
        layer_count=sum_of("depth"),
        layout=Layout("cross", ("StableAudio3CrossAttnProcessor",), attention=Difference),
        refuse=lambda transformer: (
            None if transformer.config.use_differential_attention else "its attention is not the difference of two"
        ),
        exact="float32 (no float64)",
    ),
}
