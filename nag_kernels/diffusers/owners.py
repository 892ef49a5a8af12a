# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Whose guidance a call of a pipeline follows.

Python looks `__call__` up on the class, so while a pipeline has guidance on it its class is a subclass made on the spot. The
first owner puts it there, the last one takes it away. An owner is a block, which belongs to the context that entered it (a
thread, an asyncio task and what it hands to `asyncio.to_thread`), or `enable_guidance`, which belongs to everybody. A call by
anyone else is plain.
"""

import contextlib
import contextvars
import copyreg
import functools
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar

from torch.nn import Module

from .denoiser_calls import denoisers_of
from .guard import put_guards, take_guards_away
from .restore import Replaced, put_back_after
from .schedule import Scale
from .turns import run_turns, take, threads_inside

_lock = threading.RLock()
_known: weakref.WeakKeyDictionary[Any, "_Guided"] = weakref.WeakKeyDictionary()  # made for a pipeline before
_entered: contextvars.ContextVar[tuple["Owner", ...]] = contextvars.ContextVar("nag_kernels.guide", default=())

Pipe = TypeVar("Pipe")


class Guidance(Protocol):
    """The settings that an owner has, and what calls a pipeline with them."""

    scale: Scale
    nag_tau: float
    nag_alpha: float
    watch: Any  # looks on at every guided layer, or None
    unused: str  # what to say where no call was guided

    def run(self, function: Callable[..., Any], pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...


class Owner:
    """One block, or one `enable_guidance`, and its settings."""

    def __init__(self, pipe: Any, guidance: "Guidance", everybody: bool):
        self._pipe: Callable[[], Any] = weakref.ref(pipe)  # or `enable_guidance` would keep it for ever
        self.guidance, self.everybody = guidance, everybody
        self.calls = 0
        self.on: _Guided | None = None
        self.running: set[int] = set()  # threads whose guided call of the pipeline is under way
        self.begun: set[int] = set()  # threads whose plain call of the pipeline may have begun before

    @property
    def pipe(self) -> Any:
        """None where it is gone."""
        return self._pipe()

    def is_here(self) -> bool:
        """Whether a call that is made here and now is this owner's."""
        return self.everybody or any(x is self for x in _entered.get())


class _NotSeenByItsBase:
    """First base of the class that is put on a pipeline: the `__init_subclass__` of the pipeline's own class, which may want
    arguments or keep a list of subclasses, is not called for it."""

    def __init_subclass__(cls) -> None:
        pass


def _made_class(plain: Any, bases: tuple[Any, ...], own: dict[str, Any]) -> type[Any]:
    """A subclass of a pipeline's class. Its metaclass may want more than Python gives it, or refuse subclasses: then it is not
    asked."""
    kind: Any = type(plain)
    try:
        return kind(plain.__name__, bases, dict(own))
    except Exception:
        if kind is type:
            raise
        return type.__new__(kind, plain.__name__, bases, dict(own))


class _Guided:
    """The owners of one pipeline, and the class that they put on it."""

    def __init__(self, pipe: Any):
        self.pipe = weakref.ref(pipe)
        self.owners: list[Owner] = []
        plain: Any = type(pipe)
        self.plain = plain  # a class

        @functools.wraps(plain.__call__)
        def guided_call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
            return self.call(pipe, args, kwargs)

        def reduce(
            pipe: Any, protocol: Any
        ) -> tuple[Any, ...]:  # copies and pickles have the class that the pipeline had
            function, arguments, *rest = plain.__reduce_ex__(pipe, protocol)
            if function is copyreg.__newobj__:  # type: ignore[attr-defined]  # pickle compares its class with the pipeline's
                function = object.__new__
            return function, tuple(plain if x is type(pipe) else x for x in arguments), *rest

        def set_attribute(pipe: Any, name: str, value: Any) -> None:
            plain.__setattr__(pipe, name, value)
            if isinstance(value, Module) and self.pipe() is pipe:  # a denoiser, it may be
                with _lock:
                    for owner in self.owners:
                        put_guards(denoisers_of(pipe), owner)

        # Of each thread for which `device_found_once` holds: the device, once found.
        self.devices: dict[int, list[Any]] = {}
        own = {"__call__": guided_call, "__reduce_ex__": reduce, "__setattr__": set_attribute, "_nag_guided": self}
        if hasattr(plain, "_execution_device"):
            own["_execution_device"] = property(self.device)
        same = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
        ours = issubclass(plain, _NotSeenByItsBase)  # as the class of a copy is
        bases = (plain,) if ours else (_NotSeenByItsBase, plain)
        self.cls: type[Any] = _made_class(plain, bases, own | same)
        self.put = dict(vars(self.cls))

    def owner(self) -> Owner | None:
        """Whose guidance a call follows that is made here and now."""
        mine = [x for x in _entered.get() if x in self.owners]
        found = mine or [x for x in self.owners if x.everybody]
        return found[-1] if found else None

    def call(self, pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        function = self.plain.__call__
        if self.pipe() is not pipe:  # a copy has the class as well
            return function(pipe, *args, **kwargs)
        owner = self.owner()
        if owner is None:
            return _plain_run(function, pipe, args, kwargs)
        owner.calls += 1
        thread = threading.get_ident()
        owner.begun.discard(thread)
        owner.running.add(thread)
        try:
            return owner.guidance.run(function, pipe, args, kwargs)
        finally:
            owner.running.discard(thread)

    def device(self, pipe: Any) -> Any:
        """The pipeline's `_execution_device`."""
        known = self.devices.get(threading.get_ident()) if self.pipe() is pipe else None
        if known:
            return known[0]
        plain: Any = super(self.cls, pipe)
        device = plain._execution_device
        if known is not None:
            known.append(device)
        return device

    def changed(self) -> bool:
        """Whether somebody else has set something on our class, a wrapper of `__call__` say."""
        of_python = ("__annot", "__slotnames__")  # which annotations and copyreg write there
        now = {name: x for name, x in vars(self.cls).items() if not name.startswith(of_python)}
        return now != self.put

    def take_away(self) -> None:
        """Where somebody has changed the class, or put another in its place, that stays; ours is then the plain class."""
        pipe = self.pipe()
        if pipe is not None and type(pipe) is self.cls and not self.changed():
            pipe.__class__ = self.plain


def _plain_run(function: Callable[..., Any], pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call of a pipeline by somebody who has no guidance on it, while others have."""

    def run(replaced: Replaced) -> Any:
        for turn in run_turns(denoisers_of(pipe)):
            take(turn, replaced)
            if turn.run is not None:  # this thread's own, which called it
                replaced.attribute(turn.run, "rests", True)
        return function(pipe, *args, **kwargs)

    return put_back_after(run)


def _guided(pipe: Any) -> _Guided | None:
    found: _Guided | None = getattr(type(pipe), "_nag_guided", None)
    return found if found is not None and found.pipe() is pipe else None


def _made_for(pipe: Any) -> _Guided:
    guided = _known.get(pipe)
    if guided is None or guided.plain is not type(pipe) or guided.changed():
        guided = _known[pipe] = _Guided(pipe)
    return guided


def plain_call_of(pipe: Any) -> Callable[..., Any]:
    """The call of the pipeline's own class, whoever has guidance on it."""
    found = _guided(pipe)
    function: Callable[..., Any] = (type(pipe) if found is None else found.plain).__call__
    return function


def device_found_once(replaced: Replaced, pipe: Any) -> Callable[[], None]:
    """Until `replaced` is put back, or what is returned is called, this thread looks for the device of `pipe` once. Diffusers
    walks over all modules of a pipeline for it, and a guided call runs the pipeline's beginning twice."""
    guided, thread = _guided(pipe), threading.get_ident()

    def end() -> None:
        if guided is not None:
            guided.devices.pop(thread, None)

    replaced.later(end)
    if guided is not None:
        guided.devices[thread] = []
    return end


def owner_of(pipe: Any) -> Owner | None:
    """Whose guidance a call of `pipe` follows that is made here and now."""
    found = _guided(pipe)
    return None if found is None else found.owner()


def owner_for_everybody(pipe: Any) -> Owner | None:
    found = _guided(pipe) or _known.get(pipe)  # where somebody has replaced its class
    return None if found is None else next((x for x in found.owners if x.everybody), None)


def refuse_nested(pipe: Any) -> None:
    if owner_of(pipe) is not None:
        raise RuntimeError(
            f"guide: guidance is enabled already on this {type(pipe).__name__}; nesting is not supported: end the block that is "
            "open here, or call disable_guidance, before you guide it anew"
        )


def enter(owner: Owner) -> None:
    """Puts guidance on the pipeline. What is done of it, `leave` takes back."""
    with _lock:
        refuse_nested(owner.pipe)
        owner.on = guided = _guided(owner.pipe) or _made_for(owner.pipe)
        owner.begun = threads_inside(owner.pipe)
        guided.owners.append(owner)
        if guided.cls not in type(owner.pipe).__mro__:  # a metaclass may have an answer of its own to isinstance
            owner.pipe.__class__ = guided.cls
        put_guards(denoisers_of(owner.pipe), owner)
        if not owner.everybody:
            _entered.set((*(x for x in _entered.get() if x.on is not None), owner))


def leave(owner: Owner) -> None:
    """Takes away what `enter` did; a second time there is nothing to do."""
    with _lock:
        if any(x is owner for x in _entered.get()):
            _entered.set(tuple(x for x in _entered.get() if x is not owner))
        guided = owner.on
        take_guards_away(owner)
        if guided is None:
            return
        if owner in guided.owners:
            guided.owners.remove(owner)
        if not guided.owners:
            guided.take_away()
        owner.on = None


class Block(contextlib.ContextDecorator, Generic[Pipe]):
    """What `guide` gives: a block in which `pipe` is guided, for the context that enters it. It may be entered once.

    pipe: a pipeline, or several in a list. settings: makes the guidance of one.
    """

    unused = False
    entered = False
    owners: tuple[Owner, ...] = ()

    def __init__(self, pipe: Pipe, settings: Callable[[Any], "Guidance"], unused: bool = True):
        self.pipe, self.settings = pipe, settings
        self.unused = unused  # so far, and to be said where it stays so

    def _recreate_cm(self) -> "Block[Pipe]":  # as a decorator: one for each call of the function
        self.unused = False
        return Block(self.pipe, self.settings, unused=False)

    def taken(self) -> tuple[list[Any], Callable[[Any], "Guidance"]]:
        """Its pipelines and settings, for what is no block."""
        self.unused = False
        return pipes_in(self.pipe), self.settings

    def __enter__(self) -> Pipe:
        self.unused = False
        if self.entered:
            raise RuntimeError("guide: this block has been entered before; call guide(...) anew for each block")
        pipes = pipes_in(self.pipe)
        for pipe in pipes:
            refuse_nested(pipe)
        self.owners = tuple(Owner(pipe, self.settings(pipe), everybody=False) for pipe in pipes)
        self.entered = True
        try:
            for owner in self.owners:
                enter(owner)
            return self.pipe
        except BaseException:
            leave_all(self.owners)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        leave_all(self.owners)
        if kind is None and not any(owner.calls for owner in self.owners):
            raise RuntimeError(f"guide: {self.owners[0].guidance.unused}")

    def __del__(self) -> None:
        leave_all(self.owners)  # where an interrupt came between the block and __exit__
        if self.unused:
            names = ", ".join(type(pipe).__name__ for pipe in pipes_in(self.pipe))
            warnings.warn(
                f"guide: this guide({names}, ...) was never entered, so nothing was guided; write `with "
                "guide(pipe, ...):` around the calls, guided(pipe, ...)(prompt) for one call, or enable_guidance(pipe, ...)",
                stacklevel=2,
            )


def pipes_in(pipe: Any) -> list[Any]:
    """One pipeline, or those of a list."""
    return list(pipe) if isinstance(pipe, (list, tuple)) else [pipe]


def leave_all(owners: Iterable[Owner]) -> None:
    owners = tuple(owners)
    try:
        for owner in reversed(owners):
            leave(owner)
    finally:
        for owner in reversed(owners):
            leave(owner)


class OneCall:
    """What `guided` gives: the pipeline's call, guided. It may be called any number of times, by any thread."""

    unused = False

    def __init__(self, pipe: Any, guidance: "Guidance"):
        self.pipe, self.guidance = pipe, guidance
        self.unused = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the pipeline's call."""
        self.unused = False
        with Block(self.pipe, lambda _: self.guidance, unused=False):
            return self.pipe(*args, **kwargs)

    def __del__(self) -> None:
        if self.unused:
            warnings.warn(
                f"guided: this guided({type(self.pipe).__name__}, ...) was never called, so nothing was drawn; write "
                "guided(pipe, ...)(prompt, ...)",
                stacklevel=2,
            )
