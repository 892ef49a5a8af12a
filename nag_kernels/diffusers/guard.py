# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""No call of a guided denoiser is unguided in silence: while a pipeline is guided, the calls of its denoiser by anything else (a
second pipeline over the same denoiser, a loop of one's own) raise."""

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch.nn import Module

from .denoiser_calls import Denoiser, inner_denoiser
from .turns import is_mine, turn_of

_lock = threading.RLock()
_guards: weakref.WeakKeyDictionary[Module, "Guard"] = weakref.WeakKeyDictionary()


class Owner(Protocol):
    """Of guidance on a pipeline: `owners.Owner`."""

    pipe: Any

    def is_here(self) -> bool: ...


class Guard:
    """Stands in the place of a denoiser's call while guidance is on one of its pipelines."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser = weakref.ref(denoiser)
        self.owners: list[Owner] = []
        self.call: Callable[..., Any] | None = None  # that it replaces; None: the class's own

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        denoiser = self.denoiser()
        assert denoiser is not None
        if not is_mine(turn_of(denoiser, "run")):  # within a guided run it is that run's call, or a callback's
            owner = owner_here(denoiser)
            if owner is not None:
                self._refuse(denoiser, owner)
        return (self.call or denoiser._call_impl)(*args, **kwargs)

    def _refuse(self, denoiser: Denoiser, owner: Owner) -> None:
        kind, pipe = type(inner_denoiser(denoiser)).__name__, type(owner.pipe).__name__
        raise RuntimeError(
            f"guide: this {kind} was called by something else than the {pipe} that is guided, and would not be guided. For "
            f"another pipeline over the same denoiser write `with guide([pipe, other], ...):`; for a loop of your own "
            "`with guide(denoiser, ...):`; for a call without guidance end the block, or call disable_guidance, before"
        )


def owner_here(denoiser: Denoiser) -> Owner | None:
    """Who has guidance on a pipeline with this denoiser, here and now."""
    guard = _guards.get(denoiser)
    return None if guard is None else next((owner for owner in guard.owners if owner.is_here()), None)


def put_guards(denoisers: Iterable[Denoiser], owner: Owner) -> None:
    with _lock:
        for denoiser in denoisers:
            guard = _guards.setdefault(denoiser, Guard(denoiser))
            guard.owners.append(owner)
            now = denoiser.__dict__.get("_compiled_call_impl")
            if now is not guard and len(guard.owners) == 1:
                guard.call = now
                denoiser.__dict__["_compiled_call_impl"] = guard


def take_guards_away(owner: Owner) -> None:
    """A second time there is nothing to do."""
    with _lock:
        for denoiser, guard in list(_guards.items()):
            guard.owners = [x for x in guard.owners if x is not owner]
            if not guard.owners and denoiser.__dict__.get("_compiled_call_impl") is guard:
                if guard.call is None:
                    denoiser.__dict__.pop("_compiled_call_impl", None)
                else:
                    denoiser.__dict__["_compiled_call_impl"] = guard.call


def compiled_call(module: Module) -> Callable[..., Any] | None:
    """What `Module.compile` has put in the place of a module's call, or None."""
    call: Any = module._compiled_call_impl
    return call.call if isinstance(call, Guard) else call
