# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Packing two texts along the sequence, [text+ ; text-], in the arguments of a denoiser call."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .families import Family
from .guided_processor import PackedText, not_plain, seen_tokens, whole_if_unseen
from .parallel import interleaved


class Packer:
    """Packs the recorded negative into the calls of one pipeline run, and tells the processors how the texts lie.

    family: of the denoiser.
    negative: its arguments as `record_negative` gives them.
    images: how many the run makes; a call has that many rows, or twice as many, [unconditional; conditional].
    halves: whether the run may do classifier-free guidance, which doubles the rows.
    pad: as in `guide`.
    text: what the processors share.
    mesh: the devices over which the text is split on its way through the model, or None.
    """

    def __init__(
        self,
        family: Family,
        negative: Mapping[str, Any],
        images: int,
        halves: bool,
        pad: bool,
        text: PackedText,
        mesh: Any = None,
    ):
        self.family, self.negative, self.images, self.pad, self.text = family, negative, images, pad, text
        self.halves, self.mesh = halves, mesh
        self.rows, self.device = 0, None  # of the latest call
        self._plain: list[Tensor] = []  # masks seen before: a look at the values waits for the device

    def pack(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The text arguments with both texts in them. Raises ValueError where they do not fit."""
        name, dim = next(iter(self.family.text.items()))
        positive = arguments.get(name)
        if not isinstance(positive, Tensor):
            raise ValueError(f"guide: the denoiser was called with {name} = {positive!r}, needed is a tensor")
        self.rows, self.device = positive.shape[0], positive.device
        if self.rows not in (self.images, 2 * self.images if self.halves else self.images):
            raise ValueError(
                f"guide: the denoiser was called with a batch of {self.rows} texts for {self.images} images; guidance "
                f"knows {self.images}, and {2 * self.images} for classifier-free guidance in one batch"
                + ("" if self.halves else ", which guidance_scale turns off in this call")
            )
        packed = {}
        along = {other: at % arguments[other].ndim for other, at in self.family.text.items()}
        for other in along:
            packed[other] = [arguments[other], self._rows_of(other, along[other], arguments[other])]
        seen = self._masks(arguments)
        if self.pad:
            for other in along:
                packed[other] = _lengthened(*packed[other], along[other])
            seen = self._levelled(positive.shape[dim], self._length(name, dim), seen)
        self.text.mask_positive, self.text.mask_negative = seen or (None, None)
        degree = 1 if self.mesh is None else self.mesh.size()
        self.text.length_positive, self.text.length_negative = (x.shape[dim] // degree for x in packed[name])
        packed = {other: interleaved(*packed[other], along[other], degree, other) for other in along}
        if seen is not None:
            # The model makes of it the bias that it always makes; our processors take the bool masks instead.
            packed |= {mask: interleaved(*seen, 1, degree, mask) for mask in self.family.masks}
        return packed

    def pooled(self, arguments: Mapping[str, Any]) -> Tensor:
        """The negative's pooled text with the rows of this call."""
        return self._rows_of(self.family.pooled, 1, arguments[self.family.pooled])

    def _length(self, name: str, dim: int) -> int:
        return self.negative[name].shape[dim]

    def _rows_of(self, name: str, dim: int, positive: Tensor) -> Tensor:
        """The recorded negative with the rows of this call."""
        negative = self.negative.get(name)
        if not isinstance(negative, Tensor):
            raise ValueError(f"guide: the pipeline gave no {name} for the negative, got {negative!r}")
        if dim > 0:
            if negative.shape[0] == 2 * self.images == 2 * self.rows:
                negative = negative[self.images :]  # classifier-free guidance ended on the way
            negative = self._for_each_image(negative)
            expected = (self.rows, *positive.shape[1:dim], negative.shape[dim], *positive.shape[dim + 1 :])
        else:
            expected = (negative.shape[0], *positive.shape[1:])
        if negative.shape != expected:
            raise ValueError(
                f"guide: {name} of the negative must be {expected} to go with the prompt's {tuple(positive.shape)}, "
                f"got {tuple(negative.shape)}"
            )
        return negative.to(positive)

    def _masks(self, arguments: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        for name in self.family.masks:
            positive, negative = arguments.get(name), self.negative.get(name)
            if positive is None and negative is None:
                continue
            # A pipeline may leave a mask out where all of a text is seen.
            text, dim = next(iter(self.family.text.items()))
            lengths = arguments[text].shape[dim], self._length(text, dim)
            seen = [
                torch.ones(self.rows, length, dtype=torch.bool, device=self.device) if mask is None else
                self._seen(name, mask) for mask, length in zip((positive, negative), lengths, strict=True)
            ]  # fmt: skip
            return seen[0], self._for_each_image(seen[1])[-self.rows :].to(seen[0].device)
        return None

    def _for_each_image(self, negative: Tensor) -> Tensor:
        """Some pipelines do not repeat ready-made text for each of a prompt's images."""
        rows = negative.shape[0]
        if 0 < rows < self.images and self.images % rows == 0:
            return negative.repeat_interleave(self.images // rows, dim=0)
        return negative

    def _seen(self, name: str, mask: Tensor) -> Tensor:
        if mask.ndim == 2:
            seen = mask == 1
            plain = (seen | (mask == 0)).all()
        else:
            seen, plain = seen_tokens("guide", mask)
        if not any(mask is x for x in self._plain):
            if not plain:
                raise ValueError(not_plain("guide", name))
            self._plain.append(mask)
        return whole_if_unseen(seen)

    def _levelled(self, positive: int, negative: int, seen: tuple[Tensor, Tensor] | None
                  ) -> tuple[Tensor, Tensor] | None:  # fmt: skip
        """Masks [B, max(positive, negative)] in which both texts of a row are as long as the longer one."""
        unconditional = self.rows - self.images
        if seen is None:
            if positive >= negative or not unconditional:
                return None  # all is seen
            if not self.family.masks:
                raise ValueError(
                    f"guide: pad cannot lengthen the prompt's {positive} tokens to the negative's {negative} under "
                    "classifier-free guidance: this model has no masks to keep the unconditional text as it is"
                )
            seen = tuple(torch.ones(self.rows, n, dtype=torch.bool, device=self.device) for n in (positive, negative))
        lengths = [x.sum(dim=1) for x in seen]
        for x, length in zip(seen, lengths, strict=True):
            if not torch.equal(x, torch.arange(x.shape[1], device=self.device) < length[:, None]):
                raise ValueError("guide: pad needs masks with the padding at the end of the text")
        longer = torch.maximum(*lengths)
        longer[:unconditional] = lengths[0][:unconditional]  # the unconditional text stays as it is
        levelled = torch.arange(max(positive, negative), device=self.device) < longer[:, None]
        return levelled, levelled


def _lengthened(positive: Tensor, negative: Tensor, dim: int) -> list[Tensor]:
    length = max(positive.shape[dim], negative.shape[dim])
    lengthened = []
    for x in (positive, negative):
        shape = list(x.shape)
        shape[dim] = length - shape[dim]
        lengthened.append(torch.cat([x, x.new_zeros(shape)], dim=dim))
    return lengthened
