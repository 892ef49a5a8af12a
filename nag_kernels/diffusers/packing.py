# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Packing two texts along the sequence, [text+ ; text-], in the arguments of a denoiser call."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .attention.base import SharedText
from .attention.distributed import interleaved
from .attention.masks import not_plain, seen_tokens, whole_if_unseen
from .models.spec import ModelSpec

Pair = tuple[Tensor, Tensor]  # of the prompt and of the negative


class Packer:
    """Packs the negative into the calls of one pipeline run, and tells the processors how the texts lie.

    spec: of the denoiser.
    may_double: whether the run may do classifier-free guidance, which doubles the rows.
    pad: as in `guide`.
    shared: what it tells the processors.
    mesh: the devices over which the text is split on its way through the model, or None.
    """

    def __init__(
        self,
        spec: ModelSpec,
        may_double: bool,
        pad: bool,
        shared: SharedText,
        mesh: Any = None,
    ):
        self.spec, self.pad, self.shared = spec, pad, shared
        self.negative: Mapping[str, Any] = {}  # its arguments of forward, beside the running call's
        self.prompt_first = spec.prompt_first  # in a doubled batch
        self.images = 0  # of the running call, or their frames: its rows, or half of them
        self.prompts = 0  # of which they are made; 0 where that is not known
        self.may_double, self.mesh = may_double, mesh
        self.rows = 0  # of the latest call
        self.device: torch.device | None = None
        # Whether the negative has all prompts again and again, and this call each prompt's images together.
        self.in_turn = False
        self._plain: list[Tensor] = []  # masks seen before: a look at the values waits for the device

    def pack(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The text arguments with both texts in them. Raises ValueError where they do not fit."""
        return self.spec.pack(self, arguments)

    def pack_tensors(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`pack` for text in tensors, which nearly all models take."""
        name, dim = next(iter(self.spec.text.items()))
        positive = arguments.get(name)
        if not isinstance(positive, Tensor):
            raise ValueError(f"guide: the denoiser was called with {name} = {positive!r:.60}, needed is a tensor")
        self.set_rows(positive.shape[0] if dim else 1, positive.device)
        self._compare_order(name, positive, self.negative.get(name))
        if self.spec.dual_forward is not None:
            return {}
        packed: dict[str, Pair] = {}
        along: dict[str, int] = {}
        lists: dict[str, list[Tensor]] = {}
        for other, at in self.spec.text.items():
            if isinstance(arguments.get(other), (list, tuple)):  # a text for each layer of the model
                lists[other] = self._pairs(other, at, arguments[other])
            elif arguments.get(other) is not None:
                along[other] = at % arguments[other].ndim
                packed[other] = (
                    arguments[other],
                    self._rows_of(other, along[other], arguments[other], self.negative.get(other)),
                )
            elif self.negative.get(other) is not None:
                raise ValueError(f"guide: the pipeline gave {other} for the negative and none for the prompt")
        if self.spec.concatenated:
            return self._in_parts(arguments, packed, along)
        seen = self._masks(arguments)
        if self.pad and lists:
            raise ValueError(
                f"guide: pad is not possible for this model, which has a text for each layer ({', '.join(lists)})"
            )
        if self.pad:
            for other in along:
                packed[other] = _lengthened(*packed[other], along[other])
            seen = self._levelled(positive.shape[dim], self._length(name, dim), seen)
        mask_positive, mask_negative = map(self.spec.attended, seen) if seen else (None, None)
        unseen_bias = None
        if self.spec.masks_for_image:
            mask = look_up(arguments, self.spec.masks[0])
            unseen_bias = -1.0 if mask is not None and mask.dtype.is_floating_point else None
        degree = 1 if self.mesh is None else self.mesh.size()
        length_positive, length_negative = (x.shape[dim] // degree for x in packed[name])
        self.shared.change(
            length_positive=length_positive, length_negative=length_negative, mask_positive=mask_positive,
            mask_negative=mask_negative, unseen_bias=unseen_bias,
        )  # fmt: skip
        whole: dict[str, Any] = {other: interleaved(*packed[other], along[other], degree, other) for other in along}
        whole |= lists
        if seen is not None:
            # The model makes of it the bias that it always makes; our processors take the bool masks instead.
            masks = () if self.spec.masks_for_image else self.spec.masks
            whole |= {
                mask: seen[0].sum(dim=1) if _counts(arguments.get(mask)) else interleaved(*seen, 1, degree, mask)
                for mask in masks
            }
        if self.spec.masks_for_image:
            whole |= _without(arguments, self.spec.masks[0])
        return whole

    def pack_list(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """`pack` for a text that is a list with one tensor [T, C] for each row; their negatives follow."""
        name = next(iter(self.spec.text))
        positive, negative = arguments.get(name), self.negative.get(name)
        for texts in (positive, negative):
            if not isinstance(texts, (list, tuple)) or not all(isinstance(x, Tensor) and x.ndim == 2 for x in texts):
                raise ValueError(f"guide: {name} must be a list of tensors [T, C], got {texts!r:.60}")
        assert positive is not None
        assert negative is not None
        if self.pad:
            raise ValueError(
                f"guide: pad is not possible for this model: its {name} is a list of texts of their own length"
            )
        self.set_rows(len(positive), positive[0].device)
        if 0 < len(negative) < self.images and self.images % len(negative) == 0:
            negative = [x for x in negative for _ in range(self.images // len(negative))]
        # Classifier-free guidance may begin or end on the way. Its own texts are not steered, so any serve beside them.
        prompts = slice(self.images) if self.prompt_first else slice(self.images, None)
        if len(negative) == 2 * self.images:
            negative = negative[prompts]
        if len(positive) == 2 * self.images:
            both = list(positive)
            both[prompts] = negative
            negative = both
        if len(negative) != self.rows:
            raise ValueError(f"guide: {name} must have {self.images} texts for the negative, got {len(negative)}")
        return {name: [*positive, *(x.to(positive[0]) for x in negative)]}

    def pooled(self, arguments: Mapping[str, Any]) -> Tensor:
        """The negative's pooled text with the rows of this call."""
        name = self.spec.pooled
        return self._rows_of(name, 1, arguments[name], self.negative.get(name))

    def _pairs(self, name: str, at: int, positive: list[Tensor]) -> list[Tensor]:
        negative = self.negative.get(name) or []
        if len(negative) != len(positive):
            raise ValueError(f"guide: {name} must have {len(positive)} texts for the negative, got {len(negative)}")
        pairs = zip(positive, negative, strict=True)
        return [torch.cat([x, self._rows_of(name, at % x.ndim, x, y)], dim=at % x.ndim) for x, y in pairs]

    def _in_parts(self, arguments: Mapping[str, Any], packed: dict[str, Pair], along: Mapping[str, int]
                  ) -> dict[str, Any]:  # fmt: skip
        """Several texts that attention has one after another; their masks stand in `PackedText` alone."""
        if self.pad:
            raise ValueError("guide: pad is not possible for this model, which puts several texts one after another")
        parts: list[tuple[int, int]] = []
        seen: list[Pair] = []
        masks: dict[str, Tensor] = {}
        for name, mask in self.spec.concatenated:
            if name not in self.spec.text:
                packed |= self._image(name, arguments.get(name), parts, seen)
                continue
            if name not in packed:
                continue
            positive, negative = packed[name]
            parts.append((positive.shape[along[name]], negative.shape[along[name]]))
            if mask is not None:
                seen.append(self._pair_of_masks(mask, arguments.get(mask), self.negative.get(mask), parts[-1]))
                like = arguments.get(mask)
                masks[mask] = torch.ones(
                    self.rows, sum(parts[-1]), device=self.device, dtype=getattr(like, "dtype", None)
                )
        length_positive, length_negative = (sum(lengths) for lengths in zip(*parts, strict=True))
        mask_positive, mask_negative = [torch.cat(x, dim=1) for x in zip(*seen, strict=True)] or (None, None)
        self.shared.change(
            parts=tuple(parts), length_positive=length_positive, length_negative=length_negative,
            mask_positive=mask_positive, mask_negative=mask_negative,
        )  # fmt: skip
        return {name: torch.cat(pair, dim=along.get(name, 1)) for name, pair in packed.items()} | masks

    def set_rows(self, rows: int, device: torch.device) -> None:
        self.rows, self.device = rows, device
        most = self.spec.cfg_rows if self.may_double else 1
        if self.rows not in [n * self.images for n in range(1, most + 1)]:
            raise ValueError(
                f"guide: the denoiser was called with a batch of {self.rows} texts for {self.images} images; guidance "
                f"knows {self.images}, and {self.spec.cfg_rows * self.images} for classifier-free guidance in one batch"
                + ("" if self.may_double else ", which guidance_scale turns off in this call")
            )

    def negative_for(self, name: str, positive: Any) -> Any:
        """An argument of the negative as it is, with the rows of this call."""
        negative = self.negative.get(name)
        if not isinstance(negative, Tensor) or not isinstance(positive, Tensor):
            return negative
        if 0 in self.spec.text.values():  # there are no rows
            return negative.to(positive.device)
        if len(negative) != len(positive) or self.in_turn:
            negative = self._with_rows(negative)
        if len(negative) != len(positive):
            raise ValueError(f"guide: {name} of the negative must have batch {len(positive)}, got {len(negative)}")
        return negative.to(positive.device)

    def _length(self, name: str, dim: int) -> int:
        return self.negative[name].shape[dim]

    def _image(self, name: str, image: Tensor | None, parts: list[tuple[int, int]], seen: list[Pair]
               ) -> dict[str, Pair]:  # fmt: skip
        """An image among the texts, [B, T, C]: each text has its own, as it changes with the text from layer to layer."""
        if image is None:
            return {}
        hidden = self.spec.hides(image)
        if not hidden and self.shared.packed.rule == "vsf":
            raise ValueError(
                f"guide: rule 'vsf' flips all values of the negative, and {name} puts an image among them, from which it would "
                "turn away as well; take 'nag' or 'nasa'"
            )
        place = len(parts) if hidden else 0
        lengths = (image.shape[1], 0 if hidden else image.shape[1])
        parts.insert(place, lengths)
        of_positive, of_negative = (
            torch.full((self.rows, n), not hidden, dtype=torch.bool, device=self.device) for n in lengths
        )
        seen.insert(place, (of_positive, of_negative))
        return {} if hidden else {name: (image, image)}

    def _rows_of(self, name: str, dim: int, positive: Tensor, negative: Any) -> Tensor:
        """The recorded negative with the rows of this call; they lie before the tokens, or come first of all."""
        if not isinstance(negative, Tensor):
            raise ValueError(f"guide: the pipeline gave no {name} for the negative, got {negative!r}")
        if dim > 0:
            at = dim - 1 if positive.shape[dim - 1] == self.rows else 0
            if negative.shape[at] != positive.shape[at] or self.in_turn:
                negative = self._with_rows(negative, at)
        expected = (*positive.shape[:dim], negative.shape[dim], *positive.shape[dim + 1 :])
        if negative.shape != expected:
            raise ValueError(
                f"guide: {name} of the negative must be {expected} to go with the prompt's {tuple(positive.shape)}, "
                f"got {tuple(negative.shape)}"
            )
        return negative.to(positive)

    def _masks(self, arguments: Mapping[str, Any]) -> Pair | None:
        for name in self.spec.masks:
            positive, negative = look_up(arguments, name), look_up(self.negative, name)
            for other in self.spec.masks:
                if look_up(arguments, other) is not positive or look_up(self.negative, other) is not negative:
                    raise ValueError(
                        f"guide: {other} must be the very mask that {name} is: texts are packed under one mask"
                    )
            if positive is None and negative is None:
                continue
            text, dim = next(iter(self.spec.text.items()))
            return self._pair_of_masks(name, positive, negative, (arguments[text].shape[dim], self._length(text, dim)))
        return None

    def _pair_of_masks(self, name: str, positive: Tensor | None, negative: Tensor | None, lengths: tuple[int, int]
                       ) -> Pair:  # fmt: skip
        # A pipeline may leave a mask out where all of a text is seen.
        seen = [
            torch.ones(self.rows, length, dtype=torch.bool, device=self.device) if mask is None else
            self._seen(name, mask, length) for mask, length in zip((positive, negative), lengths, strict=True)
        ]  # fmt: skip
        return seen[0], self._with_rows(seen[1]).to(seen[0].device)

    def _compare_order(self, name: str, positive: Tensor, negative: Any) -> None:
        """Some pipelines do not repeat ready-made text for each of a prompt's images. Its rows, doubled by classifier-free
        guidance, may be as many as the images, in another order."""
        own = positive[: self.images] if self.prompt_first else positive[-self.images :]
        self.in_turn = (
            1 < self.prompts < self.images
            and isinstance(negative, Tensor)
            and len(negative) > self.prompts
            and in_turn(negative, self.prompts)
            and not in_turn(own, self.prompts)
        )

    def _with_rows(self, negative: Tensor, dim: int = 0) -> Tensor:
        """The negative with the rows of this call. Classifier-free guidance may begin or end on the way."""
        if self.in_turn and negative.shape[dim] % self.prompts == 0:
            negative = negative.narrow(dim, 0, self.prompts)
        if negative.shape[dim] == 2 * self.images == 2 * self.rows:  # it has ended
            return negative.narrow(dim, 0 if self.prompt_first else self.images, self.images)
        rows = negative.shape[dim]
        if 0 < rows < self.images and self.images % rows == 0:
            # Some pipelines do not repeat ready-made text for each of a prompt's images.
            negative = negative.repeat_interleave(self.images // rows, dim=dim)
        if negative.shape[dim] == self.images and self.rows == 2 * self.images:  # it had not begun
            negative = torch.cat([negative, negative], dim=dim)  # its own rows are not steered: any text serves
        return negative

    def _seen(self, name: str, given: Tensor, length: int) -> Tensor:
        plain: bool | Tensor
        mask = given[:, 0, 0] if given.ndim == 4 and given.shape[1:3] == (1, 1) else given
        if _counts(given):
            seen, plain = torch.arange(length, device=given.device) < given[:, None], True
        elif mask.ndim == 2:
            seen = mask == 1
            plain = (seen | (mask == 0)).all()
        else:
            seen, plain = seen_tokens("guide", mask)
        if self.spec.masks_for_image:
            plain = plain & seen[:, length:].all()
            seen = seen[:, :length]
        # In an export there are no values to look at.
        if not torch.compiler.is_exporting() and not any(given is x for x in self._plain):
            if not plain:
                raise ValueError(not_plain("guide", name))
            self._plain.append(given)
        return seen if self.spec.hard_masks else whole_if_unseen(seen)

    def _levelled(self, positive: int, negative: int, seen: Pair | None
                  ) -> Pair | None:  # fmt: skip
        """Masks [B, max(positive, negative)] in which both texts of a row are as long as the longer one."""
        unconditional = self.rows - self.images
        if seen is None:
            if positive >= negative or not unconditional:
                return None  # all is seen
            if not self.spec.masks:
                raise ValueError(
                    f"guide: pad cannot lengthen the prompt's {positive} tokens to the negative's {negative} under "
                    "classifier-free guidance: this model has no masks to keep the unconditional text as it is"
                )
            seen = (
                torch.ones(self.rows, positive, dtype=torch.bool, device=self.device),
                torch.ones(self.rows, negative, dtype=torch.bool, device=self.device),
            )
        elif torch.compiler.is_exporting():
            raise ValueError(
                "guide: pad looks at the values of the masks, which there are none of in an export; leave pad out, and give "
                "texts of one length and their masks"
            )
        lengths = [x.sum(dim=1) for x in seen]
        for x, length in zip(seen, lengths, strict=True):
            if not torch.equal(x, torch.arange(x.shape[1], device=self.device) < length[:, None]):
                raise ValueError("guide: pad needs masks with the padding at the end of the text")
        longer = torch.maximum(*lengths)
        longer[:unconditional] = lengths[0][:unconditional]  # the unconditional text stays as it is
        levelled = torch.arange(max(positive, negative), device=self.device) < longer[:, None]
        return levelled, levelled


def in_turn(text: Tensor, prompts: int) -> bool:
    """Whether the rows are those of so many prompts, again and again."""
    if len(text) % prompts:
        return False
    rows = text.unflatten(0, (len(text) // prompts, prompts))
    return torch.equal(rows, rows[:1].expand_as(rows))


def look_up(arguments: Mapping[str, Any], name: str) -> Any:
    """An argument, or for "outer.inner" what it holds under a name."""
    outer, _, inner = name.partition(".")
    value = arguments.get(outer)
    return (value or {}).get(inner) if inner else value


def _counts(mask: Any) -> bool:
    """Whether a mask says no more than how many of a text's tokens are seen."""
    return isinstance(mask, Tensor) and mask.ndim == 1


def _without(arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    outer, _, inner = name.partition(".")
    value = arguments.get(outer)
    return {outer: {k: v for k, v in value.items() if k != inner} if inner and value is not None else None}


def _lengthened(positive: Tensor, negative: Tensor, dim: int) -> Pair:
    length = max(positive.shape[dim], negative.shape[dim])

    def filled(x: Tensor) -> Tensor:
        shape = list(x.shape)
        shape[dim] = length - shape[dim]
        return torch.cat([x, x.new_zeros(shape)], dim=dim)

    return filled(positive), filled(negative)
