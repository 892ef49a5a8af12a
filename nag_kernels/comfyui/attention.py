# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""A guided layer: the attention function of ComfyUI's core, replaced for the one call that sees both prompts.

A hook at the entrance of each layer that sees the prompt puts `optimized_attention_override` into the `transformer_options`
of this layer alone. So a layer is known by itself, and never by the number of its tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from nag_kernels import fused_guided_attention
from nag_kernels.text_parts import in_parts, of_each_text

from .packing import TITLE, Packed

OVERRIDE = "optimized_attention_override"
Plain = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # query, key, value, bias on the logits [B, 1, 1, T]


@dataclass(frozen=True)
class Kind:
    """How the layers of a family see the prompt.

    joint: prompt and image are one sequence. Else: cross-attention.
    call: which of the layer's calls of attention sees the prompt, counted from 0.
    before: whether the calls before it see the prompt too, given the arguments of the layer; they are not guided.
    """

    joint: bool
    call: Callable[[Module], int] = lambda layer: 0
    before: Callable[[dict[str, Any]], bool] = lambda arguments: False


def entrance(packed: Packed, kind: Kind, index: int, name: str) -> Callable[..., Any]:
    """The hook for the entrance of a layer: it gives the layer's own call of attention to `_Layer.attend`."""

    def enter(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        packed.entered.add(index)
        if kind.joint:
            _check_text(packed, name, kwargs)
        options = kwargs.get("transformer_options") or {}
        layer = _Layer(packed, kind, index, name, options.get(OVERRIDE), kind.call(module), kind.before(kwargs))
        return args, kwargs | {"transformer_options": options | {OVERRIDE: layer.attend}}

    return enter


def _check_text(packed: Packed, name: str, arguments: dict[str, Any]) -> None:
    """For layers that get the text apart from the image; of a joined sequence the number of tokens says nothing of either."""
    text = next((arguments[x] for x in ("txt", "encoder_hidden_states") if isinstance(arguments.get(x), Tensor)), None)
    if text is not None and text.shape[1] != sum(packed.lengths):
        lengths = " + ".join(str(x) for x in packed.lengths)
        raise ValueError(
            f"{TITLE}: {name} got {text.shape[1]} tokens of text, where those of the prompt and of the negative are {lengths}. "
            "Another node changes them inside the model (a style reference, say); remove it, or do without this node"
        )


class _Layer:
    """One call of a layer. previous: the override that another node has put there, or None.  call, before: as in `Kind`."""

    def __init__(
        self, packed: Packed, kind: Kind, index: int, name: str, previous: Any, call: int = 0, before: bool = False
    ):
        self.packed, self.kind, self.index, self.name = packed, kind, index, name
        self.previous, self.calls_to_come, self.before = previous, call, before

    def attend(self, function: Any, query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None,
               attn_precision: Any = None, skip_reshape: bool = False, skip_output_reshape: bool = False,
               **options: Any) -> Tensor:  # fmt: skip
        """As `optimized_attention`, which this stands for; `function` is what the core would have called."""

        def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
            call = (function, query, key, value, heads) if self.previous else (query, key, value, heads)
            return (self.previous or function)(
                *call, mask=mask, attn_precision=attn_precision, skip_reshape=skip_reshape,
                skip_output_reshape=skip_output_reshape, **options,
            )  # fmt: skip

        self.calls_to_come -= 1
        dim = 2 if skip_reshape else 1
        if self.calls_to_come >= 0 and self.before:
            (key, _, _), (value, _, _) = self._split(key, dim), self._split(value, dim)
        if self.calls_to_come != -1:
            return plain(query, key, value, mask)
        if mask is not None and self.packed.mask_positive is None:
            raise ValueError(
                f"{TITLE}: {self.name} got an attention mask {list(mask.shape)}, which cannot be split between the prompt and "
                "the negative. Remove the node that weighs attention by a mask"
            )
        self._check(query, key, dim)
        if self.kind.joint:
            pieces = self._joint(plain, query, key, value, heads, dim, options.get("scale"))
            order = self._order(pieces)
            return torch.cat(order, dim=2 if skip_output_reshape else 1)
        if not self.packed.chooses(self.index):
            (key, _, _), (value, _, _) = self._split(key, dim), self._split(value, dim)
            self.packed.guided.add(self.index)
            return plain(query, key, value, _bias(self.packed.mask_positive, 0, query.dtype))
        size = query.shape[-1] if skip_reshape else query.shape[-1] // heads
        query, key, value = (_apart(x, size, skip_reshape) for x in (query, key, value))
        out = self.guided(query, key, value, options.get("scale"))
        return out.transpose(1, 2) if skip_output_reshape else out.flatten(2)

    def _check(self, query: Tensor, key: Tensor, dim: int) -> None:
        text, tokens = sum(self.packed.lengths), key.shape[dim]
        if (tokens <= text or query.shape[dim] != tokens) if self.kind.joint else tokens != text:
            lengths = " + ".join(str(x) for x in self.packed.lengths)
            raise ValueError(
                f"{TITLE}: {self.name} attends to {tokens} tokens, where those of the prompt and of the negative are {lengths}"
                f"{' and the image comes in addition' if self.kind.joint else ''}. Another node changes them inside the model; "
                "remove it, or do without this node"
            )
        if self.packed.steered is not None and query.shape[0] != self.packed.steered.shape[0]:
            raise ValueError(
                f"{TITLE}: {self.name} has {query.shape[0]} rows, expected {self.packed.steered.shape[0]}: another node changes "
                "the batch inside the model; remove it, or do without this node"
            )

    def _split(self, x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """text+, text- and image (of no tokens in cross-attention) of the tokens along `dim`."""
        tokens = sum(self.packed.lengths)
        image = x.shape[dim] - tokens
        if self.packed.image_first:
            picture, texts = x.split([image, tokens], dim=dim)
        else:
            texts, picture = x.split([tokens, image], dim=dim)
        return *of_each_text(texts, self.packed.parts, dim), picture

    def _order(self, pieces: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        """The inverse of `_split`, in a list to be concatenated."""
        dim = 1 if pieces[0].ndim == 3 else 2
        positive, negative, image = pieces
        order = in_parts(positive, negative, self.packed.parts, dim)
        return [image, *order] if self.packed.image_first else [*order, image]

    def _joint(self, plain: Plain, query: Tensor, key: Tensor, value: Tensor, heads: int, dim: int,
               scale: float | None) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Attention of text+ and text- to the image and themselves, and of the image, guided."""
        queries, keys, values = (self._split(x, dim) for x in (query, key, value))
        image = keys[2].shape[dim]
        masks = (self.packed.mask_positive, self.packed.mask_negative)

        def beside(which: int, query: Tensor) -> Tensor:
            """Plain attention of `query` to one text and the image."""
            key, value = (torch.cat([x[which], x[2]], dim=dim) for x in (keys, values))
            return plain(query, key, value, _bias(masks[which], image, query.dtype))

        if not self.packed.chooses(self.index):
            self.packed.guided.add(self.index)
            both = beside(0, torch.cat([queries[0], queries[2]], dim=dim))
            along = 1 if both.ndim == 3 else 2
            of_text, of_image = both.split([queries[0].shape[dim], image], dim=along)
            return of_text, beside(1, queries[1]), of_image
        of_text, skip = beside(0, queries[0]), dim == 2
        size = query.shape[-1] if skip else query.shape[-1] // heads
        key, value = (_apart(torch.cat(x[:2], dim=dim), size, skip) for x in (keys, values))
        shared = (_apart(keys[2], size, skip), _apart(values[2], size, skip))
        guided = self.guided(_apart(queries[2], size, skip), key, value, scale, shared)
        return of_text, beside(1, queries[1]), guided.transpose(1, 2) if of_text.ndim == 4 else guided.flatten(2)

    def guided(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None,
               shared: tuple[Tensor, Tensor] | None = None) -> Tensor:  # fmt: skip
        """The operation, [B, S, H, D]; key and value hold [text+ ; text-], or in cross-attention those of each part."""
        if shared is None:
            (kp, kn, _), (vp, vn, _) = self._split(key, 1), self._split(value, 1)
        else:
            (kp, kn), (vp, vn) = (x.split(self.packed.lengths, dim=1) for x in (key, value))
        positive, negative = self.packed.masks()
        out = fused_guided_attention(
            query, kp, vp, kn, vn, *self.packed.settings, key_shared=shared and shared[0], value_shared=shared and shared[1],
            mask_positive=positive, mask_negative=negative, softmax_scale=scale, rule=self.packed.guidance.rule,
        )  # fmt: skip
        self.packed.guided.add(self.index)
        return out


def _apart(x: Tensor, size: int, skip_reshape: bool) -> Tensor:
    """[B, T, H, D] of what a layer passes to attention: [B, H, T, D] with skip_reshape, else [B, T, H * D]."""
    if skip_reshape:
        return x.transpose(1, 2)
    return x if x.ndim == 4 else x.unflatten(-1, (-1, size))


def _bias(mask: Tensor | None, image: int, dtype: torch.dtype) -> Tensor | None:
    """A mask [B, T] of a text as the models of the core give it, [B, 1, 1, T + image]."""
    if mask is None:
        return None
    seen = torch.nn.functional.pad(mask, (0, image), value=True)
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[
        :, None, None
    ]


def beside_replacement(packed: Packed, index_of: Callable[[Any], int | None], replacement: Any, attention: Any) -> Any:
    """For a node that replaces the attention of a UNet to the prompt, as IP-Adapters do.

    What it adds to the attention to the prompt is added to the guided attention.
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
        index = index_of(options)
        if index is None:
            raise ValueError(
                f"{TITLE}: no layer is known at block {options.get('block')}, {options.get('block_index')}"
            )
        packed.entered.add(index)
        layer = _Layer(packed, Kind(joint=False), index, f"block {options['block']}", None)
        layer._check(query, key, 1)
        (kp, _, _), (vp, _, _) = layer._split(key, 1), layer._split(value, 1)
        theirs = replacement(query, kp, vp, options)
        if not packed.chooses(index):
            packed.guided.add(index)
            return theirs
        heads = options["n_heads"]
        ours = attention(query, kp, vp, heads, attn_precision=options.get("attn_precision"))
        query, key, value = (_apart(x, x.shape[-1] // heads, False) for x in (query, key, value))
        return theirs + layer.guided(query, key, value, None).flatten(2) - ours

    return attend
