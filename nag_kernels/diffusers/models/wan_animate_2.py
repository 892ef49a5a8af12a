# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Wan-Animate 2."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..attention.generic import GenericAttention, Layout
from ..attention.ip_adapter import side_by_side
from ..attention.text_modules import TextModule, changes_text
from ..denoiser_calls import Denoiser
from .layers import layers_named, sum_of
from .spec import ModelSpec


class TextThenImage(GenericAttention):
    """A layer calls attention to the text, and then to the tokens of an image, which are the same for both texts."""

    _text_seen = False

    def begin(self) -> None:
        self._text_seen = False

    def _attend_once(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self._text_seen:
            return side_by_side(query, key, value)
        self._text_seen = True
        return super()._attend_once(query, key, value)


def _one_after_another(model: Denoiser) -> list[TextModule]:
    """The model pads its texts to one length, and takes those of the negative for more rows. Here each row gets its pair."""

    @changes_text
    def embed(forward, shared, texts):
        positive, negative = forward(texts).chunk(2)
        shared.change(length_positive=positive.shape[1], length_negative=negative.shape[1])
        return torch.cat([positive, negative], dim=1)

    return [(model.text_embedding, "forward", embed)]


class WanAnimate2(ModelSpec):
    def pack(self, packer: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return packer.pack_list(arguments)

    def stays_plain(self, arguments: Mapping[str, Any]) -> bool:
        """It reads the video whose movements are to be taken, with a text of its own, and keeps keys and values."""
        return arguments.get("kv_cache_mode") == "extract"


MODELS: dict[str, ModelSpec] = {
    "WanAnimate2Transformer3DModel": WanAnimate2(
        text={"encoder_hidden_states": 0},
        layers=layers_named("cross_attn"),
        layer_count=sum_of("num_layers"),
        layout=Layout("cross", ("WanAnimate2CrossAttnProcessor",), attention=TextThenImage),
        text_modules=_one_after_another,
        two_calls=True,
        by_timestep=True,
        exact="float32",
        since="0.42",
    ),
}
