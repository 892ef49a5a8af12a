# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The negative's texts that were recorded in earlier calls, and when they may be used again."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .denoiser_calls import Denoiser, inner_denoiser
from .models.registry import spec_of
from .modular import parts_with_state
from .text_origin import TextOrigin, tensors_in
from .unchanged import NotComparable, Unchanged, form

_MOST = 8  # recorded calls that are kept
# What no text is made by. It may stand here or not: a text that it has a part in is not used again.
_NOT_FOR_TEXT = ("vae", "controlnet", "image_encoder", "safety_checker", "vocoder", "audio_vae")


@dataclasses.dataclass(frozen=True)
class RecordedCall:
    """A call of the denoiser that was not carried out.

    arguments: of forward, by name. context: the pipeline's name for it (`cache_context`), or None.
    """

    arguments: dict[str, Any]
    context: str | None


class KnownTexts:
    """Of one pipeline, for as long as its guidance is on.

    A recorded call may stand for another one if that would come out the same, to the bit. So it must be made of token ids and
    weights alone (`text_origin.TextOrigin`); the arguments of both calls must be the same, but for the content of tensors and
    images and the state of generators, which then have no part in it; and whatever encodes must be unchanged
    (`unchanged.Unchanged`). Where any of this cannot be told, the call is recorded anew.
    """

    def __init__(self) -> None:
        self._calls: dict[Any, RecordedCall] = {}
        self._encoding: _Encoding | None = None

    def forget(self) -> None:
        self._calls, self._encoding = {}, None

    def find(self, pipeline: "Pipeline", call: Mapping[str, Any], place: tuple[int, bool]) -> "Recording":
        """place: how many calls come before it, and whether it has another text than the negative."""
        try:
            key, encoding = (place, form(call)), self._encoding
            if encoding is None or not encoding.unchanged(pipeline):
                self.forget()
                self._encoding = encoding = _Encoding(pipeline)
        except NotComparable:
            self.forget()
            return Recording(self, pipeline, place, None, None, None)
        if (found := self._calls.get(key)) is not None:
            return Recording(self, pipeline, place, key, _copied(found), None)
        texts = list(tensors_in(pipeline.negative))
        weights = [x for x in encoding.state.tensors if not any(x is y for y in texts)]
        return Recording(self, pipeline, place, key, None, TextOrigin(weights, tensors_in(call), texts))

    def keep(self, pipeline: "Pipeline", key: Any, recorded: RecordedCall) -> None:
        encoding = self._encoding
        if encoding is None or not encoding.state.same_weights():
            return
        if not encoding.unchanged(pipeline):  # encoders set something up when they run for the first time
            self.forget()
            try:
                self._encoding = _Encoding(pipeline)
            except NotComparable:
                return
        self._calls[key] = _copied(recorded)
        while len(self._calls) > _MOST:
            del self._calls[next(iter(self._calls))]


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """Whose calls are recorded. function: its call. models: types and devices of the weights of each denoiser."""

    function: Callable[..., Any]
    pipe: Any
    denoisers: list[Denoiser]
    models: list[Any]
    negative: Any


@dataclasses.dataclass
class Recording:
    """found: what is known of the call. origin: watches the dry run where that is not known and might be used again."""

    texts: KnownTexts
    pipeline: Pipeline
    place: tuple[int, bool]
    key: Any
    found: RecordedCall | None
    origin: TextOrigin | None

    def keep(self, recorded: RecordedCall) -> None:
        """Keeps what has been recorded, where it may be used again."""
        if self.origin is None:
            return
        spec = spec_of(self.pipeline.denoisers[0])
        needed = {*spec.text, *(name.partition(".")[0] for name in spec.masks), spec.pooled}
        needed |= {mask for name, mask in spec.concatenated if name in spec.text and mask is not None}
        needed |= set() if spec.dual_forward is None else set(spec.dual_forward.text)
        known = {name for name, value in recorded.arguments.items() if _may_be_kept(value) and self.origin.knows(value)}
        if any(recorded.arguments.get(name) is not None and name not in known for name in needed):
            return
        # A timestep is made of the scheduler's, and says only which calls are of one step.
        kept = {name: x for name, x in recorded.arguments.items() if name in known or name == spec.timestep}
        self.texts.keep(self.pipeline, self.key, RecordedCall(kept, recorded.context))


class _Encoding:
    """All that a pipeline encodes a text with, but for the arguments of its call."""

    def __init__(self, pipeline: Pipeline):
        pipe, negative = pipeline.pipe, pipeline.negative
        others = [*pipeline.denoisers, *map(inner_denoiser, pipeline.denoisers), *parts_with_state(pipe)]
        roots = [
            x for name, x in _public(pipe).items() if name not in _NOT_FOR_TEXT and not any(x is y for y in others)
        ]
        given = dict(negative) if isinstance(negative, Mapping) else negative
        self.state = Unchanged([*roots, given], weights=True, without=others)
        self._identities, self._values = _identities(pipeline), self._values_of(pipeline)

    def unchanged(self, pipeline: Pipeline) -> bool:
        now = _identities(pipeline)
        same = len(now) == len(self._identities) and all(x is y for x, y in zip(now, self._identities, strict=True))
        return same and self._values_of(pipeline) == self._values and self.state()

    def _values_of(self, pipeline: Pipeline) -> Any:
        pipe = pipeline.pipe
        public = _public(pipe)
        plain = {name: (type(x), x) for name, x in public.items() if isinstance(x, (bool, int, float, str))}
        schedulers = [form(dict(getattr(x, "config", None) or {})) for x in parts_with_state(pipe)]
        kinds = {x.device.type for x in self.state.tensors}
        modes = (
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
            [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in sorted(kinds)],
            torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
        )  # fmt: skip
        lengths = [len(x) for name, x in public.items() if name.startswith("tokenizer") and hasattr(x, "__len__")]
        return plain, schedulers, modes, lengths, pipeline.models


def _public(pipe: Any) -> dict[str, Any]:
    """The attributes of a pipeline that are no state of its latest call."""
    return {name: x for name, x in vars(pipe).items() if not name.startswith("_")}


def _identities(pipeline: Pipeline) -> list[Any]:
    objects = [x for x in _public(pipeline.pipe).values() if not isinstance(x, (bool, int, float, str))]
    encode = getattr(type(pipeline.pipe), "encode_prompt", None)
    configs = [getattr(inner_denoiser(x), "_internal_dict", None) for x in pipeline.denoisers]
    return [pipeline.function, encode, *configs, *objects]


def _may_be_kept(value: Any) -> bool:
    return all(not x.requires_grad for x in tensors_in(value))


def _copied(recorded: RecordedCall) -> RecordedCall:
    """With tensors of its own, so that nobody writes into what is kept. One tensor under two names stays one."""
    copies: dict[int, Tensor] = {}

    def copy(x: Any) -> Any:
        if isinstance(x, Tensor):
            return copies.setdefault(id(x), x.clone())
        if isinstance(x, Mapping):
            return {name: copy(y) for name, y in x.items()}
        if isinstance(x, (list, tuple)):
            return type(x)(map(copy, x))
        return x

    return RecordedCall(copy(recorded.arguments), recorded.context)
