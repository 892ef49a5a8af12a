# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Guided joint attention: image and prompts in one sequence, one guided call for the image."""

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from nag_kernels import fused_guided_attention

from .base import GuidedProcessor
from .distributed import PLAIN, gathered

Rotary = tuple[Tensor, Tensor]  # cosines and sines of the positions, each [S, D]
Projected = tuple[Tensor, Tensor, Tensor]  # query, key and value, each [B, S, H, D]


class JointAttentionProcessor(GuidedProcessor):
    """The image attends, guided, to [image | text+] and [image | text-]; each text to the image and itself."""

    _has_masks = False
    _takes_doubled_batch = False  # of the published transformers for SD3 and FLUX.1

    def _attend(self, image: Projected, text: Projected) -> tuple[Tensor, Tensor, Tensor]:
        """Attention of text+ [B, T+, C], of text- [B, T-, C] and, guided, of the image [B, S, C]."""
        query, key, value = image
        queries, keys, values = (x.split(self._lengths(), dim=1) for x in text)
        masks = (self._packed.mask_positive, self._packed.mask_negative)
        seen = [(key, value), *zip(keys, values, strict=True)]
        if self._packed.sequence_group is not None:
            seen = gathered(seen, self._packed.sequence_group)
        (key, value), positive, negative = seen
        guided = self._guided(
            query, positive, negative, self._settings_for(query, slice(0, query.shape[0])), masks, (key, value)
        )
        # Z+ of the same operation, without a negative: keys of the image and of the text need not be copied into one tensor.
        of_positive, of_negative = (
            plain_attention(q, k, v, key_shared=key, value_shared=value, mask_positive=mask)
            for q, (k, v), mask in zip(queries, (positive, negative), masks, strict=True)
        )
        return of_positive.flatten(2), of_negative.flatten(2), guided.flatten(2)

    def _attend_doubled(self, image: Projected, text: Projected) -> tuple[Tensor, Tensor]:
        """Attention of the text [T, L, C] in the published batch (`_steered_rows`) and, guided, of the image [R, S, C]."""
        query, key, value = image
        rows = query.shape[0]
        steered = self._steered_rows(rows, text[0].shape[0])
        keys, values = self._of_each_row(text[1], rows), self._of_each_row(text[2], rows)
        positive, negative = (keys[0], values[0]), (keys[1], values[1])
        settings = self._settings_for(query, steered)
        guided = self._guided(query, positive, negative, settings, (None, None), (key, value))
        key, value = (torch.cat([x, x[steered]]) for x in (key, value))  # each text sees the image of its own row
        stream = plain_attention(*text, key_shared=key, value_shared=value)
        return stream.flatten(2), guided.flatten(2)

    def _lengths(self) -> tuple[int, int]:
        return self._packed.lengths

    def _check_own_masks(self, attention_mask: Tensor | None) -> None:
        """The model's mask is made for one text: those of two are not to be found in it."""
        if attention_mask is not None and self._packed.mask_positive is None and self._packed.mask_negative is None:
            raise ValueError(f"{type(self).__name__}: the masks of both texts must be given in PackedText")

    def _attend_packed(self, packed: Projected, rotary: Rotary | None) -> tuple[Tensor, Tensor, Tensor]:
        """As `_attend`, from one sequence [text+ ; text- ; image] that `rotary` rotates."""
        length = sum(self._lengths())
        query, key, value = (x.split((length, x.shape[1] - length), dim=1) for x in rotated(packed, rotary))
        return self._attend((query[1], key[1], value[1]), (query[0], key[0], value[0]))

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
            masks = (self._packed.mask_positive, self._packed.mask_negative)
            if not self._has_masks and any(mask is not None for mask in masks):
                raise ValueError(
                    f"{where}: PackedText.mask_positive and mask_negative must be None (there are no masks)"
                )
            self._check_packed(text)


def rotated(projected: Projected, rotary: Rotary | None) -> Projected:
    """Query and key rotated by their positions."""
    query, key, value = projected
    if rotary is None:
        return projected
    rotate: Any = apply_rotary_emb  # whose own annotation has no pair
    return rotate(query, rotary, sequence_dim=1), rotate(key, rotary, sequence_dim=1), value


def plain_attention(
    query: Tensor, key: Tensor, value: Tensor, key_shared: Tensor | None = None, value_shared: Tensor | None = None,
    mask_positive: Tensor | None = None,
) -> Tensor:  # fmt: skip
    return fused_guided_attention(
        query, key, value, key[:, :0], value[:, :0], *PLAIN, key_shared=key_shared, value_shared=value_shared,
        mask_positive=mask_positive,
    )  # fmt: skip
