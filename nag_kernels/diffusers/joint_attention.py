# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Drop-in processors for joint attention: text and image in one sequence, two texts, one fused call for the image."""

import torch
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from diffusers.models.transformers.transformer_flux2 import (
    Flux2Attention,
    Flux2AttnProcessor,
    Flux2ParallelSelfAttention,
    Flux2ParallelSelfAttnProcessor,
)
from diffusers.models.transformers.transformer_qwenimage import QwenDoubleStreamAttnProcessor2_0, apply_rotary_emb_qwen
from torch import Tensor

from nag_kernels import fused_guided_attention

from .guided_processor import GuidedProcessor, PackedText, heads

PLAIN = (1.0, 1.0, 0.0)  # nag_scale, nag_tau, nag_alpha of attention as it is: Z+
Projected = tuple[Tensor, Tensor, Tensor]  # query, key and value, each [B, S, H, D]


class JointAttentionProcessor(GuidedProcessor):
    """The image attends, guided, to [image | text+] and [image | text-]; each text to the image and itself."""

    _has_masks = False

    def _attend(self, image: Projected, text: Projected) -> tuple[Tensor, Tensor, Tensor]:
        """Attention of text+ [B, T+, C], of text- [B, T-, C] and, guided, of the image [B, S, C]."""
        query, key, value = image
        texts = list(zip(*(x.split(self._lengths(), dim=1) for x in text), strict=True))
        masks = (self.text.mask_positive, self.text.mask_negative)
        (_, key_positive, value_positive), (_, key_negative, value_negative) = texts
        guided = fused_guided_attention(
            query, key_positive, value_positive, key_negative, value_negative, *self._settings_for(query, 0),
            key_shared=key, value_shared=value, **self._text_options(masks, key_negative.shape[1]),
        )  # fmt: skip
        # Z+ of the same operation, without a negative: keys of the image and of the text need not be copied into one tensor.
        streams = (
            fused_guided_attention(q, k, v, k[:, :0], v[:, :0], *PLAIN, key_shared=key, value_shared=value,
                                   mask_positive=mask)
            for (q, k, v), mask in zip(texts, masks, strict=True)
        )  # fmt: skip
        return tuple(x.flatten(2) for x in (*streams, guided))

    def _lengths(self) -> tuple[int, int]:
        return self.text.length_positive, self.text.length_negative

    def _check_own_masks(self, attention_mask: Tensor | None) -> None:
        """The model's mask is made for one text: those of two are not to be found in it."""
        if attention_mask is not None and self.text.mask_positive is None and self.text.mask_negative is None:
            raise ValueError(f"{type(self).__name__}: the masks of both texts must be given in PackedText")

    def _attend_packed(self, packed: Projected, rotary: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """As `_attend`, from one sequence [text+ ; text- ; image] turned by `rotary`."""
        length = sum(self._lengths())
        query, key, value = packed
        if rotary is not None:
            query, key = (apply_rotary_emb(x, rotary, sequence_dim=1) for x in (query, key))
        text, image = zip(*(x.split((length, x.shape[1] - length), dim=1) for x in (query, key, value)), strict=True)
        return self._attend(image, text)

    def _check_joint(self, image: Tensor, text: Tensor, attention_mask: Tensor | None) -> None:
        where = type(self).__name__
        if attention_mask is not None:
            raise ValueError(f"{where}: attention_mask must be None (this joint attention has no masks)")
        if text.shape[0] != image.shape[0]:
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


class NAGJointAttnProcessor2_0(JointAttentionProcessor):
    """Guided joint attention for SD3 and SD3.5, in the place of `JointAttnProcessor2_0`; text is last.

        image:  guidance(Z+, Z-),  Z+- = softmax(Q [K_image | K+-]^T / sqrt(D)) [V_image | V+-]    in one call
        text+-: plain attention to [image | text+-]: each text keeps its own stream        (arXiv 2505.21179)

    Args:
        nag_scale, nag_tau, nag_alpha: as in `NAGAttnProcessor2_0`.
        text: how the texts are packed. With it, encoder_hidden_states [B, T+ + T-, C] is [text+ ; text-] and
            both streams come back packed; without it the layer is plain. The published doubled batch is
            refused: SD3's text norms are fed with an embedding of batch B, so it breaks before it gets here,
            and at batch 1 silently.
    Raises: ValueError for encoder_hidden_states of another batch or length, attention_mask or text masks (SD3
        has none), fused projections, settings out of range.
    """

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.125,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain = JointAttnProcessor2_0()

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        if encoder_hidden_states is None:
            return self._plain(attn, hidden_states)
        if attn.fused_projections:
            raise ValueError(
                f"{type(self).__name__}: fused projections are not supported; call unfuse_qkv_projections() first"
            )
        self._check_joint(hidden_states, encoder_hidden_states, attention_mask)
        if self.text is None:
            return self._plain(attn, hidden_states, encoder_hidden_states)
        self._count()

        query, key, value = (heads(attn, p(hidden_states)) for p in (attn.to_q, attn.to_k, attn.to_v))
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text_query, text_key, text_value = (heads(attn, p(encoder_hidden_states)) for p in projections)
        if attn.norm_added_q is not None:
            text_query = attn.norm_added_q(text_query)
        if attn.norm_added_k is not None:
            text_key = attn.norm_added_k(text_key)
        *streams, hidden_states = self._attend((query, key, value), (text_query, text_key, text_value))
        encoder_hidden_states = torch.cat(streams, dim=1)
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if not attn.context_pre_only:
            encoder_hidden_states = attn.to_add_out(encoder_hidden_states)
        return hidden_states, encoder_hidden_states


class NAGFluxAttnProcessor2_0(JointAttentionProcessor):
    """Guided attention for FLUX.1, in the place of `FluxAttnProcessor`: two-stream and single-stream blocks, text first.

        image:  guidance(Z+, Z-),  Z+- = softmax(Q [K_image | K+-]^T / sqrt(D)) [V_image | V+-]    in one call
        text+-: plain attention to [image | text+-]: each text keeps its own stream        (arXiv 2505.21179)

    Args:
        nag_scale, nag_tau, nag_alpha: as in `NAGAttnProcessor2_0`.
        text: how the texts are packed. With it, encoder_hidden_states [B, T+ + T-, C] is [text+ ; text-], or, in a
            single-stream block, hidden_states is [text+ ; text- ; image]; image_rotary_emb holds the positions of all
            of it. Without it the layer is plain. The published doubled batch is refused: it needs the published
            transformer, which runs the image twice in the single-stream blocks.
    Raises: ValueError for another batch or length, attention_mask or text masks, settings out of range.
    """

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain = FluxAttnProcessor()

    def __call__(
        self, attn: FluxAttention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        single = encoder_hidden_states is None
        if not single:
            self._check_joint(hidden_states, encoder_hidden_states, attention_mask)
        if self.text is None:
            return self._plain(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
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

    def _project(self, attn: FluxAttention, image: Tensor, text: Tensor | None) -> Projected:
        """Query, key and value of the whole sequence, text first."""
        fused = attn.fused_projections
        own = attn.to_qkv(image).chunk(3, dim=-1) if fused else (attn.to_q(image), attn.to_k(image), attn.to_v(image))
        query, key, value = (heads(attn, x) for x in own)
        query, key = attn.norm_q(query), attn.norm_k(key)
        if text is None:
            return query, key, value
        projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        added = attn.to_added_qkv(text).chunk(3, dim=-1) if fused else [project(text) for project in projections]
        text_query, text_key, text_value = (heads(attn, x) for x in added)
        pairs = (attn.norm_added_q(text_query), query), (attn.norm_added_k(text_key), key), (text_value, value)
        return tuple(torch.cat(pair, dim=1) for pair in pairs)


class NAGChromaAttnProcessor2_0(NAGFluxAttnProcessor2_0):
    """Guided attention for Chroma, in the place of `FluxAttnProcessor`; the texts may have masks.

    As `NAGFluxAttnProcessor2_0`. The masks stand in PackedText; the model is given none while its texts are packed. Where its
    masks are numbers, 1 and 0, it adds them to the logits of the tokens that are seen: so it draws, and so does this
    processor, with PackedText.unseen_bias = -1.
    """

    _has_masks = True

    def __call__(
        self, attn: FluxAttention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        call = (hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        if self.text is None and (encoder_hidden_states is None or len(encoder_hidden_states) == len(hidden_states)):
            return self._plain(attn, *call)
        return super().__call__(attn, *call)

    def _attend(self, image: Projected, text: Projected) -> tuple[Tensor, Tensor, Tensor]:
        bias = self.text.unseen_bias
        if bias is None or self.text.mask_positive is None:
            return super()._attend(image, text)
        # As one more channel: 1 in the queries of what is seen, the bias in the keys of what is not. Eight, as kernels like it.
        width = image[0].shape[-1]
        stretch = ((width + 8) / width) ** 0.5  # attention is scaled by the wider one
        seen = torch.cat([self.text.mask_positive, self.text.mask_negative], dim=1)[..., None, None].to(image[0])

        def widened(x, last):
            return torch.cat([x, x.new_zeros(*x.shape[:-1], 7), last.expand(*x.shape[:-1], 1)], dim=-1)

        masks, none = (self.text.mask_positive, self.text.mask_negative), image[0].new_zeros(1)
        queries = (widened(x * stretch, last * stretch) for x, last in ((image[0], none + 1), (text[0], seen)))
        keys = (widened(x, last) for x, last in ((image[1], none), (text[1], (1 - seen) * bias * width**0.5)))
        values = (widened(x, none) for x in (image[2], text[2]))
        self.text.mask_positive = self.text.mask_negative = None
        try:
            attended = super()._attend(*zip(queries, keys, values, strict=True))
        finally:
            self.text.mask_positive, self.text.mask_negative = masks
        return tuple(x.unflatten(-1, (-1, width + 8))[..., :width].flatten(-2) for x in attended)


class NAGFlux2AttnProcessor(NAGFluxAttnProcessor2_0):
    """Guided attention for the two-stream blocks of FLUX.2, in the place of `Flux2AttnProcessor`.

    As `NAGFluxAttnProcessor2_0`.
    """

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain = Flux2AttnProcessor()

    def __call__(
        self, attn: Flux2Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


class NAGFlux2ParallelSelfAttnProcessor(JointAttentionProcessor):
    """Guided attention for the single-stream blocks of FLUX.2, in the place of `Flux2ParallelSelfAttnProcessor`.

    One projection gives query, key, value and the feed-forward's input, one takes attention's and the feed-forward's output;
    between them attention is that of `NAGFluxAttnProcessor2_0` in a single-stream block, with its arguments and errors.
    """

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain = Flux2ParallelSelfAttnProcessor()

    def __call__(
        self, attn: Flux2ParallelSelfAttention, hidden_states: Tensor, attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        if self.text is None:
            return self._plain(attn, hidden_states, attention_mask, image_rotary_emb)
        length = sum(self._lengths())
        self._check_joint(hidden_states, hidden_states[:, :length], attention_mask)
        self._count()

        widths = (3 * attn.inner_dim, attn.mlp_hidden_dim * attn.mlp_mult_factor)
        attention, feed_forward = attn.to_qkv_mlp_proj(hidden_states).split(widths, dim=-1)
        query, key, value = (heads(attn, x) for x in attention.chunk(3, dim=-1))
        attended = self._attend_packed((attn.norm_q(query), attn.norm_k(key), value), image_rotary_emb)
        return attn.to_out(torch.cat([torch.cat(attended, dim=1), attn.mlp_act_fn(feed_forward)], dim=-1))


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
