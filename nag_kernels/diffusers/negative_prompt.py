# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The negative prompt as the pipeline itself encodes it: the pipeline runs up to its first denoiser call."""

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .attention.base import Layer, put_processor
from .denoiser_calls import Denoiser, denoiser_arguments, inner_denoiser
from .interception import CALLBACKS, intercepted, prompt_count
from .models.registry import spec_of
from .restore import Replaced
from .turns import plain_call

Negative = str | list[str] | Mapping[str, Tensor]

_READY_MADE = ("prompt_", "pooled_prompt_", "generated_prompt_", "attention_mask", "encoder_attention_mask")


class _Reached(BaseException):
    """Ends the dry run; no pipeline catches a BaseException on its way."""


def checked_negative(negative: Negative) -> Negative:
    if isinstance(negative, str) or (isinstance(negative, Mapping) and negative):
        return negative
    if isinstance(negative, (list, tuple)) and negative and all(isinstance(x, str) for x in negative):
        return list(negative)
    if negative is None or (isinstance(negative, (list, tuple, Mapping)) and not negative):
        raise ValueError(f"guide: there is no negative text to steer away from: negative_prompt is {negative!r}")
    raise TypeError(
        f"guide: negative_prompt must be a text, a list of texts or a mapping of ready-made text, got "
        f"{type(negative).__name__}"
    )


def record_negative(
    replaced: Replaced, function: Callable[..., Any], pipe: Any, denoisers: list[Denoiser], arguments: Mapping[str, Any],
    negative: Negative,
) -> dict[str, Any]:  # fmt: skip
    """The denoiser's arguments, had the pipeline been called with the negative for its prompt, all else alike.

    The call runs up to the first use of a denoiser and leaves nothing behind: generators are cloned, torch's random
    state, the attributes of pipeline and scheduler and the denoisers' attention processors are put back, callbacks are
    dropped, the progress bar stays off. Calls of the denoiser by other threads are their own.
    """
    got: dict[str, Any] = {}
    thread = threading.get_ident()
    originals: dict[Denoiser, Callable[..., Any]] = {}

    def record(denoiser: Denoiser, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return plain_call(denoiser, originals[denoiser], args, kwargs)
        got.update(denoiser_arguments(denoiser, args, kwargs))
        raise _Reached

    call = _with_negative(function, pipe, arguments, negative)
    call |= {name: value for name, value in spec_of(denoisers[0]).negative_call.items() if name in arguments}
    mark = replaced.mark()
    try:
        _leave_nothing_behind(replaced, pipe, denoisers)
        pipe.__dict__["_progress_bar_config"] = {**getattr(pipe, "_progress_bar_config", {}), "disable": True}
        for denoiser in denoisers:
            originals[denoiser] = denoiser._call_impl  # before the first call by another thread
            originals[denoiser] = intercepted(replaced, denoiser, functools.partial(record, denoiser))
        with contextlib.suppress(_Reached):
            function(pipe, **call)
    finally:
        replaced.put_back(mark)
    if not got:
        raise RuntimeError(
            f"guide: {type(pipe).__name__} finished without calling its {type(inner_denoiser(denoisers[0])).__name__}: "
            "guidance cannot act"
        )
    return got


def _leave_nothing_behind(replaced: Replaced, pipe: Any, denoisers: list[Denoiser]) -> None:
    """Whatever changes from now on in pipeline, scheduler, processors and torch's random state is put back."""
    for owner in (pipe, getattr(pipe, "scheduler", None)):
        if hasattr(owner, "__dict__"):
            replaced.later(functools.partial(_put_attributes_back, owner, dict(owner.__dict__)))
    modules = [module for denoiser in denoisers for module in inner_denoiser(denoiser).modules()]
    processors = [(x, x.processor) for x in modules if hasattr(x, "processor")]
    replaced.later(functools.partial(_put_processors_back, processors))
    replaced.later(functools.partial(torch.random.set_rng_state, torch.random.get_rng_state()))
    device = torch.device(getattr(pipe, "_execution_device", "cpu"))
    if device.type != "cpu":
        module = torch.get_device_module(device)
        current = module.current_device() if device.index is None else device.index
        replaced.later(functools.partial(module.set_rng_state, module.get_rng_state(current), current))


def _put_attributes_back(owner: Any, before: Mapping[str, Any]) -> None:
    """One by one and only those that differ: there is no moment in which the others are not there."""
    for name in [name for name in owner.__dict__ if name not in before]:
        owner.__dict__.pop(name, None)
    for name, value in before.items():
        if name not in owner.__dict__ or owner.__dict__[name] is not value:
            owner.__dict__[name] = value


def _put_processors_back(processors: list[tuple[Layer, Any]]) -> None:
    for module, processor in processors:
        if getattr(module, "processor", None) is not processor:
            put_processor(module, processor)


def _with_negative(function: Callable[..., Any], pipe: Any, arguments: Mapping[str, Any],
                   negative: Negative) -> dict[str, Any]:  # fmt: skip
    prompts = prompt_count(pipe, arguments)
    # Left out: what belongs to the positive (prompt_2, prompt_embeds, prompt_attention_mask, ...), and the
    # ready-made unconditional text, which might not go with the negative's and whose rows are not used.
    call = {k: v for k, v in arguments.items()
            if (not k.startswith(_READY_MADE) or k == "prompt_template") and k not in ("prompt", "callback_steps", *CALLBACKS)
            and not (k.startswith("negative_") and "ip_adapter" not in k and (v is None or _is_text(v)))}  # fmt: skip
    if isinstance(negative, Mapping):
        known = inspect.signature(function).parameters
        call["prompt"] = None
        call |= {k: None for k in known if k.startswith("negative_prompt")}
        for name, value in negative.items():
            positive = name.removeprefix("negative_")
            if positive != name and positive in known:
                raise ValueError(
                    f"guide: negative_prompt has the key {name}; its texts go under the names that {type(pipe).__name__}'s call "
                    f"gives the prompt's: write {{'{positive}': ...}}"
                )
            if name not in known or not name.startswith(_READY_MADE):
                raise ValueError(f"guide: {type(pipe).__name__} takes no ready-made text named {name}")
            in_list = isinstance(value, list) and all(isinstance(x, Tensor) for x in value)
            if not isinstance(value, Tensor) and not in_list:
                raise TypeError(f"guide: negative_prompt['{name}'] must be a tensor, got {type(value).__name__}")
            if name == "prompt_cu_seqlens":  # Kandinsky 5: where each text ends
                call |= {name: value, f"negative_{name}": value}
                continue
            if len(value) not in (1, prompts):
                raise ValueError(f"guide: negative_prompt['{name}'] must have batch {prompts} or 1, got {len(value)}")
            if in_list:
                call[name] = value * (prompts // len(value))
            else:
                call[name] = value.expand(prompts, *value.shape[1:])
            if f"negative_{name}" in known:  # so that nothing needs encoding
                call[f"negative_{name}"] = call[name]
    else:
        encoders = [name for name in vars(pipe) if name.startswith("text_encoder")]
        dropped = bool(encoders) and all(getattr(pipe, name) is None for name in encoders)
        if (
            dropped and arguments.get("prompt") is None
        ):  # else the pipeline has another way to encode it, or says so itself
            raise ValueError(
                f"guide: negative_prompt is text, and this {type(pipe).__name__} has no text encoder ({', '.join(encoders)}: "
                "None): give ready-made text, {'prompt_embeds': ...} and what else its call takes for a prompt, which "
                "encode_prompt gives while the text encoders are there"
            )
        texts = [negative] * prompts if isinstance(negative, str) else negative
        if len(texts) != prompts:
            raise ValueError(f"guide: negative_prompt must be one text or {prompts} like prompt, got {len(texts)}")
        given, unconditional = arguments.get("prompt"), arguments.get("negative_prompt")
        call["prompt"] = texts[0] if isinstance(given, (str, Mapping)) else texts
        if given is None and isinstance(unconditional, str):  # pipelines want it of the same type as prompt
            call["negative_prompt"] = [unconditional] * prompts
    if call.get("generator") is not None:
        call["generator"] = _clone(call["generator"])
    return call


def _is_text(x: Any) -> bool:
    return isinstance(x, Tensor) or (isinstance(x, list) and any(isinstance(y, Tensor) for y in x))


def _clone(generator: Any) -> Any:
    if isinstance(generator, (list, tuple)):
        return [_clone(x) for x in generator]
    return torch.Generator(device=generator.device).set_state(generator.get_state())
