# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Guided joint attention: image and prompts in one sequence, one guided call for the image."""

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from nag_kernels import fused_guided_attention

from .base import GuidedProcessor
from .distributed import PLAIN, gathered

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
        whole = turned(packed, rotary)
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


def turned(projected: Projected, rotary: tuple[Tensor, Tensor] | None) -> Projected:
    """Query and key by their positions."""
    query, key, value = projected
    if rotary is None:
        return projected
    return *(apply_rotary_emb(x, rotary, sequence_dim=1) for x in (query, key)), value


def plain_attention(query: Tensor, key: Tensor, value: Tensor, **options: Tensor | None) -> Tensor:
    return fused_guided_attention(query, key, value, key[:, :0], value[:, :0], *PLAIN, **options)
