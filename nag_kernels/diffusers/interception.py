# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What stands in the place of a denoiser's call, and of its `cache_context`, for a while."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from .denoiser_calls import Denoiser, inner_denoiser
from .restore import Replaced
from .turns import plain_call

# Also for guards (`guard.py`), which stand in the same place.
interception_lock = threading.RLock()


class Interception:
    """Stands in the place of a denoiser's call (`guard.intercepted`), over what stood there.

    Several may stand over each other, put there and taken away by several threads in any order.
    """

    def __init__(self, denoiser: Denoiser, call: Callable[..., Any]):
        self.denoiser, self.call = denoiser, call
        self.below: Callable[..., Any] | None = None  # None: the class's own call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(*args, **kwargs)

    def original(self, *args: Any, **kwargs: Any) -> Any:
        """The call that this one stands over."""
        return (self.below or self.denoiser._call_impl)(*args, **kwargs)

    def plain(self, *args: Any, **kwargs: Any) -> Any:
        """That call, for another thread than the one whose calls are taken: plain, unless one further below awaits it."""
        if isinstance(self.below, Interception):
            return self.below(*args, **kwargs)
        return plain_call(self.denoiser, self.original, args, kwargs)

    def enter(self) -> None:
        with interception_lock:
            self.below = self.denoiser.__dict__.get("_compiled_call_impl")
            self.denoiser.__dict__["_compiled_call_impl"] = self

    def leave(self) -> None:
        """What stands over it stays, over what it stood over."""
        with interception_lock:
            self.call = self.plain  # for a thread that is about to call it
            over = self._over()
            if over is not None:
                over.below = self.below
            elif self.denoiser.__dict__.get("_compiled_call_impl") is not self:
                return
            elif self.below is None:
                self.denoiser.__dict__.pop("_compiled_call_impl", None)
            else:
                self.denoiser.__dict__["_compiled_call_impl"] = self.below

    def stands(self) -> bool:
        with interception_lock:
            return self.denoiser.__dict__.get("_compiled_call_impl") is self or self._over() is not None

    def _over(self) -> "Interception | None":
        x = self.denoiser.__dict__.get("_compiled_call_impl")
        while isinstance(x, Interception):
            if x.below is self:
                return x
            x = x.below
        return None


class NoticedContexts:
    """Stands in the place of a denoiser's `cache_context` (`contexts_noticed`). Copies and pickles of the denoiser
    have its own."""

    def __init__(self, denoiser: Denoiser, original: Any, notice: Callable[[str | None], None]):
        self.denoiser, self.original, self.notice = denoiser, original, notice
        self.thread = threading.get_ident()
        self.over = False

    @contextlib.contextmanager
    def __call__(self, name: str, **kwargs: Any) -> Iterator[None]:
        if self.over or threading.get_ident() != self.thread:
            with self.original(name, **kwargs):
                yield
            return
        self.notice(name)
        try:
            with self.original(name, **kwargs):
                yield
        finally:
            self.notice(None)

    def end(self) -> None:
        self.over = True  # a shallow copy of the denoiser keeps it

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (inner_denoiser(self.denoiser), "cache_context")


def contexts_noticed(replaced: Replaced, denoiser: Denoiser, notice: Callable[[str | None], None]) -> None:
    """Until `replaced` is put back, `notice` is told the name of each `denoiser.cache_context` that this thread enters, and
    None when it leaves it."""
    original = getattr(denoiser, "cache_context", None)
    if original is not None:
        noticed = NoticedContexts(denoiser, original, notice)
        replaced.later(noticed.end)
        replaced.attribute(denoiser, "cache_context", noticed)
