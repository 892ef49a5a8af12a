# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Drop-in attention processors: diffusers' own, with a second, negative text and one fused call.

Where there is no negative text, or nag_scale is 1 (and nag_tau at least 1), both give what the processor that they replace gives.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    JointAttnProcessor2_0,
)
from torch import Tensor

from nag_kernels import fused_guided_attention
from nag_kernels._ops import check_scalars

MASKED = -9000.0  # diffusers writes "not seen" as a bias of -10000, others as the lowest number or -inf


@dataclass(eq=False)
class PackedText:
    """What the processors of one denoiser share: how text+ and text- lie in the sequence [text+ ; text-].

    length_positive, length_negative: tokens of each text, as the attention layers see them.
    mask_positive, mask_negative: bool [B, T], False is not seen; None where all is seen. Cross-attention only.
    nag_scale, nag_tau, nag_alpha: float32 tensors [] or [B] on the model's device, one value per sample; None
        for those of the processor itself.
    rule: "nag" or "nasa".
    """

    length_positive: int = 0
    length_negative: int = 0
    mask_positive: Tensor | None = None
    mask_negative: Tensor | None = None
    nag_scale: Tensor | None = None
    nag_tau: Tensor | None = None
    nag_alpha: Tensor | None = None
    rule: str = "nag"


def seen_tokens(where: str, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(seen, plain): which tokens a mask lets through, bool [B, T], and whether it is plain yes or no, bool [].

    mask: diffusers' additive bias [B, 1, T] or [B, T] (0 = seen, -9000 or less = not seen), or the same as bool
        (True = seen).
    Raises ValueError for any other shape.
    """
    if mask.ndim == 3 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim != 2:
        raise ValueError(f"{where}: attention_mask must be [B, 1, T] (one for all queries), got {tuple(mask.shape)}")
    if mask.dtype == torch.bool:
        return mask, torch.ones((), dtype=torch.bool, device=mask.device)
    seen = mask == 0
    return seen, (seen | (mask <= MASKED)).all()


def whole_if_unseen(seen: Tensor) -> Tensor:
    """A text of which no token is seen is seen whole, [B, T]: a bias that is alike everywhere changes nothing."""
    return seen | ~seen.any(dim=1, keepdim=True)


def not_plain(where: str, name: str) -> str:
    return (
        f"{where}: {name} must be plain yes or no (0 and {MASKED:g} or less as a bias, 1 and 0 or bool as a mask): "
        "guided attention masks tokens, it does not weigh them"
    )


class _GuidedProcessor:
    def __init__(self, nag_scale: float, nag_tau: float, nag_alpha: float, text: PackedText | None):
        self.text = text
        self.text_calls: int | None = None  # guided calls since it was set to 0; not counted while None
        self._settings = torch.zeros(3)
        self._set(nag_scale, nag_tau, nag_alpha)

    def _set(self, *values: float) -> None:
        check_scalars(type(self).__name__, *values)
        self._values = values
        # A tensor, so that a compiled model follows a change without being compiled again.
        with torch.inference_mode(False):  # a training step may save it for its gradient later
            self._settings = torch.tensor(values, dtype=torch.float32, device=self._settings.device)

    @property
    def nag_scale(self) -> float:
        return self._values[0]

    @nag_scale.setter
    def nag_scale(self, value: float) -> None:
        self._set(value, *self._values[1:])

    @property
    def nag_tau(self) -> float:
        return self._values[1]

    @nag_tau.setter
    def nag_tau(self, value: float) -> None:
        self._set(self._values[0], value, self._values[2])

    @property
    def nag_alpha(self) -> float:
        return self._values[2]

    @nag_alpha.setter
    def nag_alpha(self, value: float) -> None:
        self._set(*self._values[:2], value)

    def _settings_for(self, query: Tensor, unconditional: int) -> tuple[Tensor, Tensor, Tensor]:
        """The three settings, [] or [B]; the first rows may be unconditional: these keep their plain attention."""
        if self.text is not None and self.text.nag_scale is not None:
            return self.text.nag_scale, self.text.nag_tau, self.text.nag_alpha
        if self._settings.device != query.device:
            with torch.inference_mode(False):
                self._settings = self._settings.to(query.device)
        scale, tau, alpha = self._settings.unbind()
        if unconditional:
            steered = torch.arange(query.shape[0], device=query.device) >= unconditional
            scale, tau = scale.where(steered, 1.0), tau.where(steered, math.inf)
        return scale, tau, alpha

    def _count(self) -> None:
        # Only for who sets it to 0 before every call: a compiled model is compiled for the value it finds here.
        if self.text_calls is not None:
            self.text_calls += 1

    def _check_packed(self, encoder_hidden_states: Tensor) -> None:
        expected = self.text.length_positive + self.text.length_negative
        if encoder_hidden_states.shape[1] != expected:
            raise ValueError(
                f"{type(self).__name__}: encoder_hidden_states must hold {self.text.length_positive} + "
                f"{self.text.length_negative} tokens [text+ ; text-], got {encoder_hidden_states.shape[1]}"
            )


def _heads(attn: Attention, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attn.heads, -1))  # [B, S, C] -> [B, S, H, D]


class NAGAttnProcessor2_0(_GuidedProcessor):
    """Guided cross-attention for diffusers' `Attention`, in the place of `AttnProcessor2_0` (UNets, PixArt).

        out = to_out(guidance(Z+, Z-)),  Z+- = softmax(Q K+-^T / sqrt(D)) V+-     in one call (arXiv 2505.21179)

    Args:
        nag_scale: 1 steers nothing; the paper's phi is nag_scale - 1.  nag_tau: the clip.  nag_alpha: the share
            of the guided output. All three may be set again at any time.
        text: how the texts are packed, shared by the processors of a model. With it, every call with
            encoder_hidden_states [B, T+ + T-, C] is guided. Without it the batch tells, as in the published
            code: with hidden_states [B, S, C], encoder_hidden_states of batch 2B is [positive; negative]; with
            hidden_states [2B, S, C] (classifier-free guidance), batch 3B is [unconditional; positive;
            negative], and the first B rows keep their plain attention; equal batches, or none, are plain
            attention.
    Masks: attention_mask as diffusers gives it, a bias [B, 1, T] for all of encoder_hidden_states, or bool.
    Raises: ValueError for a batch or length of encoder_hidden_states that is none of these, a mask that is not
        plain yes or no (RuntimeError from inside a compiled model), settings out of range.
    """

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.5,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain, self._plain_fused = AttnProcessor2_0(), FusedAttnProcessor2_0()

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        rows = hidden_states.shape[0]
        if encoder_hidden_states is None or (self.text is None and encoder_hidden_states.shape[0] == rows):
            plain = self._plain_fused if attn.fused_projections else self._plain
            return plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        negatives = rows if self.text is not None else self._negative_rows(rows, encoder_hidden_states.shape[0])
        if self.text is not None:
            self._check_packed(encoder_hidden_states)
        self._count()

        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        image_shape = hidden_states.shape
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        query = _heads(attn, attn.to_q(hidden_states))
        key, value = self._key_value(attn, encoder_hidden_states, rows)
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        key_positive, key_negative = self._split(key, rows)
        value_positive, value_negative = self._split(value, rows)
        mask_positive, mask_negative = self._masks(attention_mask, encoder_hidden_states, rows)

        hidden_states = fused_guided_attention(
            query, key_positive, value_positive, key_negative, value_negative,
            *self._settings_for(query, rows - negatives), mask_positive=mask_positive, mask_negative=mask_negative,
            rule="nag" if self.text is None else self.text.rule,
        ).flatten(2)  # fmt: skip
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if len(image_shape) == 4:
            hidden_states = hidden_states.transpose(-1, -2).reshape(image_shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor

    def _negative_rows(self, rows: int, text_rows: int) -> int:
        if text_rows == 2 * rows:
            return rows
        if 2 * text_rows == 3 * rows:
            return rows // 2
        raise ValueError(
            f"NAGAttnProcessor2_0: encoder_hidden_states must have batch {rows} (no negative), {2 * rows} ([positive; "
            f"negative]) or, under classifier-free guidance, {rows * 3 // 2} ([unconditional; positive; negative]) for "
            f"hidden_states of batch {rows}, got {text_rows}"
        )

    def _split(self, x: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        if self.text is not None:
            return x.split((self.text.length_positive, self.text.length_negative), dim=1)
        positive, negative = x[:rows], x[rows:]
        unconditional = rows - negative.shape[0]
        if unconditional:  # these rows have no negative; their settings make any text here a plain attention
            negative = torch.cat([positive[:unconditional], negative])
        return positive, negative

    def _key_value(self, attn: Attention, text: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        if attn.norm_cross is not None:
            if self.text is not None:  # apart: a group norm runs over the sequence
                text = torch.cat([attn.norm_encoder_hidden_states(x) for x in self._split(text, rows)], dim=1)
            else:
                text = attn.norm_encoder_hidden_states(text)
        key, value = attn.to_kv(text).chunk(2, dim=-1) if attn.fused_projections else (attn.to_k(text), attn.to_v(text))
        return _heads(attn, key), _heads(attn, value)

    def _masks(self, attention_mask: Tensor | None, text: Tensor, rows: int) -> tuple[Tensor | None, Tensor | None]:
        if self.text is not None and self.text.mask_positive is not None:
            return self.text.mask_positive, self.text.mask_negative
        if attention_mask is None:
            return None, None
        seen, plain = seen_tokens("NAGAttnProcessor2_0", attention_mask)
        if seen.shape != text.shape[:2]:
            raise ValueError(
                f"NAGAttnProcessor2_0: attention_mask must be [{text.shape[0]}, 1, {text.shape[1]}] like "
                f"encoder_hidden_states, got {tuple(attention_mask.shape)}"
            )
        message = not_plain("NAGAttnProcessor2_0", "attention_mask")
        if torch.compiler.is_compiling():
            torch._assert_async(plain, message)  # a compiled graph cannot branch on a value
        elif not plain:
            raise ValueError(message)
        positive, negative = self._split(seen, rows)
        if attention_mask.dtype != torch.bool:
            positive, negative = whole_if_unseen(positive), whole_if_unseen(negative)
        return positive, negative


class NAGJointAttnProcessor2_0(_GuidedProcessor):
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
        self._check(attn, hidden_states, encoder_hidden_states, attention_mask)
        if self.text is None:
            return self._plain(attn, hidden_states, encoder_hidden_states)
        self._count()

        query, key, value = (_heads(attn, p(hidden_states)) for p in (attn.to_q, attn.to_k, attn.to_v))
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text_query, text_key, text_value = (_heads(attn, p(encoder_hidden_states)) for p in projections)
        if attn.norm_added_q is not None:
            text_query = attn.norm_added_q(text_query)
        if attn.norm_added_k is not None:
            text_key = attn.norm_added_k(text_key)
        lengths = (self.text.length_positive, self.text.length_negative)
        texts = list(zip(*(x.split(lengths, dim=1) for x in (text_query, text_key, text_value)), strict=True))

        streams = [
            F.scaled_dot_product_attention(
                q.transpose(1, 2), torch.cat([key, k], dim=1).transpose(1, 2),
                torch.cat([value, v], dim=1).transpose(1, 2),
            ).transpose(1, 2).flatten(2)
            for q, k, v in texts
        ]  # fmt: skip
        encoder_hidden_states = torch.cat(streams, dim=1)
        (_, key_positive, value_positive), (_, key_negative, value_negative) = texts
        hidden_states = fused_guided_attention(
            query, key_positive, value_positive, key_negative, value_negative, *self._settings_for(query, 0),
            key_shared=key, value_shared=value, rule=self.text.rule,
        ).flatten(2)  # fmt: skip
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if not attn.context_pre_only:
            encoder_hidden_states = attn.to_add_out(encoder_hidden_states)
        return hidden_states, encoder_hidden_states

    def _check(self, attn: Attention, image: Tensor, text: Tensor, attention_mask: Tensor | None) -> None:
        where = "NAGJointAttnProcessor2_0"
        if attn.fused_projections:
            raise ValueError(f"{where}: fused projections are not supported; call unfuse_qkv_projections() first")
        if attention_mask is not None:
            raise ValueError(f"{where}: attention_mask must be None (joint attention of SD3 has no masks)")
        if text.shape[0] != image.shape[0]:
            raise ValueError(
                f"{where}: encoder_hidden_states must have batch {image.shape[0]} like hidden_states, got "
                f"{text.shape[0]}: pack a negative text along the sequence, [text+ ; text-], and say the lengths in "
                "PackedText"
            )
        if self.text is not None:
            if self.text.mask_positive is not None or self.text.mask_negative is not None:
                raise ValueError(f"{where}: PackedText.mask_positive and mask_negative must be None (SD3 has no masks)")
            self._check_packed(text)
