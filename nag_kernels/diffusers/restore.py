# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""One place that remembers all that a guided call replaces, and puts it back."""

from collections.abc import Callable
from typing import Any

from torch.nn import Module

from .attention.base import put_processor

_ABSENT = object()


class Replaced:
    """What was replaced on others' objects. `put_back` undoes it, the latest first.

    How to undo a change is remembered before the change is made, and undoing a change that was made in part, or not at all, or
    was undone before, does no harm. So an interrupt (`KeyboardInterrupt`) may arrive at any line, as long as `put_back` is
    called once more in an outer `finally`: `put_back_after` does so. Only what was put there is taken away: where somebody else
    has put something in its place meanwhile, that stays.
    """

    def __init__(self):
        self._undo: list[Callable[[], Any]] = []

    def later(self, undo: Callable[[], Any]) -> None:
        """Calls `undo` in `put_back`."""
        self._undo.append(undo)

    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """Sets an attribute of an instance. Through `__dict__`: torch.compile's wrapper sets attributes on the module inside."""
        before = owner.__dict__.get(name, _ABSENT)

        def undo():
            if owner.__dict__.get(name, _ABSENT) is not value:
                return
            if before is _ABSENT:
                owner.__dict__.pop(name, None)
            else:
                owner.__dict__[name] = before

        self._undo.append(undo)
        owner.__dict__[name] = value

    def processor(self, layer: Module, processor: Any) -> None:
        before = layer.processor

        def undo():
            if getattr(layer, "processor", None) in (None, processor):
                put_processor(layer, before)

        self._undo.append(undo)
        put_processor(layer, processor)

    def hook(self, register: Callable, function: Callable, **options: Any) -> None:
        """Registers a hook by a module's method, `register_forward_hook` or `register_forward_pre_hook`."""
        module = register.__self__

        def undo():
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key in [key for key, hook in hooks.items() if hook is function]:
                    hooks.pop(key, None)
                    module._forward_hooks_with_kwargs.pop(key, None)
                    module._forward_pre_hooks_with_kwargs.pop(key, None)

        self._undo.append(undo)
        register(function, **options)

    def mark(self) -> int:
        """How much is replaced by now."""
        return len(self._undo)

    def put_back(self, mark: int = 0) -> None:
        """Undoes all, or what came after a `mark`. An interrupt on the way waits until that is done."""
        error = None
        while len(self._undo) > mark:
            try:
                self._undo[-1]()
                self._undo.pop()
            except KeyboardInterrupt as interrupt:  # once more
                error = interrupt
            except Exception as failure:  # the others all the same
                self._undo.pop()
                error = error or failure
        if error is not None:
            raise error


def put_back_after(work: Callable[[Replaced], Any]) -> Any:
    """Returns work(replaced); what it has replaced is then put back, whatever interrupts it, and whatever interrupts that."""
    replaced = Replaced()
    try:
        try:
            return work(replaced)
        finally:
            replaced.put_back()
    finally:
        replaced.put_back()
