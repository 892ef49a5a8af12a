# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Qwen-Image and Qwen-Image 2.1."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0, apply_rotary_emb_qwen
from torch import Tensor

from nag_kernels import published

from ..attention.base import Layer, PackedText, heads
from ..attention.dual_forward import DualForward
from ..attention.joint import JointAttentionProcessor
from ..denoiser_calls import Denoiser
from .layers import joint_attentions, layers_named, sum_of
from .spec import ModelSpec


class NAGQwenDoubleStreamAttnProcessor2_0(JointAttentionProcessor):
    """Guided attention for Qwen-Image, instead of `QwenDoubleStreamAttnProcessor2_0`; the texts may have masks.

    As `NAGJointAttnProcessor2_0`. Qwen-Image numbers the tokens of its text; of the packed texts each is numbered from 0.

    Args:
        nag_scale, nag_tau, nag_alpha, text: as in `NAGJointAttnProcessor2_0`.
    Raises: as there; ValueError for encoder_hidden_states_mask without PackedText.mask_positive and mask_negative.
    """

    _has_masks = True

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain = QwenDoubleStreamAttnProcessor2_0()

    def __call__(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        encoder_hidden_states_mask: Tensor | None = None, attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        call = (hidden_states, encoder_hidden_states, encoder_hidden_states_mask, attention_mask, image_rotary_emb)
        if encoder_hidden_states is None:
            return self._plain(attn, *call)
        self._check_joint(hidden_states, encoder_hidden_states, attention_mask)
        if self.text is None:
            return self._plain(attn, *call)
        self._check_own_masks(encoder_hidden_states_mask)
        self._count()

        image = [heads(attn, project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v)]
        projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text = [heads(attn, project(encoder_hidden_states)) for project in projections]
        norms = ((attn.norm_q, attn.norm_k), (attn.norm_added_q, attn.norm_added_k))
        for stream, (norm_query, norm_key) in zip((image, text), norms, strict=True):
            stream[0] = stream[0] if norm_query is None else norm_query(stream[0])
            stream[1] = stream[1] if norm_key is None else norm_key(stream[1])
        if image_rotary_emb is not None:
            image_turns, turns = image_rotary_emb
            text_turns = torch.cat([turns[: self._packed.length_positive], turns[: self._packed.length_negative]])
            rotate: Any = apply_rotary_emb_qwen  # gives a tensor, and is annotated with a pair
            for stream, turn in ((image, image_turns), (text, text_turns)):
                stream[:2] = (rotate(x, turn, use_real=False) for x in stream[:2])
        *streams, hidden_states = self._attend((image[0], image[1], image[2]), (text[0], text[1], text[2]))
        for layer in attn.to_out:
            hidden_states = layer(hidden_states)
        return hidden_states, attn.to_add_out(torch.cat(streams, dim=1))


def _last_image(denoiser: Denoiser, arguments: Mapping[str, Any], length: int) -> slice:
    return slice(length - math.prod(arguments["img_shapes"][0][-1]), length)


MODELS: dict[str, ModelSpec] = {
    "QwenImageTransformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        masks=("encoder_hidden_states_mask",),
        hard_masks=True,
        since="0.39",
        layers=joint_attentions,
        layer_count=lambda transformer: transformer.config.num_layers,
        processors={QwenDoubleStreamAttnProcessor2_0: NAGQwenDoubleStreamAttnProcessor2_0},
        settings=lambda transformer: published.FLUX,  # FLUX.1's; none are published
        two_calls=True,
    ),
    "QwenImage21Transformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        layers=layers_named("attn"),
        layer_count=sum_of("num_layers"),
        dual_forward=DualForward(
            text=("encoder_hidden_states", "encoder_hidden_states_mask", "img_mask"),
            image=_last_image,
            fixed={"kv_cache": None, "kv_cache_mode": None},  # what it would hold is the prompt's
        ),
        two_calls=True,
    ),
}
