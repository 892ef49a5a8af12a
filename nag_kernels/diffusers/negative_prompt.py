# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The negative prompt as the pipeline itself encodes it: the pipeline runs up to its first denoiser call."""

import contextlib
import dataclasses
import functools
import inspect
import itertools
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from .attention.base import Layer, put_processor
from .denoiser_calls import Denoiser, denoiser_arguments, inner_denoiser
from .guard import intercepted
from .interception import Interception, contexts_noticed
from .models.registry import Found, spec_of
from .models.spec import ModelSpec
from .modular import (
    as_call,
    guider_calls_noticed,
    is_modular,
    parts_with_state,
    prompts_as_given,
    silenced,
)
from .negative_arguments import (
    Change,
    Negative,
    cloned,
    has_unconditional_text,
    in_another_order,
    said_not,
    with_negative,
)
from .pipeline_call import EMBEDDINGS, naming_call
from .restore import Replaced, put_back_after
from .views import AT_ONCE


class _Reached(BaseException):
    """Ends the dry run; no pipeline catches a BaseException on its way."""


class Cancelled(Exception):
    """By `pipe._interrupt`, as user interfaces do it."""


def cancelled_run(
    replaced: Replaced, function: Callable[..., Any], pipe: Any, denoisers: list[Denoiser], args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:  # fmt: skip
    """The pipeline's call without guidance, cancelled as soon as it comes to its denoiser: each call begins uncancelled."""

    def cancel(place: Interception, *args: Any, **kwargs: Any) -> Any:
        pipe._interrupt = True
        return place.original(*args, **kwargs)

    for denoiser in denoisers:
        intercepted(replaced, denoiser, cancel)
    return function(pipe, *args, **kwargs)


@dataclasses.dataclass(frozen=True)
class RecordedCall:
    """A call of the denoiser that was not carried out.

    arguments: of forward, by name. context: the pipeline's name for it (`cache_context`), or None.
    """

    arguments: dict[str, Any]
    context: str | None


class NegativeRecorder:
    """Records how a pipeline would call its denoiser, had it been called with the negative for its prompt, all else alike.

    A recording runs the pipeline up to the call that is asked for and leaves nothing behind: generators are cloned, the random
    states of torch, numpy and Python, the attributes of pipeline and scheduler and the denoisers' attention processors are put
    back, callbacks are dropped, the progress bar stays off. Calls of the denoiser by other threads are their own.
    """

    def __init__(
        self, function: Callable[..., Any], pipe: Any, found: Mapping[Denoiser, Found], arguments: Mapping[str, Any],
        negative: Negative, by_position: Sequence[str] = (),
    ):  # fmt: skip
        """function: the pipeline's call, with these arguments by name. found: on each of its denoisers. by_position: those of the
        arguments, the first ones, that it is to be given by position."""
        self.function, self.pipe, self.denoisers = function, pipe, list(found)
        self._modules = [module for its in found.values() for module in its.modules.values()]
        self.arguments = cloned(arguments, numbers=False)  # the running call draws from the generators
        self.negative, self.by_position = negative, by_position
        self.cancelled = False
        self.same_unconditional = not has_unconditional_text(arguments) and not isinstance(negative, Mapping)
        """Whether the recorded calls have the unconditional text of the running call."""

    def record(self, outputs: Sequence[Any] = (), changed: bool = False) -> RecordedCall | None:
        """The call of a denoiser that comes after as many as there are `outputs`, which those give; None where there is none.

        changed: with another text than the negative.
        """
        if changed:
            with contextlib.suppress(ValueError):  # a pipeline may refuse a word that it does not know
                return self._changed(outputs, said_not)
        return self._changed(outputs, in_another_order if changed else None)

    def _changed(self, outputs: Sequence[Any], changed: Change | None) -> RecordedCall | None:
        parts = spec_of(self.denoisers[0]).negatives_for
        if not isinstance(self.negative, Mapping) or not set(self.negative) <= set(parts):
            return self._recorded(self.negative, outputs, changed)
        return self._in_parts({name: self.negative.get(name) for name in parts}, outputs, changed)

    def _recorded(self, negative: Negative, outputs: Sequence[Any], changed: Change | None) -> RecordedCall | None:
        controlnet = getattr(self.pipe, "controlnet", None)
        # What it gives is no text, so it need not run. A pipeline may need it all the same: then the second try lets it.
        if isinstance(controlnet, Module):
            with contextlib.suppress(Exception):
                return put_back_after(
                    lambda replaced: self._record(replaced, negative, list(outputs), changed, controlnet)
                )
        return put_back_after(lambda replaced: self._record(replaced, negative, list(outputs), changed))

    def _in_parts(
        self, negatives: Mapping[str, Any], outputs: Sequence[Any], changed: Change | None
    ) -> RecordedCall | None:
        """A negative for the video and another for its sound; the prompt itself for what has none."""
        arguments: dict[str, Any] = {}
        recorded: RecordedCall | None = None
        for part, names in spec_of(self.denoisers[0]).negatives_for.items():
            negative = self.arguments.get("prompt") if negatives[part] is None else negatives[part]
            if not isinstance(negative, (str, list)):
                raise TypeError(
                    f"guide: negative_prompt['{part}'] must be text, got {type(negative).__name__}; where it is left out the "
                    "call's prompt takes its place, which must then be text too"
                )
            recorded = self._recorded(negative, outputs, None if negatives[part] is None else changed)
            if recorded is None:
                return None
            own = {name: recorded.arguments.get(name) for name in names}
            same = [x for x in arguments.values() if isinstance(x, Tensor)]
            for name, x in own.items():  # one mask goes with all texts
                own[name] = next(
                    (y for y in same if isinstance(x, Tensor) and x.shape == y.shape and torch.equal(x, y)), x
                )
            arguments |= own
        assert recorded is not None
        return RecordedCall(recorded.arguments | arguments, recorded.context)

    def reached(
        self, denoiser: Denoiser, args: tuple[Any, ...], kwargs: Mapping[str, Any], context: str | None
    ) -> RecordedCall:
        """Called within the pipeline's call, with that of the denoiser which is asked for."""
        return RecordedCall(_with_own_texts(spec_of(denoiser), denoiser_arguments(denoiser, args, kwargs)), context)

    def first(self) -> RecordedCall:
        """Raises `Cancelled` where the user interface has cancelled the pipeline while it encoded the negative."""
        recorded = self.record()
        if recorded is None and self.cancelled:
            raise Cancelled
        if recorded is None:
            kind = type(inner_denoiser(self.denoisers[0])).__name__
            raise RuntimeError(
                f"guide: {type(self.pipe).__name__} finished without calling its {kind}: guidance cannot act"
            )
        return recorded

    def ready_made(self, text: Sequence[Any]) -> bool | None:
        """Whether a text of the denoiser's call is the ready-made prompt that the pipeline was given (True), its ready-made
        unconditional text (False), or neither (None)."""
        prompt, unconditional = (
            [self.arguments.get(f"{prefix}{name}") for name in EMBEDDINGS] for prefix in ("", "negative_")
        )
        if any(_has_rows_of(x, y) for x, y in zip(prompt, unconditional, strict=True)):
            return None  # they are the same
        if any(_has_rows_of(x, y) for x in prompt for y in text):
            return True  # with the unconditional one before or after it, in a doubled batch
        return False if any(_has_rows_of(x, y) for x in unconditional for y in text) else None

    def _record(
        self, replaced: Replaced, negative: Negative, outputs: list[Any], changed: Change | None, controlnet: Module | None = None
    ) -> RecordedCall | None:  # fmt: skip
        spec, got = spec_of(self.denoisers[0]), list[RecordedCall]()
        thread = threading.get_ident()
        context: list[str | None] = [None]

        def record(place: Interception, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return place.plain(*args, **kwargs)
            if spec.stays_plain(denoiser_arguments(place.denoiser, args, kwargs)):
                return None  # what it would give or keep is for calls that are not carried out
            if outputs:
                return outputs.pop(0)
            got.append(self.reached(place.denoiser, args, kwargs, context[-1]))
            raise _Reached

        call = with_negative(self.function, self.pipe, self.arguments, negative, changed)
        known = {*self.arguments, *inspect.signature(naming_call(self.function, self.pipe)).parameters}
        call |= {name: value for name, value in spec.negative_call.items() if name in known}
        if AT_ONCE in call:
            call[AT_ONCE] = 1  # as the guided calls are
        _leave_nothing_behind(replaced, self.pipe, self._modules)
        if is_modular(self.pipe):
            call = as_call(self.pipe, call)
            silenced(replaced, self.pipe)
            prompts_as_given(replaced, self.pipe)
        self.pipe.__dict__["_progress_bar_config"] = {
            **getattr(self.pipe, "_progress_bar_config", {}),
            "disable": True,
        }
        for denoiser in self.denoisers:
            contexts_noticed(replaced, denoiser, context.append)
            intercepted(replaced, denoiser, record)
        guider_calls_noticed(replaced, self.pipe, context.append)
        if controlnet is not None:
            _does_nothing(replaced, controlnet)
        first = [call.pop(name) for name in itertools.takewhile(call.__contains__, self.by_position)]
        with contextlib.suppress(_Reached):
            self.function(self.pipe, *first, **call)
        self.cancelled = bool(getattr(self.pipe, "_interrupt", False))  # before that is put back
        return got[0] if got else None


def _with_own_texts(spec: ModelSpec, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with texts and masks in tensors of their own: a pipeline may write the prompt's into those that it gave."""
    copies: dict[int, Any] = {}  # what was one stays one

    def own(x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return type(x)(map(own, x))
        return copies.setdefault(id(x), x.clone()) if isinstance(x, Tensor) else x

    return arguments | {name: own(arguments[name]) for name in (*spec.text, *spec.masks) if name in arguments}


def _does_nothing(replaced: Replaced, controlnet: Module) -> None:
    """In the calls of this thread, until `replaced` is put back."""
    thread = threading.get_ident()

    def nothing(place: Interception, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return place.plain(*args, **kwargs)
        return [], torch.empty(0)  # of the blocks, and of the middle or of single-stream blocks

    intercepted(replaced, controlnet, nothing)


def _leave_nothing_behind(replaced: Replaced, pipe: Any, modules: list[Denoiser]) -> None:
    """Whatever changes from now on in pipeline, scheduler, guiders, processors and random states is put back."""
    for owner in (pipe, *parts_with_state(pipe)):
        if hasattr(owner, "__dict__"):
            replaced.later(functools.partial(_put_attributes_back, owner, dict(owner.__dict__)))
        for held in list(getattr(owner, "__dict__", {}).values()):
            _put_back_later(replaced, held)
    processors = [(x, x.processor) for x in modules if "processor" in x.__dict__ or "processor" in x._modules]
    replaced.later(functools.partial(_put_processors_back, processors))
    replaced.later(functools.partial(random.setstate, random.getstate()))
    replaced.later(functools.partial(np.random.set_state, np.random.get_state()))
    replaced.later(functools.partial(torch.random.set_rng_state, torch.random.get_rng_state()))
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    module = None if accelerator is None else torch.get_device_module(accelerator)
    # On which of them the pipeline draws is known after a walk over all of its modules; to keep all states is cheap.
    if module is not None and getattr(module, "is_initialized", lambda: True)():
        for i in range(module.device_count()):
            replaced.later(functools.partial(module.set_rng_state, module.get_rng_state(i), i))


def _put_attributes_back(owner: Any, before: Mapping[str, Any]) -> None:
    """One by one and only those that differ: there is no moment in which the others are not there."""
    for name in [name for name in owner.__dict__ if name not in before]:
        owner.__dict__.pop(name, None)
    for name, value in before.items():
        if name not in owner.__dict__ or owner.__dict__[name] is not value:
            owner.__dict__[name] = value


def _put_back_later(replaced: Replaced, held: Any) -> None:
    """What is in an attribute of the pipeline. What comes into a list or a mapping may stay: it may be shared with others."""
    if isinstance(held, torch.Generator):
        replaced.later(functools.partial(held.set_state, held.get_state()))
    elif isinstance(held, random.Random):
        replaced.later(functools.partial(held.setstate, held.getstate()))
    elif isinstance(held, np.random.Generator):
        replaced.later(functools.partial(setattr, held.bit_generator, "state", held.bit_generator.state))
    elif isinstance(held, np.random.RandomState):
        replaced.later(functools.partial(held.set_state, held.get_state()))
    elif isinstance(held, Tensor) and not held.is_inference():
        replaced.later(functools.partial(_put_numbers_back, held, held._version, held.clone()))
    elif isinstance(held, (list, dict)) and type(held) in (list, dict):
        replaced.later(functools.partial(_put_items_back, held, held.copy()))


def _put_numbers_back(x: Tensor, version: int, before: Tensor) -> None:
    if x._version != version:
        with torch.no_grad():
            x.copy_(before)


def _put_items_back(held: Any, before: Any) -> None:
    """Those that are gone."""
    if isinstance(held, dict):
        for key, value in before.items():
            held.setdefault(key, value)
    elif not {*map(id, before)} <= {*map(id, held)}:
        held[:] = before


def _put_processors_back(processors: list[tuple[Layer, Any]]) -> None:
    for module, processor in processors:
        if getattr(module, "processor", None) is not processor:
            put_processor(module, processor)


def _has_rows_of(given: Any, text: Any) -> bool:
    """Whether a text has the first row of what was given, among rows of others or once more for each image."""
    given, text = ([*x] if isinstance(x, (list, tuple, Tensor)) else [] for x in (given, text))
    given, text = ([x for x in rows if isinstance(x, Tensor) and x.ndim > 0] for rows in (given, text))
    if not given:
        return False
    return any(x.shape == given[0].shape and torch.equal(x, given[0].to(x)) for x in text)
