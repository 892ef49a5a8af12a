# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Drop-in processors for joint attention of models that have their text last, with masks: HunyuanVideo and Z-Image."""

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0
from diffusers.models.transformers.transformer_z_image import ZSingleStreamAttnProcessor
from torch import Tensor
from torch.nn import Module

from .guided_processor import PackedText, heads
from .joint_attention import JointAttentionProcessor, Projected


class NAGHunyuanVideoAttnProcessor2_0(JointAttentionProcessor):
    """Guided attention for HunyuanVideo, in the place of `HunyuanVideoAttnProcessor2_0`: blocks of two streams and of one.

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
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
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
        if image_rotary_emb is not None:
            query, key, value = image
            image = (*(apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (query, key)), value)
        *streams, hidden_states = self._attend(image, text)
        encoder_hidden_states = torch.cat(streams, dim=1)
        if attn.to_out is not None:
            hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if getattr(attn, "to_add_out", None) is not None:
            encoder_hidden_states = attn.to_add_out(encoder_hidden_states)
        return hidden_states, encoder_hidden_states

    def _project(
        self, attn: Attention, x: Tensor, layers: tuple[Module, ...], norms: tuple[Module | None, ...]
    ) -> Projected:
        query, key, value = (heads(attn, layer(x)) for layer in layers)
        query, key = (y if norm is None else norm(y) for norm, y in zip(norms, (query, key), strict=True))
        return query, key, value


class NAGZSingleStreamAttnProcessor(JointAttentionProcessor):
    """Guided attention for Z-Image, in the place of `ZSingleStreamAttnProcessor`.

    As `NAGHunyuanVideoAttnProcessor2_0` in a block of one stream: hidden_states is [image ; text+ ; text-], freqs_cis holds the
    positions of all of it, and the masks of the texts, which Z-Image needs where those of a batch differ in length, stand in
    PackedText.
    """

    _has_masks = True

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain = ZSingleStreamAttnProcessor()

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, freqs_cis: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        if self.text is None:
            return self._plain(attn, hidden_states, encoder_hidden_states, attention_mask, freqs_cis)
        length = sum(self._lengths())
        self._check_joint(hidden_states, hidden_states[:, -length:], None)
        self._check_own_masks(attention_mask)
        self._count()

        query, key, value = (heads(attn, layer(hidden_states)) for layer in (attn.to_q, attn.to_k, attn.to_v))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if freqs_cis is not None:
            query, key = (_turned(x, freqs_cis) for x in (query, key))
        sizes = (hidden_states.shape[1] - length, length)
        image, text = zip(*(x.split(sizes, dim=1) for x in (query, key, value)), strict=True)
        *streams, guided = self._attend(image, text)
        hidden_states = torch.cat([guided, *streams], dim=1)
        for layer in attn.to_out:
            hidden_states = layer(hidden_states)
        return hidden_states


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """x [B, S, H, D], pairs of channels turned by turns [B, S, D/2], complex64; in float32 as Z-Image does it."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns[:, :, None]).flatten(-2).to(x.dtype)
