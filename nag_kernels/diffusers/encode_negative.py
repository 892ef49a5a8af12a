# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""A negative that is encoded once, by the pipeline itself, and then used in any number of calls."""

import inspect
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .denoiser_calls import Denoiser, inner_denoiser
from .models.registry import find_denoisers, find_layers, spec_of
from .modular import is_modular
from .negative_arguments import READY_MADE, checked_negative, is_text
from .negative_prompt import NegativeRecorder, RecordedCall
from .owners import plain_call_of
from .pipeline_call import COUNTS, call_arguments, naming_call
from .restore import Replaced, put_back_after
from .turns import run_turns, take, wait_for_calls_begun


def encode_negative(pipe: Any, negative_prompt: str | list[str], /, **call: Any) -> dict[str, Any]:
    """Encodes a negative prompt once, and returns ready-made text for `guide`, `guided` and `enable_guidance`:

        negative = encode_negative(pipe, "blurry")
        for prompt in prompts:
            guided(pipe, negative)(prompt)

    A negative prompt that is given as text is encoded again in each guided call, with the arguments of that call. The result of
    this function is right as long as the text encoders, and the arguments on which the encoding depends, stay as they are. After
    this call the text encoders may be dropped.

    Args:
        pipe: a diffusers pipeline that takes ready-made text; docs/diffusers.md names those that do not.
        negative_prompt: one text for all prompts, or a list with one text for each prompt.
        call: those arguments of the pipeline's call on which the encoding depends (max_sequence_length, clip_skip, ...), and
            those without which the pipeline cannot be called (for example an image). Texts of the unconditional branch
            (negative_prompt, ...) make no difference.

    Returns: a mapping. Its keys are the names under which the pipeline's call takes a prompt's embeddings (prompt_embeds, ...),
        and its values are tensors on the pipeline's device.
    Raises: ValueError if the pipeline takes no ready-made text, or if the denoiser gets other arguments with it than with the
        text; TypeError for a pipeline class, for a negative prompt that is not text, and for another text of the prompt
        (prompt_2, ...) among the arguments.
    """
    if isinstance(pipe, (type, Module)) or not callable(pipe):
        raise TypeError(f"encode_negative: pipe must be a loaded diffusers pipeline, got {_named(pipe)}")
    if isinstance(checked_negative(negative_prompt), Mapping):
        raise TypeError("encode_negative: negative_prompt must be a text or a list of texts, got a mapping")
    if is_modular(pipe):
        raise ValueError(
            f"encode_negative: {type(pipe).__name__} is a modular pipeline, whose blocks give the ready-made text: call its text "
            "encoding blocks with the negative for the prompt"
        )
    return put_back_after(lambda replaced: _encoded(replaced, pipe, negative_prompt, call))


def _named(x: Any) -> str:
    return f"the class {x.__name__}" if isinstance(x, type) else type(x).__name__


def _encoded(replaced: Replaced, pipe: Any, negative: str | list[str], call: dict[str, Any]) -> dict[str, Any]:
    denoisers = find_denoisers(pipe)
    for turn in run_turns(denoisers):
        take(turn, replaced)
    wait_for_calls_begun([pipe])
    function = plain_call_of(pipe)
    parameters = inspect.signature(naming_call(function, pipe)).parameters
    kind = type(pipe).__name__
    names = [x for x in parameters if x.startswith(READY_MADE)]
    instead = "so a negative cannot be encoded in advance; give `guide` the negative as text"
    if not names:
        raise ValueError(f"encode_negative: a call of {kind} takes no ready-made text, {instead}")
    for name, x in call.items():
        of_words = isinstance(x, str) or (isinstance(x, list) and x and isinstance(x[0], str))
        if (of_words or is_text(x)) and name.startswith(("prompt", *READY_MADE)):
            raise TypeError(
                f"encode_negative: {name} is a text of the prompt, and the negative is encoded from negative_prompt alone: leave "
                f"{name} out"
            )
    # Without an unconditional text and with one image, so that a text is what its encoders have made of it and no more.
    alone = {name: spec_of(denoisers[0]).cfg_above for name in _CFG if name in parameters}
    alone |= dict.fromkeys((name for name in COUNTS if name in parameters), 1)
    given = {name: x for name, x in call.items() if not name.startswith("negative_")} | alone | {"prompt": negative}
    arguments = call_arguments(function, pipe, (), given)
    found = {denoiser: find_layers(denoiser) for denoiser in denoisers}
    reader = _Reader(function, pipe, found, arguments, negative)
    of_text = reader.first()
    prompts = 1 if isinstance(negative, str) else len(negative)
    text = {name: _once(x, prompts) for name in names if is_text(x := reader.variables.get(name))}
    if not text:
        raise ValueError(f"encode_negative: no ready-made text can be read from a call of {kind}, {instead}")
    why: Exception | None = None
    same = False
    try:
        ready_made = NegativeRecorder(function, pipe, found, arguments, text).first()
        same = _same(of_text.arguments, ready_made.arguments)
    except Exception as error:  # of the pipeline, which is not satisfied with what was found
        why = error
    if not same:
        denoiser = type(inner_denoiser(denoisers[0])).__name__
        raise ValueError(
            f"encode_negative: {kind} does not call its {denoiser} with the same text for a ready-made negative "
            f"({', '.join(text)}) as for the text itself, {instead}"
        ) from why
    if hasattr(pipe, "maybe_free_model_hooks"):
        pipe.maybe_free_model_hooks()
    return text


_CFG = ("guidance_scale", "true_cfg_scale", "audio_guidance_scale")


class _Reader(NegativeRecorder):
    """Reads the variables of the pipeline's call when that comes to its denoiser."""

    variables: Mapping[str, Any] = {}

    def reached(
        self, denoiser: Denoiser, args: tuple[Any, ...], kwargs: Mapping[str, Any], context: str | None
    ) -> RecordedCall:
        code = inspect.unwrap(naming_call(self.function, self.pipe)).__code__
        frame = sys._getframe()
        while frame.f_back is not None and frame.f_code is not code:
            frame = frame.f_back
        self.variables = dict(frame.f_locals) if frame.f_code is code else {}
        return super().reached(denoiser, args, kwargs, context)


def _once(x: Any, prompts: int) -> Any:
    """A text, of rows that the pipeline may have repeated for each image or frame."""
    more = len(x) // prompts
    return x[::more] if more > 1 and more * prompts == len(x) else x


def _same(one: Any, two: Any) -> bool:
    """Whether the arguments of two calls are the same to the bit."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_same(x, two[name]) for name, x in one.items())
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(_same(x, y) for x, y in zip(one, two, strict=True))
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    return type(one) is type(two)
