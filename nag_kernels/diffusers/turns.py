# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Threads that share a denoiser take turns.

A denoiser has two turns. "run" is held for a whole call of a pipeline: guided calls wait for each other, and so do plain calls
of a pipeline that has guidance on it, as schedulers keep the state of a run. "layers" is held for one call of the denoiser, by a
guided one, while our processors are on its layers, and by the plain calls of other threads that come to a denoiser directly. So
those meet the stock model between two guided calls of it, and nobody waits for more than one call of the denoiser.
"""

import dis
import functools
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from types import CodeType
from typing import Any

from torch.nn import Module

from .denoiser_calls import Denoiser, inner_denoiser
from .restore import Replaced, put_back_after

_lock = threading.RLock()  # entered as it is: its C code cannot be interrupted between taking it and the block
_changed = threading.Condition(_lock)
_waiting: dict[int, "Turn"] = {}  # what each thread waits for


class Turn:
    def __init__(self) -> None:
        self.holder: int | None = None  # a thread
        self.tokens: set[object] = set()  # one for each time that it was taken
        self.run: Any = None  # the guided call of a pipeline that holds it


_turns: weakref.WeakKeyDictionary[Module, dict[str, Turn]] = weakref.WeakKeyDictionary()


def turn_of(denoiser: Denoiser, kind: str) -> Turn:
    with _lock:
        return _turns.setdefault(inner_denoiser(denoiser), {}).setdefault(kind, Turn())


def run_turns(denoisers: Iterable[Module]) -> list[Turn]:
    """Of all denoisers of a pipeline, in one order for all threads, so that no two wait for each other."""
    inner = {id(inner_denoiser(x)): inner_denoiser(x) for x in denoisers}
    return [turn_of(inner[key], "run") for key in sorted(inner)]


def is_mine(turn: Turn) -> bool:
    return turn.holder == threading.get_ident()


def take(turn: Turn, replaced: Replaced) -> None:
    """Waits until no other thread has this turn, and takes it until `replaced` is put back; a thread may take it again.

    Raises RuntimeError where threads would wait for each other for ever.
    """
    token, thread = object(), threading.get_ident()
    replaced.later(lambda: _give_back(turn, token, thread))
    with _lock:
        try:
            while turn.holder not in (None, thread):
                _waiting[thread] = turn
                _refuse_circle(turn, thread)
                _changed.wait()
        finally:
            _waiting.pop(thread, None)
        turn.holder = thread
        turn.tokens.add(token)


def _give_back(turn: Turn, token: object, thread: int) -> None:
    with _lock:
        turn.tokens.discard(token)
        if not turn.tokens and turn.holder == thread:
            turn.holder = None
        _changed.notify_all()


def _refuse_circle(turn: Turn, thread: int) -> None:
    holder = turn.holder
    for _ in range(len(_waiting)):
        if holder not in _waiting:
            return
        holder = _waiting[holder].holder
        if holder == thread:
            raise RuntimeError(
                "guide: this call needs a denoiser that another thread's guided call holds, which waits for one that this "
                "thread's guided call holds: neither could go on; do not call one guided pipeline within another's call"
            )


def plain_call(
    denoiser: Denoiser, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """A call of a denoiser by another thread than the one whose guided run it is in: plain, between two guided calls."""

    def run(replaced: Replaced) -> Any:
        take(turn_of(denoiser, "layers"), replaced)
        return original(*args, **kwargs)

    return put_back_after(run)


def wait_for_calls_begun(objects: Iterable[Any]) -> None:
    """Waits while other threads are within a call of one of `objects` that began before guidance could see it.

    Such a call has left no trace but on the stacks of its thread: those of a pipeline (its `__call__`) or of a model. Before
    Python 3.13, a pipeline's call is seen where `torch.no_grad` decorates it, as it does in all of diffusers.
    """
    known, me = {id(x) for x in objects}, threading.get_ident()
    while any(_is_inside(frame, known) for thread, frame in sys._current_frames().items() if thread != me):
        time.sleep(0.001)


def _is_inside(frame: Any, objects: set[int]) -> bool:
    while frame is not None:
        if frame.f_code in (take.__code__, plain_call.__code__):
            return False  # it takes turns with us
        if any(id(x) in objects for x in _called(frame)):
            return True
        frame = frame.f_back
    return False


def threads_inside(pipe: Any) -> set[int]:
    """The threads that are within a call of a pipeline, and those of which that cannot be told."""
    me = threading.get_ident()
    # No frame in a variable here: this one's own would keep all its callers alive.
    return {thread for thread, frame in sys._current_frames().items() if _may_be_inside(frame, pipe, thread == me)}


def _may_be_inside(frame: Any, pipe: Any, mine: bool) -> bool:
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__call__" and code.co_varnames and (mine or _locals_are_safe(code)):
            inside = frame.f_locals.get(code.co_varnames[0]) is pipe
        else:
            inside = code.co_name == "__call__" or any(x is pipe for x in _called(frame))
        if inside:
            return True
        frame = frame.f_back
    return False


def _called(frame: Any) -> tuple[object, ...]:
    """What a frame is the call of: a model, a pipeline, or the blocks of a modular pipeline and that pipeline."""
    code = frame.f_code
    names = ("__call__", "_wrapped_call_impl", "decorate_context")  # the last is `torch.no_grad`'s
    if code.co_name not in names or not code.co_varnames or not _locals_are_safe(code):
        return ()
    variables = frame.f_locals
    if code.co_name == "decorate_context" and getattr(variables.get("func"), "__name__", None) != "__call__":
        return ()  # somebody's own function, which may run as long as a server does
    first = variables.get(code.co_varnames[0])
    return first[:2] if code.co_argcount == 0 and isinstance(first, tuple) else (first,)


@functools.cache
def _locals_are_safe(code: CodeType) -> bool:
    """Whether `f_locals` of a frame with this code may be read while another thread runs it.

    Before Python 3.13, `f_locals` is a dict that each reading fills anew. What it held before may die in the middle of that; a
    destructor that lets other threads run then lets the frame end, and the interpreter crashes. Nothing dies where the code gives
    no local variable a second value, as in torch's wrappers around every call of a module and of a pipeline.
    """
    return sys.version_info >= (3, 13) or not any(step.opname in _STORES for step in dis.get_instructions(code))


_STORES = ("STORE_FAST", "STORE_DEREF", "DELETE_FAST", "DELETE_DEREF")
