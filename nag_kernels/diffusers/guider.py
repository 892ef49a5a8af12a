# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Guidance as a part of a modular pipeline: a guider, for those who put pipelines together from blocks."""

import math
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import torch
from diffusers import ModularPipeline, ModularPipelineBlocks
from diffusers.configuration_utils import register_to_config
from diffusers.guiders import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from nag_kernels.checks import check_rule
from nag_kernels.layer_choice import LayerChoice, in_share

from .denoiser_calls import Denoiser, denoiser_arguments, forward_parameters, inner_denoiser
from .guard import intercepted
from .guide import guide
from .interception import Interception
from .models.registry import spec_of
from .restore import Replaced
from .schedule import Scale, with_numbers
from .settings_as_attributes import Setting


class NormalizedAttentionGuidance(BaseGuidance):
    """A guider of diffusers that steers away from the pipeline's `negative_prompt` inside attention, as `guide` does, with one
    call of the denoiser in each step.

        pipe.update_components(guider=NormalizedAttentionGuidance())
        image = pipe(prompt="a portrait of a fox", negative_prompt="blurry", output="images")[0]

    It takes the place of `ClassifierFreeGuidance`, and is saved and loaded with the pipeline. To use both at once, keep
    `ClassifierFreeGuidance` and write `with guide(pipe, "blurry"):`.

    The blocks prepare the negative prompt as they would for the unconditional call. The arguments of that call are read, and the
    call itself does not run.

    Args:
        nag_scale, nag_tau, nag_alpha, rule, negative_logit_bias, layers, negative_pooled: as in `guide`; nag_scale is one number.
        start, stop: step i of n is guided if start <= i / n < stop. In the other steps the denoiser runs untouched.
        enabled: False leaves all steps untouched. `disable` only warns and `enable` does nothing, because blocks call them for
            reasons of their own. (SDXL's block does so for a UNet that embeds its guidance scale, because such a UNet has no
            classifier-free guidance.)

    Raises: ValueError or TypeError for settings out of range. The pipeline's call raises what `guide` raises for its denoiser,
        ValueError if the blocks make no negative text, and RuntimeError if they do not call the denoiser once between
        `prepare_models` and `cleanup_models`.
    """

    nag_scale, nag_tau, nag_alpha, rule, negative_logit_bias, layers, negative_pooled = (Setting() for _ in range(7))
    start, stop, enabled = (Setting() for _ in range(3))

    # In the order of the calls: the first reads what the second needs.
    _input_predictions = ["pred_uncond", "pred_cond"]

    @register_to_config
    def __init__(
        self, nag_scale: float | None = None, nag_tau: float | None = None, nag_alpha: float | None = None, rule: str = "nag",
        negative_logit_bias: float = 0.0, layers: LayerChoice | None = None, negative_pooled: bool = False, start: float = 0.0,
        stop: float = 1.0, enabled: bool = True,
    ):  # fmt: skip
        super().__init__(start, stop, enabled)
        if isinstance(layers, (range, set, frozenset)):
            self.register_to_config(layers=sorted(layers))  # as it can be saved
        given = {"nag_scale": nag_scale, "nag_tau": nag_tau, "nag_alpha": nag_alpha}
        self.register_to_config(**with_numbers({**given, "negative_logit_bias": negative_logit_bias}))
        check_rule("NormalizedAttentionGuidance", rule)
        if nag_scale is not None and Scale(nag_scale, rule).number is None:
            raise ValueError(
                f"NormalizedAttentionGuidance: nag_scale must be one number, got {nag_scale!r:.60}; `guide` takes one for each "
                "step"
            )
        self.calls: list[str] = []  # of the running step, by the predictions that they give
        self.awaited = Replaced()  # what waits for the denoiser's next call
        self.negative: dict[str, Any] = {}  # arguments of the negative's call

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments that it was made with, and what has been changed since. They are saved with the pipeline."""
        return {
            name: self.config[name] for name, x in vars(NormalizedAttentionGuidance).items() if isinstance(x, Setting)
        }

    def change(self, **settings: Any) -> None:
        """Changes some of the settings, as `guider.nag_scale = 3.0` changes one; the calls that follow have them. Raises as the
        constructor does."""
        checked = NormalizedAttentionGuidance(**self.settings | settings).settings
        self.register_to_config(**{name: checked[name] for name in settings})

    def disable(self) -> None:
        warnings.warn(
            "NormalizedAttentionGuidance: disable() leaves it on, as blocks call that for models without classifier-free "
            "guidance; for unguided calls make it with enabled=False",
            stacklevel=2,
        )

    def enable(self) -> None:
        pass

    # --- which calls a step has --------------------------------------------------------------------------------------

    @property
    def num_conditions(self) -> int:
        """2 where the blocks are to prepare a negative, whatever the step."""
        return 2 if self.enabled else 1

    @property
    def is_conditional(self) -> bool:
        return self._count_prepared == len(self.calls)

    def _step_has(self) -> list[str]:
        step, steps = self._step, self._num_inference_steps
        stop = self.stop if self.stop < 1 else math.inf  # a loop may have more steps than it says (Helios')
        inside = step is None or steps is None or in_share(step, steps, self.start, stop)
        self.calls = self._input_predictions[:] if self.enabled and inside else ["pred_cond"]
        return self.calls

    def prepare_inputs(self, data: Any) -> list[Any]:
        return [self._prepare_batch(data, int(name == "pred_uncond"), name) for name in self._step_has()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        of = self._prepare_batch_from_block_state
        return [of(input_fields, data, int(name == "pred_uncond"), name) for name in self._step_has()]

    # --- the calls ----------------------------------------------------------------------------------------------------

    def prepare_models(self, denoiser: Denoiser) -> None:
        super().prepare_models(denoiser)
        self.awaited.put_back()
        if len(self.calls) == 1:
            return
        reads = self.calls[self._count_prepared - 1] == "pred_uncond"
        waiting, thread, loop = Replaced(), threading.get_ident(), _frame_of_loop()
        self.awaited = waiting

        def call(place: Interception, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return place.plain(*args, **kwargs)
            waiting.put_back()
            if loop is not None and not any(
                frame is loop for frame in _frames()
            ):  # that raised before it called the denoiser
                return place.plain(*args, **kwargs)
            return self._read(denoiser, args, kwargs) if reads else self._guided(denoiser, args, kwargs)

        intercepted(waiting, denoiser, call)

    def cleanup_models(self, denoiser: Denoiser) -> None:
        if self.awaited.mark():
            self.awaited.put_back()
            kind = type(inner_denoiser(denoiser)).__name__
            raise RuntimeError(
                f"NormalizedAttentionGuidance: the block did not call its {kind} between prepare_models and cleanup_models, so "
                "nothing was guided (calls of its forward method are not seen)"
            )

    def _read(self, denoiser: Denoiser, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        arguments = denoiser_arguments(denoiser, args, kwargs)
        spec, kind = spec_of(denoiser), type(inner_denoiser(denoiser)).__name__
        text, noisy = next(iter(spec.text)), forward_parameters(denoiser)[0]
        if arguments.get(text) is None:
            raise ValueError(
                f"NormalizedAttentionGuidance: the blocks made no negative text for {kind} ({text} is None); give the call a "
                "negative_prompt, or its ready-made text"
            )
        own = {noisy, spec.timestep} - set(spec.text)  # the same in both calls
        self.negative = {name: x for name, x in arguments.items() if name not in own}
        return Transformer2DModelOutput(sample=_nothing_like(arguments[noisy]))

    def _guided(self, denoiser: Denoiser, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        negative, self.negative = self.negative, {}
        of_guide = {name: x for name, x in self.settings.items() if name not in ("start", "stop", "enabled")}
        with guide(denoiser, negative, **of_guide):
            return denoiser(*args, **kwargs)

    def __call__(self, data: list[Any]) -> GuiderOutput:
        (prediction,) = (x.noise_pred for x in data if getattr(x, self._identifier_key) == "pred_cond")
        return self.forward(prediction)

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided prediction as it is; there is no unconditional one."""
        return GuiderOutput(pred=pred_cond, pred_cond=pred_cond, pred_uncond=None)


def _frames() -> Iterator[FrameType]:
    """Of this thread, the innermost first."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def _frame_of_loop() -> FrameType | None:
    """Of the call of the modular pipeline that this thread is in, else of the outermost blocks."""
    blocks = None
    for frame in _frames():
        caller = frame.f_locals.get("self") if frame.f_code.co_name == "__call__" else None
        if isinstance(caller, ModularPipeline):
            return frame
        if isinstance(caller, ModularPipelineBlocks):
            blocks = frame
    return blocks


def _nothing_like(x: Any) -> Any:
    """In the place of an output that is not used."""
    return [_nothing_like(y) for y in x] if isinstance(x, (list, tuple)) else torch.zeros_like(x)
