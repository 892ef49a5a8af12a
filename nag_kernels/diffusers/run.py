# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""One guided call of a pipeline, from its first call of the denoiser to its last."""

import functools
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from .attention.base import Layer, PackedText, SharedText
from .attention.dual_forward import DualForwardRun
from .attention.pooled_modulation import negative_modulation
from .attention.text_modules import TextModule, run_once_per_prompt
from .compatibility import check_calls, check_gradients, head_mesh, sequence_mesh
from .denoiser_calls import Denoiser, as_they_came, denoiser_arguments, inner_denoiser
from .interception import contexts_noticed, intercepted
from .models.registry import spec_of
from .packing import Packer
from .restore import Replaced
from .schedule import Steps
from .turns import plain_call, take, turn_of


class GuidedRun:
    """Stands for the denoisers during one call of the pipeline."""

    def __init__(
        self, guidance: Any, pipe: Any, denoiser: Denoiser, negative: Mapping[str, Any], images: int, halves: bool
    ):  # fmt: skip
        """guidance: the settings, `guide._Guidance`; the others as in `Packer`."""
        self.guidance, self.pipe, self.spec = guidance, pipe, spec_of(denoiser)
        self.thread = threading.get_ident()
        self.calls = self.guided = 0
        self.conditional = self.unconditional = 0  # calls that were told apart by their sample and text
        self.rests = False
        start, end, sigma_end = guidance.window
        self.steps = Steps(pipe, start, end, sigma_end, self.spec)
        self.latest: tuple[int | None, Any] = (None, None)  # rows and timestep of the latest guided call
        self.context: str | None = None  # what the pipeline calls the running call: "cond", "uncond", ...
        self.seen: tuple[Any, Any, Any] = (
            None,
            None,
            None,
        )  # sample, text and timestep of the latest call that was not unconditional
        self.keeps = self.spec.keeps_text
        self.texts: list[Any] = []  # text and masks of the latest guided call, before packing
        sequence, heads = sequence_mesh(denoiser), head_mesh(denoiser)
        self.shared = SharedText(
            PackedText(
                rule=guidance.rule,
                negative_logit_bias=guidance.bias,
                watch=guidance.watch,
                sequence_group=None if sequence is None else sequence.get_group(),
                head_group=None if heads is None else heads.get_group(),
            )
        )
        self.meshes = sequence, heads
        self.packer = Packer(self.spec, negative, images, halves, guidance.pad, self.shared, sequence)

    def stand_in(self, replaced: Replaced, denoiser: Denoiser, sites: list[Layer]) -> None:
        """Takes the calls of `denoiser` until `replaced` is put back."""
        if self.meshes != (sequence_mesh(denoiser), head_mesh(denoiser)):
            raise ValueError(f"guide: the denoisers of {type(self.pipe).__name__} must be spread over the same devices")
        ours = sites if self.spec.dual_forward is None else ()
        processors = [(site, site.processor, self.spec.replaced(site.processor, self.shared)) for site in ours]
        text_modules = list(self.spec.text_modules(inner_denoiser(denoiser)))

        def call(*args: Any, **kwargs: Any) -> Any:
            return self._call(replaced, denoiser, original, steered, processors, text_modules, args, kwargs)

        contexts_noticed(replaced, denoiser, self.enter)
        steered: Callable[..., Any]
        original: Callable[..., Any]
        steered = original = denoiser._call_impl  # for the calls of other threads that come at once
        steered = original = intercepted(replaced, denoiser, call)
        if self.spec.dual_forward is not None:
            steered = DualForwardRun(
                original, denoiser, sites, self.spec.dual_forward, self.shared, self.packer.negative_for, replaced
            )

    def _call(
        self, replaced: Replaced, denoiser: Denoiser, original: Callable[..., Any], steered: Callable[..., Any],
        processors: list[tuple[Layer, Any, Any]], text_modules: list[TextModule], args: tuple[Any, ...], kwargs: dict[str, Any],
    ) -> Any:  # fmt: skip
        """processors: (layer, its processor, ours) of each."""
        if threading.get_ident() != self.thread:
            return plain_call(denoiser, original, args, kwargs)
        if self.rests:
            return original(*args, **kwargs)
        arguments = denoiser_arguments(denoiser, args, kwargs)
        self.calls += 1
        for name in self.spec.must_be_none:
            if arguments.get(name) is not None:
                raise ValueError(f"guide: {name} must be None in the denoiser's calls, got {arguments[name]!r:.60}")
        if self._is_unconditional(arguments) or not self.steps.visit(arguments):
            return original(*args, **kwargs)
        check_gradients(denoiser)
        self._keep_texts(arguments)
        arguments |= self.packer.pack(arguments)
        self._check_rows(arguments.get(self.spec.timestep))
        self._set_settings()
        self.guided += 1
        if self.guidance.watch is not None:
            self.guidance.watch.begin(
                denoiser, processors, self.steps.visits - 1, self.packer.rows > self.packer.images
            )
        sites = [site for site, _, _ in processors]
        check_modulation, mark = None, replaced.mark()
        try:
            take(turn_of(denoiser, "layers"), replaced)
            for site, _, ours in processors:
                ours.text_calls = 0
                replaced.processor(site, ours)
            if self.guidance.negative_pooled:
                pooled = self.packer.pooled(arguments)
                check_modulation = negative_modulation(
                    replaced, inner_denoiser(denoiser), sites, self.shared.packed, pooled
                )
            run_once_per_prompt(replaced, text_modules, self.shared)
            positional, named = as_they_came(denoiser, args, arguments)
            result = steered(*positional, **named)
        finally:
            replaced.put_back(mark)
        if check_modulation is not None:
            check_modulation()
        check_calls(denoiser, {site: ours.text_calls for site, _, ours in processors}, arguments)
        return result

    def enter(self, context: str | None) -> None:
        by_guider = {"pred_cond": "cond", "pred_uncond": "uncond"}
        context = by_guider.get(context, context) if context else context  # where a guider makes the calls
        if context not in (None, "cond", "uncond", "cond_uncond") and not self.rests:
            raise RuntimeError(
                f"guide: {type(self.pipe).__name__} calls its denoiser for '{context}', which is not known"
            )
        self.context = context

    def _is_unconditional(self, arguments: Mapping[str, Any]) -> bool:
        """Whether this is the unconditional call of a step, of models for which classifier-free guidance calls twice.

        A pipeline with `cache_context` says which call is which. Without it the conditional call comes first; a second call in
        the same step with a different text is the unconditional one. Its latents may be the same tensor or a new one.
        """
        if not self.spec.two_calls:
            return False
        if self.context is not None:
            return self.context == "uncond"
        sample = arguments.get("hidden_states", arguments.get("sample"))
        text, when = arguments.get(next(iter(self.spec.text))), arguments.get(self.spec.timestep)
        last_sample, last_text, last_time = self.seen
        another = text is not last_text and last_text is not None
        if another and (sample is last_sample or _is_other_text(text, when, last_text, last_time)):
            self.unconditional += 1
            return True
        self.conditional += 1
        self.seen = (sample, text, when)
        return False

    def _keep_texts(self, arguments: Mapping[str, Any]) -> None:
        """Keys and values of the texts stay from step to step as long as the pipeline gives the same ones."""
        texts = [arguments.get(name) for name in (*self.spec.text, *self.spec.masks)]
        same = len(texts) == len(self.texts) and all(x is y for x, y in zip(texts, self.texts, strict=True))
        self.texts = texts
        if not self.keeps or torch.is_grad_enabled():
            self.shared.change(kept=None)
        elif not same or self.shared.packed.kept is None:
            self.shared.change(kept={})

    def resting(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """The same callback; what it does with the denoiser (by another pipeline, say) is its own and not steered.

        It may change weights or write into the texts, so nothing is kept from step to step beside it.
        """
        self.keeps = False
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):  # pipelines look for these classes
            return callback

        @functools.wraps(callback)
        def rested(*args: Any, **kwargs: Any) -> Any:
            self.rests = True
            try:
                return callback(*args, **kwargs)
            finally:
                self.rests = False

        return rested

    def _check_rows(self, timestep: Any) -> None:
        rows, (before, when) = self.packer.rows, self.latest
        self.latest = (rows, timestep)
        if before not in (None, rows) and _number(when) == _number(timestep):
            raise ValueError(
                f"guide: the denoiser was called with {before} and then {rows} texts in one step (guidance that skips "
                "layers or attends to itself does so); whether the second is to be guided cannot be told"
            )

    def _set_settings(self) -> None:
        """One value for each row; the unconditional rows of classifier-free guidance are not steered."""
        rows, images = self.packer.rows, self.packer.images
        known = self.shared.packed.nag_scale
        if known is not None and known.shape[0] == rows:
            return
        neutral = (1.0 if self.guidance.rule == "nag" else 0.0, math.inf, 1.0)
        steered = [True] * images + [False] * (rows - images)
        if not self.spec.prompt_first:
            steered.reverse()
        values = [[ours if yes else plain for yes in steered]
                  for plain, ours in zip(neutral, self.guidance.settings, strict=True)]  # fmt: skip
        scale, tau, alpha = torch.tensor(values, dtype=torch.float32, device=self.packer.device).unbind()
        has_text = None
        if self.guidance.rule == "vsf" and rows > images:  # it has no neutral scale
            has_text = torch.tensor(steered, device=self.packer.device)
        self.shared.change(nag_scale=scale, nag_tau=tau, nag_alpha=alpha, steered=has_text)


def _is_other_text(text: Any, when: Any, last_text: Any, last_time: Any) -> bool:
    """In the same step, and not the last text converted once more."""
    return last_text is not None and _number(when) == _number(last_time) and not torch.equal(text, last_text)


def _number(timestep: Any) -> float:
    """The largest: frames that are given have time 0 in Wan 2.2."""
    return math.nan if timestep is None else float(timestep.max() if isinstance(timestep, Tensor) else timestep)
