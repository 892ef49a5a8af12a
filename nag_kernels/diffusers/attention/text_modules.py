# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Modules that mix the tokens of a prompt (text refiners, attention within the text, position ids) run once for each
prompt while two are packed as [text+ ; text-].

A model's file names such modules, each with the function that runs it once for each prompt.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..restore import Replaced
from .base import PackedText, SharedText

# The owner of a method, the method's name, and function(method, text, *args, **kwargs) to be called instead of it. `text` is the
# PackedText of the call; a function that has to change it for what comes after is marked with `changes_text` and gets the
# SharedText.
TextModule = tuple[Any, str, Callable[..., Any]]
Function = TypeVar("Function", bound=Callable[..., Any])


def changes_text(function: Function) -> Function:
    function.__dict__["changes_text"] = True
    return function


class _OncePerPrompt:
    """Replaces a method: whatever stood there before (a hook of an offloading library, say) is called inside.

    One for each method, as long as its owner lives: a compiled model is compiled for the very object that it finds there.
    """

    method: Callable[..., Any] | None = None
    shared: SharedText | None = None
    function: Callable[..., Any] | None = None
    changes: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert self.function is not None
        assert self.shared is not None
        return self.function(self.method, self.shared if self.changes else self.shared.packed, *args, **kwargs)


_known: weakref.WeakKeyDictionary[Any, dict[str, _OncePerPrompt]] = weakref.WeakKeyDictionary()


def run_once_per_prompt(replaced: Replaced, modules: Iterable[TextModule], shared: SharedText) -> None:
    """Until `replaced` is put back, `modules` see the prompts one at a time. Only attributes of instances are set."""
    for owner, name, function in modules:
        ours = _known.setdefault(owner, {}).setdefault(name, _OncePerPrompt())
        replaced.later(ours.__dict__.clear)
        ours.method, ours.shared, ours.function = getattr(owner, name), shared, function
        ours.changes = getattr(function, "changes_text", False)
        replaced.attribute(owner, name, ours)


def numbered_anew(method: Callable[..., Any], text: PackedText, *call: Any, **options: Any) -> tuple[Tensor, Any]:
    """Positions of the image and of a text whose tokens are numbered: those of text- begin where those of text+ do.

    The text's are a tensor [T, C], several of them, or None where it has none.
    """
    image, positions = method(*call, **options)
    if positions is None:
        return image, None
    if isinstance(positions, tuple):
        return image, tuple(begun_anew(x, text) for x in positions)
    return image, begun_anew(positions, text)


def begun_anew(x: Tensor, text: PackedText) -> Tensor:
    return torch.cat([x[: text.length_positive], x[: text.length_negative]])


def masks_of_part(text: PackedText, place: int) -> tuple[Tensor, Tensor]:
    """Of one of several texts that lie one after another: what of text+ and of text- is seen."""
    assert text.mask_positive is not None
    assert text.mask_negative is not None
    of_positive, of_negative = (list(lengths) for lengths in zip(*text.parts, strict=True))
    return text.mask_positive.split(of_positive, dim=1)[place], text.mask_negative.split(of_negative, dim=1)[place]
