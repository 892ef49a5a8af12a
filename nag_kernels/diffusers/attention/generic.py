# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The generic processor: a model's own attention processor, of which only the call of attention itself is replaced.

We copy the processor and give its `__call__` a private globals dict, in which `dispatch_attention_fn` and
`F.scaled_dot_product_attention` point at ours. So projections, norms, positions and gates are the model's own, nothing that
others see is changed, and a compiled model meets no hook.

`why_not_generic` checks before guidance is enabled what this assumes of a processor: it is one of diffusers' own classes of a
known name; its `__call__` is a plain function that calls attention itself, by one of these names, and closes over nothing. Each
call is checked as it comes: attention is not causal, has no dropout, the usual scale and one device, and happens once. Its mask
is ignored: `PackedText` says which tokens of the prompts are attended to.
"""

import copy
import dataclasses
import functools
import threading
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from nag_kernels.text_parts import Parts, in_parts, of_each_text

from .base import Masks, PackedText, SettingTensors, SharedText
from .joint import JointAttentionProcessor

NAMES = ("dispatch_attention_fn", "scaled_dot_product_attention")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the prompts lie in the attention of a model.

    text: "cross": the keys are [text+ ; text-]; "first": all is [text+ ; text- ; image]; "last": [image ; text+ ; text-];
        "keys": the queries are the image, the keys [text+ ; text- ; image]; "last keys": the keys [image ; text+ ; text-].
    stock: the names of the processors.
    masks: whether the model may give attention a mask of the prompts; `PackedText` has them and replaces it. Without it a
        mask is refused.
    by_frame: whether each frame of a video is a row of attention of its own: the frames of a row of the batch follow each other.
    attention: what guides a layer; a model whose layers differ has a class of its own in its file.
    """

    text: str
    stock: tuple[str, ...]
    masks: bool = False
    by_frame: bool = False
    attention: "type[GenericAttention] | None" = None  # None: GenericAttention


def why_not_generic(processor: Any, layout: Layout) -> str | None:
    """Why the attention call of this processor cannot be replaced, or None where it can."""
    cls = type(processor)
    if cls.__name__ not in layout.stock or not cls.__module__.startswith("diffusers."):
        return "which is not known"
    call = cls.__dict__.get("__call__")
    if isinstance(processor, Module) or not isinstance(call, types.FunctionType):
        return "whose __call__ is not a function of its own"
    if call.__closure__ or call.__code__.co_freevars:
        return "whose __call__ closes over other variables"
    if not set(NAMES) & set(call.__code__.co_names):
        return f"whose __call__ does not call {' or '.join(NAMES)} itself"
    return None


class GenericAttention(JointAttentionProcessor):
    """The attention of one layer, [B, S, H, D] as `dispatch_attention_fn` has it."""

    _has_masks = True

    def __init__(self, layout: Layout, text: PackedText | SharedText):
        super().__init__(1.0, 2.5, 0.25, text)
        self.layout = layout
        self._rows = 0  # of attention, where each frame is one

    def begin(self) -> None:
        """Called before each run of the layer's processor."""

    def _settings_for(self, query: Tensor, steered: slice) -> SettingTensors:
        scale, tau, alpha = super()._settings_for(query, steered)
        return self._for_frames(scale), self._for_frames(tau), self._for_frames(alpha)

    def _text_options(self, masks: Masks, length_negative: int) -> dict[str, Any]:
        options = super()._text_options(masks, length_negative)
        for name in ("mask_positive", "mask_negative"):
            options[name] = None if options[name] is None else self._for_frames(options[name])
        return options

    def _for_frames(self, x: Tensor) -> Tensor:
        """What holds for a row of the batch, for each row of attention."""
        if not self.layout.by_frame or not x.ndim:
            return x
        return x.repeat_interleave(self._rows // len(x), dim=0)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None and not self.layout.masks:
            raise ValueError("guide: this attention must have no mask, got one")
        return self._attend_once(query, key, value)

    def _attend_once(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """One call of attention: the only one that the layer's processor makes, unless a model overrides this."""
        self._count()
        if self.layout.by_frame:
            self._rows = len(query)
        return self._attend_sequence(query, key, value)

    def _attend_sequence(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        length, shape = sum(self._lengths()), (query.shape[2], value.shape[-1])
        if self.layout.text == "cross":
            if key.shape[1] != length:
                raise ValueError(f"guide: attention to the texts must have {length} keys, got {key.shape[1]}")
            return self._attend_to_texts(query, key, value)
        image, at_end = key.shape[1] - length, self.layout.text.startswith("last")
        if image <= 0:
            raise ValueError(
                f"guide: attention must have the texts' {length} tokens and the image's, got {key.shape[1]}"
            )
        sizes = (image, length) if at_end else (length, image)
        (first_key, last_key), (first_value, last_value) = key.split(sizes, dim=1), value.split(sizes, dim=1)
        if self.layout.text.endswith("keys"):
            of_texts, of_image = (first_key, first_value), (last_key, last_value)
            return self._attend_to_texts(query, *(of_image + of_texts if at_end else of_texts + of_image))
        if query.shape[1] != key.shape[1]:
            raise ValueError(
                f"guide: attention must have as many keys as queries, {query.shape[1]}, got {key.shape[1]}: keys of another "
                "image, from a cache, are not supported"
            )
        first_query, last_query = query.split(sizes, dim=1)
        first, last = (first_query, first_key, first_value), (last_query, last_key, last_value)
        own, (query, key, value) = (first, last) if at_end else (last, first)
        texts = (self._sorted(query), self._sorted(key), self._sorted(value))
        positive, negative, guided = self._attend(own, texts)
        streams = in_parts(positive, negative, self._parts())
        whole = [guided, *streams] if at_end else [*streams, guided]
        return torch.cat([x.unflatten(-1, shape) for x in whole], dim=1)

    def _masks(self) -> Masks:
        return self._packed.mask_positive, self._packed.mask_negative

    def _parts(self) -> Parts:
        return self._packed.parts or (self._lengths(),)

    def _sorted(self, x: Tensor) -> Tensor:
        """All that is of text+, and then all that is of text-."""
        return torch.cat(of_each_text(x, self._parts()), dim=1)

    def _attend_to_texts(self, query: Tensor, key: Tensor, value: Tensor, *shared: Tensor) -> Tensor:
        """shared: key and value of the image, where the keys hold it."""
        (key_positive, key_negative), (value_positive, value_negative) = (
            x.split(self._lengths(), dim=1) for x in (key, value)
        )
        masks = self._masks()
        settings = self._settings_for(query, slice(0, query.shape[0]))
        return self._guided(
            query,
            (key_positive, value_positive),
            (key_negative, value_negative),
            settings,
            masks,
            (shared[0], shared[1]) if shared else None,
        )


class _Site:
    """The layer whose processor is running."""

    attention: GenericAttention | None = None


class _ThreadSite(threading.local):
    attention: GenericAttention | None = None


_running, _traced = _ThreadSite(), _Site()


def _site() -> _Site | _ThreadSite:
    return _traced if torch.compiler.is_compiling() else _running  # torch.compile knows no thread's own


def _dispatch(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
              is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
              attention_kwargs: dict[str, Any] | None = None, *, backend: Any = None, parallel_config: Any = None
              ) -> Tensor:  # fmt: skip
    """In the place of diffusers' `dispatch_attention_fn`. The backend serves the steps that are not guided."""
    if dropout_p or is_causal or attention_kwargs or parallel_config is not None:
        raise ValueError(
            "guide: attention must be without dropout, not causal and on one device, got "
            f"{dropout_p=}, {is_causal=}, {attention_kwargs=}, {parallel_config=}"
        )
    if scale is not None and abs(scale * query.shape[-1] ** 0.5 - 1) > 1e-6:
        raise ValueError(f"guide: attention must be scaled by {query.shape[-1]} ** -0.5, got {scale}")
    attention = _site().attention
    assert attention is not None
    return attention.attend(query, key, value, attn_mask)


def _scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                                  dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
                                  enable_gqa: bool = False) -> Tensor:  # fmt: skip
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return _dispatch(query, key, value, attn_mask, dropout_p, is_causal, scale).transpose(1, 2)


_functional = types.ModuleType("functional")
_functional.__dict__.update({k: v for k, v in F.__dict__.items() if not k.startswith("__")})
_functional.__dict__["scaled_dot_product_attention"] = _scaled_dot_product_attention


@functools.cache
def _generic_class(cls: type[Any]) -> type[Any]:
    """A subclass whose `__call__` is the code of `cls` with its names of attention bound to ours.

    One for each class, so that a compiled model meets the same code in every layer and every run; what differs is reached
    through the instance.
    """
    call: Any = cls.__call__
    names = dict(call.__globals__)
    names["__name__"] = "namedtuple_nag_kernels"  # torch.compile looks such globals up in the function, not in a module
    names |= {"dispatch_attention_fn": _dispatch, "F": _functional}
    own = types.FunctionType(call.__code__, names, call.__name__, call.__defaults__)
    own.__kwdefaults__ = call.__kwdefaults__

    @functools.wraps(call)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        site = _site()
        site.attention = self.nag_attention
        self.nag_attention.begin()
        try:
            return own(self, *args, **kwargs)
        finally:
            site.attention = None

    def get_calls(self: Any) -> int | None:
        calls: int | None = self.nag_attention.text_calls
        return calls

    def set_calls(self: Any, calls: int | None) -> None:
        self.nag_attention.text_calls = calls

    return type(f"NAG{cls.__name__}", (cls,), {"__call__": __call__, "text_calls": property(get_calls, set_calls)})


def generic_processor(
    processor: Any, layout: Layout, text: PackedText | SharedText, steers: bool = True
) -> Callable[..., Any]:
    """A copy of `processor` whose attention is guided; steers as in `GuidedProcessor`."""
    ours = copy.copy(processor)
    ours.__class__ = _generic_class(type(processor))  # type: ignore[arg-type]  # a type is hashable, to mypy one of Any is not
    ours.nag_attention = (layout.attention or GenericAttention)(layout, text)
    ours.nag_attention.steers = steers
    return ours
