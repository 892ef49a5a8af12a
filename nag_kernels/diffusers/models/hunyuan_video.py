# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo, HunyuanVideo 1.5 and FramePack."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from torch import Tensor
from torch.nn import Module

from ..attention.base import Layer, PackedText, SharedText, heads
from ..attention.generic import Layout
from ..attention.joint import JointAttentionProcessor, Projected, rotated
from ..attention.masks import counted
from ..attention.text_modules import changes_text, masks_of_part
from .layers import attentions_in, layers_named, sum_of
from .spec import ModelSpec


def token_refiner(forward: Callable[..., Any], text: PackedText, hidden_states: Tensor, timestep: Tensor,
                  attention_mask: Tensor | None = None) -> Tensor:  # fmt: skip
    """HunyuanVideo: attention within the text and a mean over its tokens."""
    masks = (None, None) if attention_mask is None else text.split(attention_mask)
    texts = zip(text.split(hidden_states), masks, strict=True)
    return torch.cat([forward(x, timestep, mask) for x, mask in texts], dim=1)


def hunyuan_image(
    forward: Callable[..., Any], text: PackedText, hidden_states: Tensor, timestep: Tensor, _: Tensor
) -> Tensor:
    """As `token_refiner`, of the last text of several; its mask is not the model's, in which all is seen."""
    place = max(i for i, (_, n) in enumerate(text.parts) if n)  # an image may follow
    texts = zip(hidden_states.split(text.parts[place], dim=1), masks_of_part(text, place), strict=True)
    return torch.cat([forward(x, timestep, mask) for x, mask in texts], dim=1)


@changes_text
def framepack(forward: Callable[..., Any], shared: SharedText, *call: Any) -> Tensor:
    """As `hunyuan_image`; after it the model takes no more of a mask than how many tokens are seen."""
    text = shared.packed
    refined = hunyuan_image(forward, text, *call)
    assert text.mask_positive is not None
    assert text.mask_negative is not None
    shared.change(mask_positive=counted(text.mask_positive), mask_negative=counted(text.mask_negative))
    return refined


class NAGHunyuanVideoAttnProcessor2_0(JointAttentionProcessor):
    """Guided attention for HunyuanVideo, instead of `HunyuanVideoAttnProcessor2_0`: blocks of two streams and of one.

        image:  guidance(Z+, Z-),  Z+- = softmax(Q [K_image | K+-]^T / sqrt(D)) [V_image | V+-]    in one call
        text+-: plain attention to [image | text+-]: each text keeps its own stream        (arXiv 2505.21179)

    Args:
        nag_scale, nag_tau, nag_alpha: as in `NAGAttnProcessor2_0`.
        text: how the texts are packed. With it, encoder_hidden_states [B, T+ + T-, C] is [text+ ; text-], each through the
            token refiner by itself, and both streams come back packed. Without it the layer is plain.
    Masks: the model counts the tokens that are seen, which does not tell those of two texts: PackedText has their masks.
    Raises: ValueError for another batch or length, attention_mask without masks in PackedText, settings out of range.
    """

    _has_masks = True

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain = HunyuanVideoAttnProcessor2_0()

    def __call__(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        if encoder_hidden_states is None or self.text is None:
            return self._plain(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        self._check_joint(hidden_states, encoder_hidden_states, None)
        self._check_own_masks(attention_mask)
        self._count()

        layers = (attn.to_q, attn.to_k, attn.to_v)
        image = self._project(attn, hidden_states, layers, (attn.norm_q, attn.norm_k))
        if attn.add_q_proj is None:  # one stream: the text has the layers of the image
            text = self._project(attn, encoder_hidden_states, layers, (attn.norm_q, attn.norm_k))
        else:
            layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            text = self._project(attn, encoder_hidden_states, layers, (attn.norm_added_q, attn.norm_added_k))
        *streams, hidden_states = self._attend(rotated(image, image_rotary_emb), text)
        encoder_hidden_states = torch.cat(streams, dim=1)
        if attn.to_out is not None:
            hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if getattr(attn, "to_add_out", None) is not None:
            encoder_hidden_states = attn.to_add_out(encoder_hidden_states)
        return hidden_states, encoder_hidden_states

    def _project(
        self, attn: Layer, x: Tensor, layers: tuple[Module, ...], norms: tuple[Module | None, ...]
    ) -> Projected:
        query, key, value = (heads(attn, layer(x)) for layer in layers)
        query, key = (y if norm is None else norm(y) for norm, y in zip(norms, (query, key), strict=True))
        return query, key, value


class HunyuanVideo(ModelSpec):
    def attended(self, seen: Tensor) -> Tensor:
        return counted(seen)  # of a mask the model takes no more than how many tokens it lets through: the first ones


class HunyuanVideo15(ModelSpec):
    def hides(self, image: Tensor) -> bool:
        return not image.any()


MODELS: dict[str, ModelSpec] = {
    "HunyuanVideoTransformer3DModel": HunyuanVideo(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        hard_masks=True,
        layers=attentions_in("transformer_blocks", "single_transformer_blocks"),
        layer_count=lambda transformer: transformer.config.num_layers + transformer.config.num_single_layers,
        processors={HunyuanVideoAttnProcessor2_0: NAGHunyuanVideoAttnProcessor2_0},
        text_modules=lambda transformer: [(transformer.context_embedder, "forward", token_refiner)],
        two_calls=True,
    ),
    "HunyuanVideo15Transformer3DModel": HunyuanVideo15(
        text={"encoder_hidden_states": 1, "encoder_hidden_states_2": 1},
        concatenated=(
            ("encoder_hidden_states_2", "encoder_attention_mask_2"),
            ("encoder_hidden_states", "encoder_attention_mask"),
            ("image_embeds", None),
        ),
        hard_masks=True,
        layers=layers_named("attn"),
        layer_count=sum_of("num_layers"),
        layout=Layout("last", ("HunyuanVideo15AttnProcessor2_0",), masks=True),
        text_modules=lambda transformer: [(transformer.context_embedder, "forward", hunyuan_image)],
        two_calls=True,
    ),
    "HunyuanVideoFramepackTransformer3DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        concatenated=(("image_embeds", None), ("encoder_hidden_states", "encoder_attention_mask")),
        hard_masks=True,
        layers=layers_named("attn"),
        layer_count=sum_of("num_layers", "num_single_layers"),
        layout=Layout("last", ("HunyuanVideoAttnProcessor2_0",), masks=True),
        text_modules=lambda transformer: [(transformer.context_embedder, "forward", framepack)],
        two_calls=True,
        by_timestep=True,
    ),
}
