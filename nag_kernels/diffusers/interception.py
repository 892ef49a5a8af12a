# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Catching the calls of a pipeline and of its denoiser, and reading their arguments."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .denoiser_calls import Denoiser
from .guard import Interception, NoticedContexts, lift_guards
from .modular import is_modular, named_arguments
from .restore import Replaced

# The names under which pipelines take ready-made prompts.
EMBEDDINGS = (
    "prompt_embeds",
    "prompt_embeds_t5",
    "prompt_embeds_qwen",
    "qwen_prompt_embeds",
    "connector_prompt_embeds",
    "text_features",
)
CALLBACKS = ("callback_on_step_end", "callback")
COUNTS = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")  # made of each prompt


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


def contexts_noticed(replaced: Replaced, denoiser: Denoiser, notice: Callable[[str | None], None]) -> None:
    """Until `replaced` is put back, `notice` is told the name of each `denoiser.cache_context` that this thread enters, and
    None when it leaves it."""
    original = getattr(denoiser, "cache_context", None)
    if original is not None:
        noticed = NoticedContexts(denoiser, original, notice)
        replaced.later(noticed.end)
        replaced.attribute(denoiser, "cache_context", noticed)


def call_arguments(
    function: Callable[..., Any], pipe: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a pipeline call by name, defaults included, without the pipeline itself."""
    signature = inspect.signature(function)
    bound = signature.bind(pipe, *args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    del arguments[next(iter(signature.parameters))]
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name)
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL and arguments.pop(name):
            raise TypeError(f"guide: arguments of this {type(pipe).__name__} must be given by name")
    return named_arguments(pipe, arguments) if is_modular(pipe) else arguments


def prompt_count(pipe: Any, arguments: Mapping[str, Any]) -> int:
    """How many prompts a pipeline call has. Raises ValueError where it has none."""
    prompt = arguments.get("prompt")
    if prompt is not None:
        return 1 if isinstance(prompt, (str, Mapping)) else len(prompt)  # a mapping has texts for some frames
    for name in EMBEDDINGS:
        if isinstance(arguments.get(name), (Tensor, list)):  # a list with one tensor for each prompt
            return len(arguments[name])
    raise ValueError(f"guide: a guided call of {type(pipe).__name__} needs prompt or prompt_embeds, got neither")


def image_count(pipe: Any, arguments: Mapping[str, Any]) -> int:
    """How many images, videos or sounds a pipeline call makes."""
    return prompt_count(pipe, arguments) * next((arguments[name] for name in COUNTS if name in arguments), 1)


def with_callbacks(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], change: Callable[[Any], Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with its step callbacks changed."""
    call = inspect.signature(function).bind(*args, **kwargs)
    rest = [name for name, x in call.signature.parameters.items() if x.kind is x.VAR_KEYWORD and name in call.arguments]
    for holder in (call.arguments, *(call.arguments[name] for name in rest)):
        for name in CALLBACKS:
            if callable(holder.get(name)):
                holder[name] = change(holder[name])
    return call.args, call.kwargs
