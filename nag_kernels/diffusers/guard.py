# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""No pipeline is unguided in silence: while a pipeline is guided, the calls of its denoiser by another one raise."""

import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import CodeType
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline, ModularPipeline, ModularPipelineBlocks
from torch.nn import Module

from .denoiser_calls import DENOISERS, Denoiser, Modules, denoisers_of, inner_denoiser
from .interception import Interception, interception_lock
from .restore import Replaced
from .turns import is_mine, turn_of

_guards: weakref.WeakKeyDictionary[Module, "Guard"] = weakref.WeakKeyDictionary()


class OwnerLike(Protocol):
    """Of guidance on a pipeline: `owners.Owner`."""

    @property
    def pipe(self) -> Any: ...

    @property
    def running(self) -> set[int]: ...

    @property
    def begun(self) -> set[int]: ...

    def is_here(self) -> bool: ...


class Guard:
    """Stands in the place of a denoiser's call while guidance is on one of its pipelines."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser = weakref.ref(denoiser)
        self.owners: list[OwnerLike] = []
        self.call: Callable[..., Any] | None = None  # that it replaces; None: the class's own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        denoiser = self.denoiser()
        assert denoiser is not None
        if not torch.compiler.is_compiling():
            self._check(denoiser)
        return (self.call or denoiser._call_impl)(*args, **kwargs)

    def _check(self, denoiser: Denoiser) -> None:
        run = turn_of(denoiser, "run")
        owner = owner_here(denoiser)
        if owner is None or (is_mine(run) and run.run is not None):  # a guided run's own call, or a callback's
            return
        callers = list(pipelines_calling(denoiser))
        kind, pipe = (type(x).__name__ for x in (inner_denoiser(denoiser), owner.pipe))
        if not callers:
            if owner.pipe is None:
                return
            if _in_blocks():
                raise RuntimeError(
                    f"guide: this {kind} was called by blocks of a modular pipeline that were called by themselves, while "
                    f"guidance is on this {pipe}, and would not be guided: call the pipeline, pipe(state, ...), in the place of "
                    "pipe.blocks(pipe, state)"
                )
            if any(True for _ in pipelines_calling(denoiser, None)):
                return  # a method of a pipeline, such as `invert`
            raise RuntimeError(
                f"guide: this {kind} was called by a loop of your own, or by what is no pipeline of diffusers, while guidance is "
                f"on this {pipe}, and would not be guided. End the block before, or call disable_guidance; to guide a loop of "
                "your own write `with guide(denoiser, ...):` then"
            )
        other = type(callers[0]).__name__
        if owner.pipe is None:
            raise RuntimeError(
                f"guide: guidance was enabled on a pipeline with this {kind} that is there no more, and this {other} is another "
                "one: call enable_guidance for it, or disable_guidance for calls without guidance"
            )
        if callers[0] is owner.pipe:
            if threading.get_ident() in owner.begun:
                return  # a plain call that began before
            if threading.get_ident() in owner.running:
                raise changed_on_the_way(owner.pipe, "got another", denoiser)
            raise RuntimeError(
                f"guide: this {kind} was called by the {pipe} that is guided, in a call that would not be guided: its __call__ "
                "was looked up before, or on the class, or the pipeline's class was replaced; call the pipeline itself, and set "
                "its class before it is guided"
            )
        another = f"another {other}" if other == pipe else f"a {other}, another pipeline"
        raise RuntimeError(
            f"guide: this {kind} was called by {another} than the {pipe} that is guided, and would not be guided. For "
            "several pipelines over one denoiser write `with guide([pipe, other], ...):`; for a call without guidance end the "
            "block, or call disable_guidance, before"
        )

    def settle(self, denoiser: Denoiser) -> None:
        """Stands on the denoiser where it has owners, and only then. A run that is under way calls it when it ends."""
        with interception_lock:
            now = denoiser.__dict__.get("_compiled_call_impl")
            if isinstance(now, Interception):
                return
            if self.owners and now is not self:
                self.call = now
                denoiser.__dict__["_compiled_call_impl"] = self
            elif not self.owners and now is self:
                self.lift(denoiser)

    def lift(self, denoiser: Denoiser) -> None:
        with interception_lock:
            if denoiser.__dict__.get("_compiled_call_impl") is not self:
                return
            if self.call is None:
                denoiser.__dict__.pop("_compiled_call_impl", None)
            else:
                denoiser.__dict__["_compiled_call_impl"] = self.call


def changed_on_the_way(pipe: Any, what: str, denoiser: Denoiser) -> RuntimeError:
    """what: "got another", or what else happened to a pipeline's denoiser while it was called."""
    kind = type(inner_denoiser(denoiser)).__name__
    return RuntimeError(
        f"guide: {type(pipe).__name__} {what} {kind} during a guided call (in a step callback, say), and what follows would not "
        "be guided; do that between two calls"
    )


def pipelines_calling(denoiser: Denoiser, method: str | None = "__call__") -> Iterator[Any]:
    """The pipelines with this denoiser whose calls this thread is in, or whose method (None: any), the innermost first. A
    function of somebody else's, which is given the pipeline, is no method."""
    for pipe, code in _running(method):
        known = isinstance(pipe, (DiffusionPipeline, ModularPipeline)) and (
            method is not None or _is_method(pipe, code)
        )
        if known and inner_denoiser(denoiser) in map(inner_denoiser, denoisers_of(pipe)):
            yield pipe


def _running(method: str | None) -> Iterator[tuple[Any, CodeType]]:
    """What this thread is in, the innermost first: the first argument of each function of this name (None: any), and its code."""
    frame = sys._getframe()
    while (outer := frame.f_back) is not None:
        frame = outer
        code = frame.f_code
        if code.co_varnames and method in (None, code.co_name):
            yield frame.f_locals.get(code.co_varnames[0]), code


def _is_method(pipe: Any, code: CodeType) -> bool:
    for x in [x for kind in (pipe, *type(pipe).__mro__) for x in vars(kind).values()]:
        function: Any = getattr(x, "__func__", None) or getattr(x, "fget", None) or x
        if callable(function) and getattr(inspect.unwrap(function), "__code__", None) is code:
            return True
    return False


def _in_blocks() -> bool:
    """Whether this thread is in a call of a modular pipeline's blocks."""
    return any(isinstance(blocks, ModularPipelineBlocks) for blocks, _ in _running("__call__"))


def owner_here(denoiser: Denoiser) -> OwnerLike | None:
    """Who has guidance on a pipeline with this denoiser, here and now."""
    guard = _guards.get(denoiser)
    return None if guard is None else next((owner for owner in guard.owners if owner.is_here()), None)


def put_guards(denoisers: Iterable[Denoiser], owner: OwnerLike) -> None:
    with interception_lock:
        for denoiser in dict.fromkeys(x for each in denoisers for x in (each, inner_denoiser(each))):
            guard = _guards.setdefault(denoiser, Guard(denoiser))
            forget_the_dead([denoiser])
            if not any(x is owner for x in guard.owners):
                guard.owners.append(owner)
            guard.settle(denoiser)


def forget_the_dead(denoisers: Iterable[Denoiser]) -> bool:
    """Takes away the guards of pipelines that are no more; whether there were any."""
    found = False
    with interception_lock:
        for denoiser in dict.fromkeys(x for each in denoisers for x in (each, inner_denoiser(each))):
            guard = _guards.get(denoiser)
            if guard is not None and any(x.pipe is None for x in guard.owners):
                found = True
                guard.owners = [x for x in guard.owners if x.pipe is not None]
                guard.settle(denoiser)
    return found


def take_guards_away(owner: OwnerLike) -> None:
    """A second time there is nothing to do."""
    with interception_lock:
        for denoiser, guard in list(_guards.items()):
            guard.owners = [x for x in guard.owners if x is not owner]
            guard.settle(denoiser)


def lift_guards(denoiser: Denoiser) -> Callable[[], None]:
    """Takes the guards off a denoiser for a while; returns what puts those back that still have owners."""
    modules = dict.fromkeys((denoiser, inner_denoiser(denoiser)))
    for module in modules:
        if module in _guards:
            _guards[module].lift(module)

    def put_back() -> None:
        for module in modules:
            if module in _guards:
                _guards[module].settle(module)

    return put_back


def intercepted(replaced: Replaced, denoiser: Denoiser, call: Callable[..., Any]) -> Interception:
    """Until `replaced` is put back, calling `denoiser` calls `call(place, *args, **kwargs)` instead; returns the place.

    The call is replaced outside of everything: hooks, offloading, `Module.compile` and `torch.compile` stay as
    they are, inside of `place.original`. So a compiled graph holds nothing of it, and a call that is not passed on
    meets no hook.
    """
    replaced.later(lift_guards(denoiser))
    place = Interception(denoiser, lambda *args, **kwargs: call(place, *args, **kwargs))
    replaced.later(place.leave)
    place.enter()
    return place


def refused_calls(replaced: Replaced, pipe: Any, name: str, denoiser: Denoiser, rests: Callable[[], bool]) -> None:
    """Until `replaced` is put back, a call of a denoiser that the pipeline holds under another name raises RuntimeError. rests():
    whether a callback runs, whose calls are its own."""
    thread = threading.get_ident()

    def call(place: Interception, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return place.plain(*args, **kwargs)
        if rests():
            return place.original(*args, **kwargs)
        kind = type(inner_denoiser(denoiser)).__name__
        raise RuntimeError(
            f"guide: {type(pipe).__name__} has a denoiser named {name} ({kind}), whose calls are not seen; it was called in a "
            f"guided call, and would not be guided. Those named {', '.join(DENOISERS)} are seen; to guide "
            "another one, write a loop of your own and `with guide(denoiser, ...):`"
        )

    intercepted(replaced, denoiser, call)


def is_compiled(denoiser: Denoiser, modules: Modules) -> bool:
    """As a whole or in part; modules: its own."""
    return inner_denoiser(denoiser) is not denoiser or any(compiled_call(x) is not None for x in modules.values())


def compiled_call(module: Module) -> Callable[..., Any] | None:
    """What `Module.compile` has put in the place of a module's call, or None."""
    call: Any = module._compiled_call_impl
    return call.call if isinstance(call, Guard) else call
