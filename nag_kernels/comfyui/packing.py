# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Both prompts in the arguments of one denoiser call, and how they then lie in the sequence that the layers see."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

TITLE = "Negative Prompt in Attention"  # the node's name, with which its messages begin


@dataclass(frozen=True)
class Text:
    """An argument of the denoiser that holds embeddings of the prompt.

    dim: the dimension that the tokens lie along.
    mask: the argument that says which of them are attended to, [B, T] of whole numbers.
    times: how often in a row the layers see them.
    copied: it holds an image among the prompt's tokens; the negative gets a copy of it.
    """

    argument: str
    dim: int = 1
    mask: str = ""
    times: int = 1
    copied: bool = False


@dataclass(frozen=True)
class Guidance:
    """What the node was told. chosen: the indices of the layers to guide, None for all."""

    nag_scale: float
    nag_tau: float
    nag_alpha: float
    rule: str
    chosen: frozenset[int] | None = None


@dataclass
class Packed:
    """One guided call of the denoiser.

    parts: (tokens of text+, tokens of text-) for each text in the order in which the layers see them: they see
        [text+ ; text-] of the first, then of the second, and so on.
    mask_positive, mask_negative: bool [B, T], False is not attended to; None where all is.
    steered: bool [B], the rows to guide; None for all. The others belong to the unconditional branch.
    main: the index of the part that the argument c_crossattn holds.
    image_first: joint attention is over [image ; texts] instead of [texts ; image].
    entered, guided: the indices of the layers that were called, and of those in which guidance has acted.
    """

    guidance: Guidance
    parts: list[tuple[int, int]]
    steered: Tensor | None
    device: torch.device
    main: int = 0
    image_first: bool = False
    mask_positive: Tensor | None = None
    mask_negative: Tensor | None = None
    entered: set[int] = field(default_factory=set)
    guided: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        given = self.guidance
        values = (given.nag_scale, given.nag_tau, given.nag_alpha)
        scale, tau, alpha = (torch.full((), x, dtype=torch.float32, device=self.device) for x in values)
        if self.steered is not None:  # of the other rows the settings change nothing
            if given.rule == "nag":
                scale, tau = scale.where(self.steered, 1.0), tau.where(self.steered, math.inf)
            elif given.rule == "nasa":
                scale = scale.where(self.steered, 0.0)
        self.settings = scale, tau, alpha

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of text+ and of text-, in all parts together."""
        return sum(p for p, _ in self.parts), sum(n for _, n in self.parts)

    def masks(self) -> tuple[Tensor | None, Tensor | None]:
        """Of text+ and text- for the operation; under VSF, no scale of which leaves text- out, also which rows see it."""
        negative = self.mask_negative
        if self.steered is not None and self.guidance.rule == "vsf":
            rows = self.steered[:, None].expand(-1, self.lengths[1])
            negative = rows if negative is None else negative & rows
        return self.mask_positive, negative

    def chooses(self, layer: int) -> bool:
        return self.guidance.chosen is None or layer in self.guidance.chosen


def pack(
    texts: Sequence[Text], arguments: Mapping[str, Any], negative: Mapping[str, Tensor], guidance: Guidance,
    steered: Sequence[bool], batch: int, lengths: Sequence[int | None],
) -> tuple[dict[str, Any], Packed]:  # fmt: skip
    """The arguments of the denoiser with both prompts in them, and how they lie there.

    Args:
        arguments: those of the call, of len(steered) conditionings of `batch` rows each.
        negative: the same arguments of the negative conditioning, for one batch.
        steered: for each conditioning, whether it is guided.
        lengths: for each conditioning its number of tokens, None if unknown. ComfyUI repeats the tokens of the shorter
            where those of a batch differ.
    Raises: ValueError where the negative does not fit the prompt.
    """
    changed: dict[str, Any] = {}
    parts: list[tuple[int, int]] = []
    masks: list[tuple[Tensor | None, Tensor | None]] = []
    rows, device, main = 0, torch.device("cpu"), 0
    for text in texts:
        positive: Any = arguments.get(text.argument)
        other: Any = negative.get(text.argument)
        if text.copied:
            other = positive
        if positive is None and other is None:
            continue
        if other is not None and not text.copied:
            other = other.repeat(len(steered), *[1] * (other.ndim - 1))
        there: Any = other if positive is None else positive
        absent = there.narrow(text.dim, 0, 0)
        positive, other = absent if positive is None else positive, absent if other is None else other.to(there)
        rows, device = len(steered) * batch, positive.device
        if _without(other, text.dim) != _without(positive, text.dim):
            raise ValueError(
                f"{TITLE}: the negative's {text.argument} is {list(other.shape)} and the prompt's {list(positive.shape)}: they "
                f"must be alike but for dimension {text.dim}. Encode both with the CLIP that belongs to this model"
            )
        pair = positive.shape[text.dim], other.shape[text.dim]
        main = len(parts) if text.argument == "c_crossattn" else main
        changed[text.argument] = torch.cat([positive, other], dim=text.dim)
        parts += [pair] * text.times
        seen: tuple[Tensor | None, Tensor | None] = (None, None)
        if text.mask:
            whole = _mask(text.mask, arguments, rows, pair[0]), _mask(text.mask, negative, rows, pair[1])
            if whole[0] is not None or whole[1] is not None:
                like = whole[0] if whole[0] is not None else whole[1]
                ones = [torch.ones(rows, n, dtype=like.dtype, device=device) for n in pair]  # type: ignore[union-attr]
                filled = [one if x is None else x.to(device) for x, one in zip(whole, ones, strict=True)]
                changed[text.mask] = torch.cat(filled, dim=1)
                seen = filled[0] != 0, filled[1] != 0
        masks += [seen] * text.times
    if not any(n for _, n in parts):
        names = " or ".join(x.argument for x in texts if not x.copied)
        raise ValueError(
            f"{TITLE}: the negative has no tokens for this model ({names}). Connect the output of a text encode node"
        )
    which = None if all(steered) else torch.tensor(steered, device=device).repeat_interleave(batch)
    packed = Packed(guidance, parts, which, device, main)
    packed.mask_positive, packed.mask_negative = (
        _joined([x[i] for x in masks], [x[i] for x in parts], rows, device) for i in (0, 1)
    )
    if guidance.rule == "vsf" and len(parts) == 1:  # the others weigh a text by its share, which repeating keeps
        own = [parts[0][0] if n is None else min(n, parts[0][0]) for n in lengths]
        if any(n < parts[0][0] for n in own):
            ends = torch.tensor(own, device=device).repeat_interleave(batch)
            first = torch.arange(parts[0][0], device=device) < ends[:, None]
            packed.mask_positive = first if packed.mask_positive is None else packed.mask_positive & first
    return changed, packed


def _without(x: Tensor, dim: int) -> tuple[int, ...]:
    """The shape but for one dimension."""
    return (*x.shape[:dim], *x.shape[dim + 1 :])


def _mask(name: str, arguments: Mapping[str, Any], rows: int, length: int) -> Tensor | None:
    mask = arguments.get(name)
    if mask is None:
        return None
    if mask.is_floating_point() or mask.ndim != 2 or mask.shape[1] != length or rows % mask.shape[0]:
        raise ValueError(
            f"{TITLE}: {name} must be [batch, {length}] of whole numbers (1 = attended to), got {list(mask.shape)} of "
            f"{str(mask.dtype).removeprefix('torch.')}. Remove the node that weighs attention by a mask"
        )
    return mask.repeat(rows // mask.shape[0], 1)


def _joined(masks: list[Tensor | None], lengths: list[int], rows: int, device: torch.device) -> Tensor | None:
    """One mask for all parts, None if nothing is masked."""
    if all(x is None for x in masks):
        return None
    ones = [torch.ones(rows, n, dtype=torch.bool, device=device) for n in lengths]
    return torch.cat([one if x is None else x for x, one in zip(masks, ones, strict=True)], dim=1)
