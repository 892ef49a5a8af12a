# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The arguments of a pipeline's call with the negative in the place of its prompt, all else alike."""

import copy
import inspect
import io
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from .modular import input_names, is_modular
from .pipeline_call import CALLBACKS, naming_call, prompt_count

Negative = str | list[str] | Mapping[str, Tensor]
Change = Callable[[str], str]  # gives another text

RANDOM = (np.random.Generator, np.random.RandomState, random.Random)  # beside torch's generators

READY_MADE = (
    *("prompt_", "pooled_prompt_", "generated_prompt_", "attention_mask", "encoder_attention_mask"),
    *("connector_", "qwen_prompt_", "qwen_attention_mask", "t5_input_ids", "t5_attention_mask"),
    *("text_features", "text_lengths", "cond_input_ids", "text_token_tags"),
)
# These begin like a ready-made prompt: a template, and the text beside a video whose movements are taken (Wan-Animate 2).
NO_PROMPTS = ("prompt_template", "prompt_ref", "prompt_ref_embeds")


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


def with_negative(function: Callable[..., Any], pipe: Any, arguments: Mapping[str, Any], negative: Negative,
                  changed: Change | None) -> dict[str, Any]:  # fmt: skip
    """The arguments of the pipeline's call with the negative for its prompt, or with a changed negative."""
    prompts = prompt_count(pipe, arguments)
    # Left out: what belongs to the positive (prompt_2, prompt_embeds, prompt_attention_mask, ...), and the
    # ready-made unconditional text, which might not go with the negative's and whose rows are not used.
    call = {k: v for k, v in arguments.items()
            if (not k.startswith(READY_MADE) or k in NO_PROMPTS) and k not in ("prompt", "callback_steps", *CALLBACKS)
            and not (k.startswith("negative_") and "ip_adapter" not in k and (v is None or is_text(v)))}  # fmt: skip
    if isinstance(negative, Mapping):
        known = input_names(pipe) if is_modular(pipe) else inspect.signature(naming_call(function, pipe)).parameters
        call["prompt"] = None
        call |= {k: None for k in known if k.startswith("negative_prompt")}
        for name, value in negative.items():
            positive = name.removeprefix("negative_")
            if positive != name and positive in known:
                raise ValueError(
                    f"guide: negative_prompt has the key {name}; its texts go under the names that {type(pipe).__name__}'s call "
                    f"gives the prompt's: write {{'{positive}': ...}}"
                )
            if name not in known or not name.startswith(READY_MADE):
                raise ValueError(f"guide: {type(pipe).__name__} takes no ready-made text named {name}")
            in_list = isinstance(value, list) and all(isinstance(x, Tensor) for x in value)
            if not isinstance(value, Tensor) and not in_list:
                raise TypeError(f"guide: negative_prompt['{name}'] must be a tensor, got {type(value).__name__}")
            if name == "prompt_cu_seqlens":  # Kandinsky 5: where each text ends
                call |= {name: value, f"negative_{name}": value}
                continue
            if name == "text_token_tags":  # MiniMax-H3: of what kind each token is
                call[name] = value
                continue
            if len(value) not in (1, prompts):
                raise ValueError(f"guide: negative_prompt['{name}'] must have batch {prompts} or 1, got {len(value)}")
            if in_list:
                call[name] = value * (prompts // len(value))
            else:
                call[name] = value.expand(prompts, *value.shape[1:])
            if f"negative_{name}" in known:  # so that nothing needs encoding
                call[f"negative_{name}"] = call[name]
            if changed is not None:
                call[name] = _other_embeddings(call[name])
    else:
        why = _cannot_encode(pipe, arguments)
        if why is not None:
            raise ValueError(f"guide: negative_prompt is text, and this {type(pipe).__name__} has no {why}")
        texts = [negative] * prompts if isinstance(negative, str) else negative
        if len(texts) != prompts:
            raise ValueError(f"guide: negative_prompt must be one text or {prompts} like prompt, got {len(texts)}")
        if changed is not None:
            texts = [changed(text) for text in texts]
        given, unconditional = arguments.get("prompt"), arguments.get("negative_prompt")
        call["prompt"] = texts[0] if isinstance(given, (str, Mapping)) else texts
        if unconditional is None and "negative_prompt" in arguments and has_unconditional_text(arguments):
            # Another text, but as many calls of the denoiser.
            call["negative_prompt"] = "" if isinstance(call["prompt"], str) else [""] * prompts
        elif given is None and isinstance(unconditional, str):  # pipelines want it of the same type as prompt
            call["negative_prompt"] = [unconditional] * prompts
    return cloned(call)


def said_not(text: str) -> str:
    """Another text, from its beginning on, as a tokenizer may cut the end off."""
    return f"not {text}"


def in_another_order(text: str) -> str:
    """Another text of the same words."""
    words = text.split()
    return " ".join(reversed(words)) if words != words[::-1] else f"{text} {text}"


def _cannot_encode(pipe: Any, arguments: Mapping[str, Any]) -> str | None:
    """What a pipeline lacks to encode a text in a call with these arguments, and what to do; None where it can."""
    advice = "give ready-made text, {'prompt_embeds': ...} and what else its call takes for a prompt"
    if is_modular(pipe) and "prompt" not in input_names(pipe):
        return f"block that takes a prompt: {advice}, which the blocks that encode one give"
    encoders = [name for name in vars(pipe) if name.startswith("text_encoder")]
    dropped = bool(encoders) and all(getattr(pipe, name) is None for name in encoders)
    if dropped and arguments.get("prompt") is None:  # else it has another way to encode it, or says so itself
        absent = f"text encoder ({', '.join(encoders)}: None)"
        return f"{absent}: {advice}, which encode_prompt gives while the text encoders are there"
    return None


def has_unconditional_text(arguments: Mapping[str, Any]) -> bool:
    """Whether a pipeline's call has ready-made text for the unconditional branch."""
    return any(
        name.startswith("negative_") and "ip_adapter" not in name and is_text(x) for name, x in arguments.items()
    )


def is_text(x: Any) -> bool:
    """Whether an argument is ready-made text: a tensor, or a list with tensors."""
    return isinstance(x, Tensor) or (isinstance(x, list) and any(isinstance(y, Tensor) for y in x))


def _other_embeddings(x: Any) -> Any:
    if isinstance(x, list):
        return [_other_embeddings(y) for y in x]
    return x + 1 if x.is_floating_point() else x


def cloned(arguments: Mapping[str, Any], numbers: bool = True) -> dict[str, Any]:
    """The arguments of a call with copies of all that the call might write into or use up, whatever their names. What is one
    object stays one. Raises TypeError for what can be read once only.

    numbers: whether tensors, arrays and images are copied as well, which may be large.
    """
    for name, x in arguments.items():
        if isinstance(x, Iterator) and not isinstance(x, io.IOBase):
            raise TypeError(
                f"guide: {name} is a {type(x).__name__}, which can be read only once, and guidance also calls the pipeline with "
                "the negative prompt: give a list"
            )
    copies: dict[int, Any] = {}

    def clone(x: Any) -> Any:
        if id(x) not in copies:
            copies[id(x)] = made(x)
        return copies[id(x)]

    def made(x: Any) -> Any:
        if isinstance(x, torch.Generator):
            return torch.Generator(device=x.device).set_state(x.get_state())
        if isinstance(x, RANDOM):
            return copy.deepcopy(x)
        if isinstance(x, Tensor):
            return x.clone() if numbers else x
        if isinstance(x, (np.ndarray, Image)):
            return x.copy() if numbers else x
        if type(x) in (list, tuple):
            return type(x)(map(clone, x))
        return {key: clone(y) for key, y in x.items()} if type(x) is dict else x

    return {name: clone(x) for name, x in arguments.items()}
