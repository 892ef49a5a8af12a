# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Drop-in processors for joint attention: text and image in one sequence, two texts, one fused call for the image."""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, FusedJointAttnProcessor2_0, JointAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0, apply_rotary_emb_qwen
from torch import Tensor

from nag_kernels import fused_guided_attention, guidance

from .guided_processor import GuidedProcessor, PackedText, heads
from .parallel import PLAIN, gathered

Projected = tuple[Tensor, Tensor, Tensor]  # query, key and value, each [B, S, H, D]


class JointAttentionProcessor(GuidedProcessor):
    """The image attends, guided, to [image | text+] and [image | text-]; each text to the image and itself."""

    _has_masks = False
    _takes_doubled_batch = False  # of the published transformers for SD3 and FLUX.1

    def _attend(self, image: Projected, text: Projected) -> tuple[Tensor, Tensor, Tensor]:
        """Attention of text+ [B, T+, C], of text- [B, T-, C] and, guided, of the image [B, S, C]."""
        query, key, value = image
        texts = list(zip(*(x.split(self._lengths(), dim=1) for x in text), strict=True))
        masks = (self.text.mask_positive, self.text.mask_negative)
        seen = [(key, value), *(text[1:] for text in texts)]
        if self.text.sequence_group is not None:
            seen = gathered(seen, self.text.sequence_group)
        (key, value), positive, negative = seen
        guided = self._guided(
            query, positive, negative, self._settings_for(query, slice(0, query.shape[0])), masks, (key, value)
        )
        # Z+ of the same operation, without a negative: keys of the image and of the text need not be copied into one tensor.
        streams = (
            plain_attention(q, k, v, key_shared=key, value_shared=value, mask_positive=mask)
            for (q, _, _), (k, v), mask in zip(texts, (positive, negative), masks, strict=True)
        )  # fmt: skip
        return tuple(x.flatten(2) for x in (*streams, guided))

    def _attend_doubled(self, image: Projected, text: Projected) -> tuple[Tensor, Tensor]:
        """Attention of the text [T, L, C] in the published batch (`_steered_rows`) and, guided, of the image [R, S, C]."""
        query, key, value = image
        rows = query.shape[0]
        steered = self._steered_rows(rows, text[0].shape[0])
        branches = zip(self._of_each_row(text[1], rows), self._of_each_row(text[2], rows), strict=True)
        guided = self._guided(query, *branches, self._settings_for(query, steered), (None, None), (key, value))
        keys, values = (torch.cat([x, x[steered]]) for x in (key, value))  # each text sees the image of its own row
        stream = plain_attention(*text, key_shared=keys, value_shared=values)
        return stream.flatten(2), guided.flatten(2)

    def _lengths(self) -> tuple[int, int]:
        return self.text.length_positive, self.text.length_negative

    def _check_own_masks(self, attention_mask: Tensor | None) -> None:
        """The model's mask is made for one text: those of two are not to be found in it."""
        if attention_mask is not None and self.text.mask_positive is None and self.text.mask_negative is None:
            raise ValueError(f"{type(self).__name__}: the masks of both texts must be given in PackedText")

    def _attend_packed(self, packed: Projected, rotary: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """As `_attend`, from one sequence [text+ ; text- ; image] turned by `rotary`."""
        length = sum(self._lengths())
        whole = _turned(packed, rotary)
        text, image = zip(*(x.split((length, x.shape[1] - length), dim=1) for x in whole), strict=True)
        return self._attend(image, text)

    def _is_doubled(self, image: Tensor, text: Tensor) -> bool:
        return self.text is None and self._takes_doubled_batch and text.shape[0] != image.shape[0]

    def _check_joint(self, image: Tensor, text: Tensor, attention_mask: Tensor | None) -> None:
        where = type(self).__name__
        if attention_mask is not None:
            raise ValueError(f"{where}: attention_mask must be None (this joint attention has no masks)")
        if self._is_doubled(image, text):
            self._steered_rows(image.shape[0], text.shape[0])
        elif text.shape[0] != image.shape[0]:
            raise ValueError(
                f"{where}: encoder_hidden_states must have batch {image.shape[0]} like hidden_states, got "
                f"{text.shape[0]}: pack a negative text along the sequence, [text+ ; text-], and say the lengths in "
                "PackedText"
            )
        if self.text is not None:
            masks = (self.text.mask_positive, self.text.mask_negative)
            if not self._has_masks and any(mask is not None for mask in masks):
                raise ValueError(
                    f"{where}: PackedText.mask_positive and mask_negative must be None (there are no masks)"
                )
            self._check_packed(text)


def _turned(projected: Projected, rotary: tuple[Tensor, Tensor] | None) -> Projected:
    """Query and key by their positions."""
    query, key, value = projected
    if rotary is None:
        return projected
    return *(apply_rotary_emb(x, rotary, sequence_dim=1) for x in (query, key)), value


def plain_attention(query: Tensor, key: Tensor, value: Tensor, **options: Tensor | None) -> Tensor:
    return fused_guided_attention(query, key, value, key[:, :0], value[:, :0], *PLAIN, **options)


class NAGJointAttnProcessor2_0(JointAttentionProcessor):
    """Guided joint attention for SD3 and SD3.5, in the place of `JointAttnProcessor2_0`; text is last.

        image:  guidance(Z+, Z-),  Z+- = softmax(Q [K_image | K+-]^T / sqrt(D)) [V_image | V+-]    in one call
        text+-: plain attention to [image | text+-]: each text keeps its own stream        (arXiv 2505.21179)

    Args:
        nag_scale, nag_tau, nag_alpha: as in `NAGAttnProcessor2_0`.
        text: how the texts are packed. With it, encoder_hidden_states [B, T+ + T-, C] is [text+ ; text-] and
            both streams come back packed. Without it the batch tells, as in `NAGAttnProcessor2_0`: the text comes back in
            the batch in which it came. That batch needs the published transformer: the stock one feeds SD3's text norms
            with an embedding of the image's batch, and breaks, at batch 1 silently.
    Raises: ValueError for encoder_hidden_states of another batch or length, attention_mask or text masks (SD3
        has none), settings out of range.
    """

    _takes_doubled_batch = True

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.125,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain, self._plain_fused = JointAttnProcessor2_0(), FusedJointAttnProcessor2_0()

    def stands_for(self, stock: Any) -> None:
        self.fused = isinstance(stock, FusedJointAttnProcessor2_0)

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        if encoder_hidden_states is None:
            return self._stock(attn, hidden_states)
        return self._run(attn, hidden_states, encoder_hidden_states, attention_mask)

    def _run(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None,
        beside: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Both streams; `beside` is added to the image's attention, [B, S, C]."""
        self._check_joint(hidden_states, encoder_hidden_states, attention_mask)
        doubled = self._is_doubled(hidden_states, encoder_hidden_states)
        if self.text is None and not doubled:
            return self._stock(attn, hidden_states, encoder_hidden_states)
        self._count()

        image, text = self._project(attn, hidden_states, encoder_hidden_states)
        if doubled:
            encoder_hidden_states, hidden_states = self._attend_doubled(image, text)
        else:
            *streams, hidden_states = self._attend(image, text)
            encoder_hidden_states = torch.cat(streams, dim=1)
        if beside is not None:
            hidden_states = hidden_states + beside
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if not attn.context_pre_only:
            encoder_hidden_states = attn.to_add_out(encoder_hidden_states)
        return hidden_states, encoder_hidden_states

    def _stock(self, attn: Attention, *call: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if not self._is_fused(attn):
            return self._plain(attn, *call)
        if attn.norm_q is not None:
            raise ValueError(
                f"{type(self).__name__}: diffusers' own processor for fused projections leaves out the norms of query and key; "
                "call unfuse_qkv_projections()"
            )
        return self._plain_fused(attn, *call)

    def _project(self, attn: Attention, image: Tensor, text: Tensor) -> tuple[Projected, Projected]:
        if self._is_fused(attn):
            own, added = attn.to_qkv(image).chunk(3, dim=-1), attn.to_added_qkv(text).chunk(3, dim=-1)
        else:
            own = attn.to_q(image), attn.to_k(image), attn.to_v(image)
            added = attn.add_q_proj(text), attn.add_k_proj(text), attn.add_v_proj(text)
        norms = (attn.norm_q, attn.norm_k, None), (attn.norm_added_q, attn.norm_added_k, None)
        return tuple(
            tuple(heads(attn, x) if norm is None else norm(heads(attn, x)) for x, norm in zip(*stream, strict=True))
            for stream in zip((own, added), norms, strict=True)
        )


class NAGFluxAttnProcessor2_0(JointAttentionProcessor):
    """Guided attention for FLUX.1, in the place of `FluxAttnProcessor`: two-stream and single-stream blocks, text first.

        image:  guidance(Z+, Z-),  Z+- = softmax(Q [K_image | K+-]^T / sqrt(D)) [V_image | V+-]    in one call
        text+-: plain attention to [image | text+-]: each text keeps its own stream        (arXiv 2505.21179)

    Args:
        nag_scale, nag_tau, nag_alpha: as in `NAGAttnProcessor2_0`.
        text: how the texts are packed. With it, encoder_hidden_states [B, T+ + T-, C] is [text+ ; text-], or, in a
            single-stream block, hidden_states is [text+ ; text- ; image]; image_rotary_emb holds the positions of all
            of it. Without it the batch tells in two-stream blocks, as in `NAGJointAttnProcessor2_0`, with the published
            transformer.
        encoder_hidden_states_length: without `text`, in the single-stream blocks of the published transformer: how many
            tokens of hidden_states [2B, T + S, C] are text. That transformer doubles the image too there: the second half
            has a query of its own, and both halves get the guided image. None is the plain layer.
    Raises: ValueError for another batch or length, attention_mask or text masks, settings out of range.
    """

    _takes_doubled_batch = True

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None, encoder_hidden_states_length: int | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self.encoder_hidden_states_length = encoder_hidden_states_length
        self._plain = FluxAttnProcessor()

    def __call__(
        self, attn: FluxAttention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        single = encoder_hidden_states is None
        if not single:
            self._check_joint(hidden_states, encoder_hidden_states, attention_mask)
        if self.text is None:
            call = (hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
            if single and self.encoder_hidden_states_length is not None:
                return self._one_stream_doubled(attn, *call)
            if not single and self._is_doubled(hidden_states, encoder_hidden_states):
                return self._two_streams_doubled(attn, *call)
            return self._plain(attn, *call)
        length = sum(self._lengths())
        if single:
            self._check_joint(hidden_states, hidden_states[:, :length], attention_mask)
        self._count()

        packed = self._project(attn, hidden_states, encoder_hidden_states)
        attended = self._attend_packed(packed, image_rotary_emb)
        if single:
            return torch.cat(attended, dim=1)
        *streams, hidden_states = attended
        return attn.to_out[1](attn.to_out[0](hidden_states)), attn.to_add_out(torch.cat(streams, dim=1))

    def _two_streams_doubled(self, attn, image, text, attention_mask, rotary) -> tuple[Tensor, Tensor]:
        self._count()
        length, (image, text) = text.shape[1], self._project_each(attn, image, text)
        if rotary is not None:
            text, image = _turned(text, [x[:length] for x in rotary]), _turned(image, [x[length:] for x in rotary])
        text, image = self._attend_doubled(image, text)
        return attn.to_out[1](attn.to_out[0](image)), attn.to_add_out(text)

    def _one_stream_doubled(self, attn, whole, _, attention_mask, rotary) -> Tensor:
        length, (rows, tokens, _) = self.encoder_hidden_states_length, whole.shape
        if rows % 2 or tokens < length or attention_mask is not None:
            raise ValueError(
                f"{type(self).__name__}: with encoder_hidden_states_length {length}, hidden_states must have an even batch "
                f"([positive; negative]) of at least {length} tokens, and attention_mask be None, got {tuple(whole.shape)}"
                + ("" if attention_mask is None else " and a mask")
            )
        self._count()
        out = plain_attention(*_turned(self._project(attn, whole, None), rotary)).flatten(2)
        positive, negative = out[:, length:].chunk(2)
        steered = guidance(positive, negative, *self._settings_for(positive, slice(0, rows // 2)))
        return torch.cat([out[:, :length], torch.cat([steered, steered])], dim=1)

    def _project(self, attn: FluxAttention, image: Tensor, text: Tensor | None) -> Projected:
        """Query, key and value of the whole sequence, text first."""
        image, text = self._project_each(attn, image, text)
        return image if text is None else tuple(torch.cat(pair, dim=1) for pair in zip(text, image, strict=True))

    def _project_each(
        self, attn: FluxAttention, image: Tensor, text: Tensor | None
    ) -> tuple[Projected, Projected | None]:
        fused = attn.fused_projections
        own = attn.to_qkv(image).chunk(3, dim=-1) if fused else (attn.to_q(image), attn.to_k(image), attn.to_v(image))
        query, key, value = (heads(attn, x) for x in own)
        own = attn.norm_q(query), attn.norm_k(key), value
        if text is None:
            return own, None
        projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        added = attn.to_added_qkv(text).chunk(3, dim=-1) if fused else [project(text) for project in projections]
        query, key, value = (heads(attn, x) for x in added)
        return own, (attn.norm_added_q(query), attn.norm_added_k(key), value)


class NAGQwenDoubleStreamAttnProcessor2_0(JointAttentionProcessor):
    """Guided attention for Qwen-Image, in the place of `QwenDoubleStreamAttnProcessor2_0`; the texts may have masks.

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
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        encoder_hidden_states_mask: Tensor | None = None, attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        call = (hidden_states, encoder_hidden_states, encoder_hidden_states_mask, attention_mask, image_rotary_emb)
        if encoder_hidden_states is None:
            return self._plain(attn, *call)
        self._check_joint(hidden_states, encoder_hidden_states, attention_mask)
        if self.text is None:
            return self._plain(attn, *call)
        if encoder_hidden_states_mask is not None and self.text.mask_positive is None:
            raise ValueError(f"{type(self).__name__}: the masks of both texts must be given in PackedText")
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
            text_turns = torch.cat([turns[: self.text.length_positive], turns[: self.text.length_negative]])
            for stream, turn in ((image, image_turns), (text, text_turns)):
                stream[:2] = (apply_rotary_emb_qwen(x, turn, use_real=False) for x in stream[:2])
        *streams, hidden_states = self._attend(tuple(image), tuple(text))
        for layer in attn.to_out:
            hidden_states = layer(hidden_states)
        return hidden_states, attn.to_add_out(torch.cat(streams, dim=1))
