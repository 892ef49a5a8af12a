# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""One place that remembers all that a guided call replaces, and puts it back."""

from collections.abc import Callable
from typing import Any, TypeVar

from .attention.base import Layer, put_processor

_ABSENT = object()
Result = TypeVar("Result")


class Replaced:
    """What was replaced on others' objects. `put_back` undoes it, the latest first.

    How to undo a change is remembered before the change is made, and undoing a change that was made in part, or not at all, or
    was undone before, does no harm. So an interrupt (`KeyboardInterrupt`) may arrive at any line, as long as `put_back` is
    called once more in an outer `finally`: `put_back_after` does so. Only what was put there is taken away: where somebody else
    has put something in its place meanwhile, that stays.
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], Any]] = []

    def later(self, undo: Callable[[], Any]) -> None:
        """Calls `undo` in `put_back`."""
        self._undo.append(undo)

    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """Sets an attribute of an instance. Through `__dict__`: torch.compile's wrapper sets attributes on the module inside."""
        before = owner.__dict__.get(name, _ABSENT)

        def undo() -> None:
            if owner.__dict__.get(name, _ABSENT) is not value:
                return
            if before is _ABSENT:
                owner.__dict__.pop(name, None)
            else:
                owner.__dict__[name] = before

        self._undo.append(undo)
        owner.__dict__[name] = value

    def processor(self, layer: Layer, processor: Any) -> None:
        before = layer.processor

        def undo() -> None:
            if getattr(layer, "processor", None) in (None, processor):
                put_processor(layer, before)

        self._undo.append(undo)
        put_processor(layer, processor)

    def hook(self, register: Callable[..., Any], function: Callable[..., Any], **options: Any) -> None:
        """Registers a hook by a module's method, `register_forward_hook` or `register_forward_pre_hook`."""
        module: Any = getattr(register, "__self__")  # noqa: B009 a Callable has none for a type checker

        def undo() -> None:
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
        error: BaseException | None = None
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


def put_back_after(work: Callable[[Replaced], Result]) -> Result:
    """Returns work(replaced); what it has replaced is then put back, whatever interrupts it, and whatever interrupts that."""
    replaced = Replaced()
    try:
        try:
            return work(replaced)
        finally:
            replaced.put_back()
    finally:
        replaced.put_back()
