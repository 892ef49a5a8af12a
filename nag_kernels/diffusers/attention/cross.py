# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Guided cross-attention: the image attends to the prompt and to the negative prompt in one call."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0, FusedAttnProcessor2_0
from torch import Tensor

from .base import GuidedProcessor, KeyValue, Layer, Masks, PackedText, heads
from .distributed import gathered
from .masks import not_plain, seen_tokens, whole_if_unseen


class CrossAttentionProcessor(GuidedProcessor):
    """Two texts, packed along the sequence or, as in the published code, along the batch."""

    def _check_text(self, rows: int, text: Tensor) -> None:
        self._steered_rows(rows, text.shape[0])
        if self.text is not None:
            self._check_packed(text)

    def _split(self, x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """What belongs to text+ and to text-, of x [text rows, tokens, ...]."""
        if self.text is not None:
            return self.text.split(x)
        return self._of_each_row(x, rows)

    def _masks(self, attention_mask: Tensor | None, text: Tensor, rows: int) -> Masks:
        if self.text is not None and self.text.mask_positive is not None:
            return self.text.mask_positive, self.text.mask_negative
        if attention_mask is None:
            return None, None
        seen, plain = seen_tokens(type(self).__name__, attention_mask)
        if seen.shape != text.shape[:2]:
            raise ValueError(
                f"{type(self).__name__}: attention_mask must be [{text.shape[0]}, 1, {text.shape[1]}] like "
                f"encoder_hidden_states, got {tuple(attention_mask.shape)}"
            )
        message = not_plain(type(self).__name__, "attention_mask")
        if torch.compiler.is_compiling():
            torch._assert_async(plain, message)  # a compiled graph cannot branch on a value
        elif not plain:
            raise ValueError(message)
        positive, negative = self._split(seen, rows)
        if attention_mask.dtype != torch.bool:
            positive, negative = whole_if_unseen(positive), whole_if_unseen(negative)
        return positive, negative

    def _keys_and_values(self, attn: Layer, text: Tensor, compute: Callable[[], KeyValue]) -> KeyValue:
        """Of both texts: those of an earlier step where `PackedText.kept` has them."""
        if torch.compiler.is_compiling() or self.text is None or self.text.kept is None:
            return compute()
        return self.text.kept.of(attn, text, self.text.lengths, compute)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, masks: tuple[Tensor | None, Tensor | None]) -> Tensor:
        """Guided attention [B, S, C] of query [B, S, H, D] to both texts in key and value [text rows, tokens, H, D]."""
        rows = query.shape[0]
        positive, negative = zip(self._split(key, rows), self._split(value, rows), strict=True)
        if self.text is not None and self.text.sequence_group is not None:
            positive, negative = gathered([positive, negative], self.text.sequence_group)
        settings = self._settings_for(query, self._steered_rows(rows, key.shape[0]))
        return self._guided(query, positive, negative, settings, masks).flatten(2)


class NAGAttnProcessor2_0(CrossAttentionProcessor):
    """Guided cross-attention for diffusers' `Attention`, instead of `AttnProcessor2_0` (UNets, PixArt).

        out = to_out(guidance(Z+, Z-)),  Z+- = softmax(Q K+-^T / sqrt(D)) V+-     in one call (arXiv 2505.21179)

    Args:
        nag_scale: 1 steers nothing; the paper's phi is nag_scale - 1.  nag_tau: the clip.  nag_alpha: the share
            of the guided output. All three may be set again at any time.
        text: how the texts are packed, shared by the processors of a model. With it, every call with
            encoder_hidden_states [B, T+ + T-, C] is guided. Without it the batch tells, as in the published
            code: with hidden_states [B, S, C], encoder_hidden_states of batch 2B is [positive; negative]; with
            hidden_states [2B, S, C] (classifier-free guidance), batch 3B is [unconditional; positive;
            negative], and the first B rows keep their plain attention, as do the last B of [3B, S, C] (perturbed attention
            as well) with batch 4B; equal batches, or none, are plain attention.
    Masks: attention_mask as diffusers gives it, a bias [B, 1, T] for all of encoder_hidden_states, or bool.
    Raises: ValueError for a batch or length of encoder_hidden_states that is none of these, a mask that is not
        plain yes or no (RuntimeError from inside a compiled model), settings out of range.
    """

    _plain_fused: Any

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.5,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain, self._plain_fused = AttnProcessor2_0(), FusedAttnProcessor2_0()

    def takes_over(self, stock: Any) -> None:
        self.fused = isinstance(stock, FusedAttnProcessor2_0)

    def __call__(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        rows = hidden_states.shape[0]
        if encoder_hidden_states is None or (self.text is None and encoder_hidden_states.shape[0] == rows):
            return self._stock(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return self._run(attn, hidden_states, encoder_hidden_states, attention_mask, temb)

    def _run(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None,
        temb: Tensor | None, beside: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """The guided layer; `beside` gives of the query what is added to its attention, [B, S, C]."""
        rows = hidden_states.shape[0]
        self._check_text(rows, encoder_hidden_states)
        masks = self._masks(attention_mask, encoder_hidden_states, rows)
        self._count()

        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        image_shape = hidden_states.shape
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        text = encoder_hidden_states
        key, value = self._keys_and_values(
            attn, text, lambda: self._project_text(attn, self._normed_text(attn, text, rows))
        )
        query = self._project_image(attn, hidden_states)
        hidden_states = self._attend(query, key, value, masks)
        if beside is not None:
            hidden_states = hidden_states + beside(query)
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if len(image_shape) == 4:
            hidden_states = hidden_states.transpose(-1, -2).reshape(image_shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor

    def _stock(self, attn: Layer, *call: Tensor | None) -> Tensor:
        return (self._plain_fused if self._is_fused(attn) else self._plain)(attn, *call)

    def _normed_text(self, attn: Layer, text: Tensor, rows: int) -> Tensor:
        if attn.norm_cross is None:
            return text
        if self.text is None:
            return attn.norm_encoder_hidden_states(text)
        # Apart: a group norm runs over the sequence.
        return torch.cat([attn.norm_encoder_hidden_states(x) for x in self._split(text, rows)], dim=1)

    def _project_image(self, attn: Layer, hidden_states: Tensor) -> Tensor:
        """The query [.., H, D]."""
        query = heads(attn, attn.to_q(hidden_states))
        return query if attn.norm_q is None else attn.norm_q(query)

    def _project_text(self, attn: Layer, text: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value [.., H, D]."""
        fused = self._is_fused(attn)
        key, value = attn.to_kv(text).chunk(2, dim=-1) if fused else (attn.to_k(text), attn.to_v(text))
        key = heads(attn, key)
        return key if attn.norm_k is None else attn.norm_k(key), heads(attn, value)
