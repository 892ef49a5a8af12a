# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The arguments of a pipeline's call: their names, how many prompts and images they ask for, and its callbacks."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from .modular import is_modular, named_arguments

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


def call_arguments(
    function: Callable[..., Any], pipe: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a pipeline call by name, without the pipeline itself. Defaults are included, but for a call that hands all
    on: it may have others than the one that names them."""
    named = naming_call(function, pipe)
    signature = inspect.signature(named)
    bound = signature.bind(pipe, *args, **kwargs)
    if named is function:
        bound.apply_defaults()
    arguments = dict(bound.arguments)
    for i, (name, parameter) in enumerate(signature.parameters.items()):
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            if len(arguments.pop(name, ())) > (i == 0):
                raise TypeError(
                    f"guide: arguments of this {type(pipe).__name__} must be given by name: its __call__ takes them as "
                    f"*{name}, which does not say what they are (a decorator made with functools.wraps does)"
                )
        elif i == 0:
            del arguments[name]
    if not _takes_names(signature):
        raise TypeError(
            f"guide: the __call__ of this {type(pipe).__name__} takes no arguments by name, and guidance calls it by name, once "
            "more with the negative prompt for the prompt: let it take **kwargs, or make its decorator with functools.wraps"
        )
    return named_arguments(pipe, arguments) if is_modular(pipe) else arguments


def named_by_position(function: Callable[..., Any], pipe: Any, args: tuple[Any, ...]) -> list[str]:
    """The names of the arguments that came by position to a call that hands all on: it may take some of them in hand."""
    named = naming_call(function, pipe)
    return [] if named is function else list(inspect.signature(named).parameters)[1 : len(args) + 1]


def naming_call(function: Callable[..., Any], pipe: Any) -> Callable[..., Any]:
    """The function that names the arguments of a pipeline's call: the call itself, or where that hands all on (`*args, **kwargs`)
    one that it is a wrapper of, or that of a base class. The call itself where there is none."""
    if not _hands_all_on(inspect.signature(function)):
        return function
    bases = [vars(cls)["__call__"] for cls in type(pipe).__mro__ if "__call__" in vars(cls)]
    seen: list[Any] = []
    for each in (x for start in (function, *bases) for x in _wrapped_functions(start, seen)):
        names = inspect.signature(each).parameters
        if not _hands_all_on(inspect.signature(each)) and any(name in names for name in ("prompt", *EMBEDDINGS)):
            return each
    return function


def _wrapped_functions(function: Any, seen: list[Any]) -> Iterator[Callable[..., Any]]:
    """A function, and those that it has in hand as a wrapper has the one that it calls."""
    if not inspect.isfunction(function) or any(x is function for x in seen):
        return
    seen.append(function)
    yield function
    for cell in inspect.unwrap(function).__closure__ or ():
        try:
            inside = cell.cell_contents
        except ValueError:  # it is empty
            continue
        yield from _wrapped_functions(inside, seen)


def _hands_all_on(signature: inspect.Signature) -> bool:
    """Whether a call names none of its arguments, but the pipeline."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    kinds = [x.kind for x in signature.parameters.values()]
    return all(kind in several for kind in kinds[1:]) and any(kind in several for kind in kinds)


def _takes_names(signature: inspect.Signature) -> bool:
    by_position = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
    return any(x.kind not in by_position for x in list(signature.parameters.values())[_has_self(signature) :])


def _has_self(signature: inspect.Signature) -> bool:
    first = next(iter(signature.parameters.values()), None)
    return first is not None and first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)


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
    function: Callable[..., Any],
    pipe: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    change: Callable[[Any], Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a pipeline's call, the pipeline first, with its step callbacks changed."""
    names = list(inspect.signature(naming_call(function, pipe)).parameters)
    given = (pipe, *args)

    def changed(name: str, x: Any) -> Any:
        return change(x) if name in CALLBACKS and callable(x) else x

    by_position = (changed(name, x) for name, x in zip(names, given, strict=False))
    return (*by_position, *given[len(names) :]), {name: changed(name, x) for name, x in kwargs.items()}
