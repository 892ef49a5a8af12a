# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`guide`: negative guidance inside attention for an unmodified pipeline, on for a while and gone without a trace."""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from torch import Tensor
from torch.nn import Module

from nag_kernels.checks import check_rule, check_scalars
from nag_kernels.layer_choice import LayerChoice

from .compatibility import check_combination, check_forward
from .denoiser_calls import Denoiser, denoisers_of, inner_denoiser, named_modules
from .guard import forget_the_dead, refused_calls
from .models.registry import Found, find_denoisers, find_layers, further_denoisers, spec_of
from .modular import check_guiders, guider_calls_noticed, is_modular
from .negative_arguments import Negative, checked_negative
from .negative_prompt import Cancelled, NegativeRecorder, cancelled_run
from .own_loop import DenoiserBlock
from .owners import (
    Block,
    OneCall,
    Owner,
    Pipe,
    device_found_once,
    enter,
    leave_all,
    owner_for_everybody,
    pipes_in,
    refuse_nested,
)
from .pipeline_call import call_arguments, image_count, named_by_position, prompt_count, with_callbacks
from .prompt_calls import PromptCalls
from .restore import Replaced, put_back_after
from .run import GuidedRun
from .schedule import Scale, Scales, check_window, number_of
from .turns import is_mine, run_turns, take, wait_for_calls_begun

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _arguments_of(
    function: Callable[Arguments, Any],
) -> Callable[[Callable[..., Result]], Callable[Arguments, Result]]:
    """Gives the decorated function, which hands its arguments on to `function`, the same signature: for a type checker, an
    editor and `help`."""

    def give(ours: Callable[..., Result]) -> Callable[Arguments, Result]:
        own = inspect.signature(ours)
        parameters = inspect.signature(function).parameters.values()
        ours.__dict__["__signature__"] = own.replace(parameters=list(parameters))
        return ours

    return give


def guide(
    pipe: Pipe, negative_prompt: Negative, *, nag_scale: Scales | None = None, nag_tau: float | None = None,
    nag_alpha: float | None = None, rule: str = "nag", negative_logit_bias: float = 0.0, layers: LayerChoice | None = None,
    start: float = 0.0, end: float = 1.0, sigma_end: float | None = None, pad: bool = False,
    negative_pooled: bool = False, unconditional: Mapping[str, Tensor] | None = None,
) -> Block[Pipe] | DenoiserBlock[Pipe]:  # fmt: skip
    """Within the block (`with guide(pipe, "blurry"):`), every call of `pipe` is steered away from `negative_prompt` inside
    attention.

        out = nag_alpha f G + (1 - nag_alpha) Z+,  G = nag_scale Z+ - (nag_scale - 1) Z-,
        f = min(1, nag_tau |Z+|_1 / |G|_1)                    (NAG, arXiv 2505.21179; nag_scale is its phi + 1)
        out = Z+ - nag_scale Z-                               (NASA, arXiv 2412.02687)

    in every layer in which the image attends to text. Z+ is the attention output for the prompt, Z- that for the negative
    prompt. In VSF (arXiv 2508.10931) the image attends to both in one softmax, and the values of the negative prompt are
    multiplied by -nag_scale.

    Args:
        pipe: a diffusers pipeline; docs/models.md lists the supported denoisers. The pipeline may use classifier-free guidance
            as well: the unconditional branch keeps plain attention. Give pipelines that share a denoiser (such as the second
            stage of a hires fix) in a list; each is guided in its own calls.
        negative_prompt: one text for all prompts, a list with one text for each prompt, or a mapping of ready-made text. Its
            keys are the names under which the pipeline's call takes the prompt's embeddings (prompt_embeds,
            prompt_attention_mask, ...). The pipeline itself encodes a text, with the arguments of the running call. For LTX-2
            it may be a mapping of texts for video and sound, {"video": "blurry", "audio": "noise"}, or for one of the two.
        nag_scale, nag_tau, nag_alpha: None takes what the paper uses for this model. A tensor without dimensions is the number in
            it, and must not require a gradient. For a pipeline nag_scale may also be a list with a number for each step of the
            call, or a function nag_scale(i, n) that gives the number for step i of n. The untouched model runs a step whose
            number does nothing (0 for "nasa"; 1 for "nag" if nag_tau is at least 1), also if all of them do nothing.
        rule: "nag", "nasa" or "vsf". nag_scale is the scale of this rule. "nasa" and "vsf" do not use nag_tau and nag_alpha.
        negative_logit_bias: for "vsf" alone, added to the logits of the negative prompt. (The paper of VSF subtracts an offset.)
        layers: the layers to guide; None is all. Numbers count from 0 in the order in which the model runs the layers: "0-9, 12"
            or [0, 1, 2]. Names are those of layers or of parts of the model: "up_blocks", ["transformer_blocks.3", "mid_block"].
            Two floats (start, end) are a share of the depth: layer i of n is guided if start <= i / n < end. In the other layers
            the image attends to the prompt alone. In joint attention the tokens of the negative prompt still pass through
            those layers, because later layers need them.
        start, end: the guided part of the steps, as fractions: step i of n is guided if start <= i / n < end. The untouched
            model runs the other steps. For pipelines alone.
        sigma_end: a noise level of the pipeline's scheduler. In addition to end, only steps above it are guided. For pipelines
            alone.
        pad: False leaves each text as long as it is. True makes the shorter of the two texts, row by row, as long as the longer
            one: its own padding becomes visible, and zeros follow if it has too little.
        negative_pooled: for SD3 and FLUX.1 alone. False modulates both texts by the prompt's pooled text. True modulates the
            negative prompt by its own pooled text, as the published code does.
        unconditional: for a bare denoiser alone (below).

    For a loop of your own, pipe is the denoiser itself (a UNet or a transformer). negative_prompt is then a mapping with the
    text of the negative prompt under the names of the denoiser's forward, with one row or as many rows as images:
    `with guide(unet, {"encoder_hidden_states": negative}):`. Every call of the denoiser in the block is guided in all its rows.
    Under classifier-free guidance give the text of the unconditional branch as well,
    unconditional={"encoder_hidden_states": empty}. Calls with that text, and the half of a batch that has it, are plain.

    The block belongs to the thread that enters it, or to the asyncio task that enters it and to what this task hands to
    `asyncio.to_thread`. Other threads may have blocks of their own on the same pipeline. A call outside of any block is plain.
    Calls that share a denoiser wait for each other.

    Returns: the block, which gives pipe when it is entered. After the block pipe is as it was, also after an exception.
    Raises: ValueError or TypeError for an unsupported denoiser, an attention processor that is not known, settings out of range,
        and no negative text; also, from the pipeline's call, for texts or masks that do not fit. RuntimeError for nested use,
        for a call in which guidance did not act, and at the end of a block in which pipe was never called.
    """
    pipes = pipes_in(pipe)
    if not pipes:
        raise ValueError("guide: pipe must be a pipeline, or a list of at least one, got an empty list")
    if len(set(map(id, pipes))) < len(pipes):
        raise ValueError("guide: a list of pipelines must have each of them once")

    def settings(one: Any) -> _Guidance:
        given, window = (nag_scale, nag_tau, nag_alpha), (start, end, sigma_end)
        return _Guidance(one, negative_prompt, given, rule, negative_logit_bias, window, pad, negative_pooled, layers)

    if isinstance(pipe, Module):
        return DenoiserBlock(pipe, settings, negative_prompt, unconditional)
    if unconditional is not None:
        raise TypeError(
            "guide: unconditional is for a bare denoiser alone; a pipeline knows its own unconditional branch"
        )
    return Block(pipe, settings)


@_arguments_of(guide)
def guided(*arguments: Any, **settings: Any) -> OneCall:
    """A function that makes one guided call of the pipeline: `guided(pipe, "red")(prompt, num_inference_steps=20)`.

    Arguments and errors are those of `guide`. Guidance holds for that call alone, and any number of threads may make such calls.
    `guided` itself checks the settings, before the call.
    """
    pipes, guidance = _block_of_pipelines("guided", arguments, settings).taken()
    if len(pipes) != 1:
        raise ValueError(f"guided: pipe must be one pipeline, got a list of {len(pipes)}: call guided for each")
    refuse_nested(pipes[0])
    return OneCall(pipes[0], guidance(pipes[0]))


def _block_of_pipelines(name: str, arguments: tuple[Any, ...], settings: dict[str, Any]) -> Block[Any]:
    block = guide(*arguments, **settings)
    if isinstance(block, DenoiserBlock):
        block.unused = False
        kind = type(block.denoiser).__name__
        raise TypeError(
            f"{name}: pipe must be a diffusers pipeline, got a model, {kind}; for that write `with guide(model, ...):`"
        )
    return block


@_arguments_of(guide)
def enable_guidance(*arguments: Any, **settings: Any) -> None:
    """Steers every call of `pipe`, in every thread, until `disable_guidance(pipe)`. Arguments and errors are those of `guide`.

    If another thread has a block of `guide` open, the settings of the block hold in it. A block that begins later raises.
    """
    pipes, guidance = _block_of_pipelines("enable_guidance", arguments, settings).taken()
    for pipe in pipes:
        refuse_nested(pipe)
    owners = [Owner(pipe, guidance(pipe), everybody=True) for pipe in pipes]
    try:
        for owner in owners:
            enter(owner)
    except BaseException:
        leave_all(owners)
        raise


def disable_guidance(pipe: Any) -> None:
    """Ends `enable_guidance` of a pipeline, or of each pipeline in a list.

    If guidance was enabled on a pipeline that no longer exists, give another pipeline with the same denoiser. Warns if no call
    was guided. Raises RuntimeError if guidance is not enabled.
    """
    owners = []
    for each in pipes_in(pipe):
        owner = owner_for_everybody(each)
        if owner is not None:
            owners.append(owner)
        elif not forget_the_dead(denoisers_of(each)):
            raise RuntimeError(f"guide: guidance is not enabled on this {type(each).__name__}")
    leave_all(owners)
    if owners and not any(owner.calls for owner in owners):
        warnings.warn(f"disable_guidance: {owners[0].guidance.unused}", stacklevel=2)


class _Guidance:
    """The settings of one `enable_guidance`, and its calls."""

    watch: Any = None  # looks on at every guided layer: `diagnose`

    def __init__(
        self, pipe: Any, negative_prompt: Negative, given: tuple[Scales | None, float | None, float | None], rule: str,
        bias: float, window: tuple[float, float, float | None], pad: bool, negative_pooled: bool, layers: LayerChoice | None,
    ):  # fmt: skip
        if isinstance(pipe, type):
            raise TypeError(
                f"guide: pipe must be a diffusers pipeline, got the class {pipe.__name__}; give the loaded pipeline itself"
            )
        if not callable(pipe):
            raise TypeError(f"guide: pipe must be a diffusers pipeline, got {type(pipe).__name__}")
        self.unused = (
            f"this {type(pipe).__name__} was not called while guidance was enabled, so nothing was guided (a __call__ that "
            "was looked up before, or a pipeline made from this one, is not guided)"
        )
        if isinstance(pipe, Module) and window != (0.0, 1.0, None):
            raise ValueError(
                "guide: start, end and sigma_end need a pipeline, which has a scheduler; of a bare denoiser put those of your "
                f"calls that are to be guided into the block, got {window}"
            )
        self.negative = checked_negative(negative_prompt)
        check_guiders(pipe)
        if hasattr(pipe, "do_perturbed_attention_guidance"):
            name = type(pipe).__name__
            raise ValueError(f"guide: {name} is not supported: perturbed attention has a batch of its own")
        denoisers = [pipe] if isinstance(pipe, Module) else find_denoisers(pipe)
        denoiser = denoisers[0]
        papers = spec_of(denoiser).settings(inner_denoiser(denoiser))
        check_rule("guide", rule)
        scale, tau, alpha = given
        if scale is None:
            scale = {"nag": papers.nag_scale, "nasa": papers.nasa_scale, "vsf": None}[rule]
        if scale is None:
            kind = type(inner_denoiser(denoiser)).__name__
            why = "the published ones differ by prompt" if rule == "vsf" else f"none is published for this {kind}"
            raise ValueError(f"guide: nag_scale must be given for rule '{rule}': {why}")
        self.scale = Scale(scale, rule)
        self.nag_tau = papers.nag_tau if tau is None else number_of("nag_tau", tau)
        self.nag_alpha = papers.nag_alpha if alpha is None else number_of("nag_alpha", alpha)
        check_scalars("guide", None, self.nag_tau, self.nag_alpha)
        if isinstance(pipe, Module) and self.scale.number is None:
            raise ValueError(
                "guide: nag_scale must be one number for a bare denoiser, as the steps are those of your loop; give the calls of "
                f"each step a block of their own with the scale of that step, got {scale!r:.60}"
            )
        # A tau below 1 clips what no scale has lengthened.
        self.idle_scale = {"nag": 1.0 if self.nag_tau >= 1 else None, "nasa": 0.0, "vsf": None}[rule]
        bias = number_of("negative_logit_bias", bias)
        if not math.isfinite(bias) or (bias != 0 and rule != "vsf"):
            raise ValueError(f"guide: negative_logit_bias must be finite, and 0 but for rule 'vsf', got {bias:g}")
        check_window(*window)
        self.rule, self.bias, self.window, self.pad = rule, bias, window, pad
        self.negative_pooled, self.layers = negative_pooled, layers
        put_back_after(lambda replaced: self._check_all(replaced, denoisers))

    def _check_all(self, replaced: Replaced, denoisers: list[Denoiser]) -> None:
        for turn in run_turns(denoisers):  # else another thread's guided call might have its processors there
            take(turn, replaced)
        for denoiser in denoisers:
            self.check(denoiser)

    def check(self, denoiser: Denoiser) -> Found:
        """The layers that see the text. Raises ValueError where something on the denoiser stands against guidance."""
        modules = named_modules(denoiser)
        check_combination(denoiser, modules, self.negative_pooled)
        if self.window != (0.0, 1.0, None) or self.scale.number is None:
            check_forward(denoiser)
        return find_layers(denoiser, self.layers, modules)

    def run(self, function: Callable[..., Any], pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call of the pipeline: encode the negative, then call with the denoiser's texts packed."""
        return put_back_after(lambda replaced: self._run(replaced, function, pipe, args, kwargs))

    def _run(
        self, replaced: Replaced, function: Callable[..., Any], pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        denoisers = find_denoisers(pipe)
        turns = run_turns(denoisers)
        if any(is_mine(turn) for turn in turns):
            raise RuntimeError(
                "guide: another guided call is running on this denoiser, in this thread: a pipeline cannot be called, guided, "
                "within its own guided call (from a step callback, say); call it when that has ended"
            )
        for turn in turns:
            take(turn, replaced)
        wait_for_calls_begun([pipe])
        check_guiders(pipe)  # it may have got another since
        found = {denoiser: self.check(denoiser) for denoiser in denoisers}
        arguments = call_arguments(function, pipe, args, kwargs)
        for name, other in further_denoisers(pipe, denoisers):
            refused_calls(replaced, pipe, name, other, lambda: turns[0].run is not None and turns[0].run.rests)
        begins = device_found_once(replaced, pipe)
        recorder = NegativeRecorder(
            function, pipe, found, arguments, self.negative, named_by_position(function, pipe, args)
        )
        try:
            first = recorder.first()
        except Cancelled:
            return cancelled_run(replaced, function, pipe, denoisers, args, kwargs)
        counts = prompt_count(pipe, arguments), image_count(pipe, arguments)
        calls = PromptCalls(spec_of(denoisers[0]), recorder, first, *counts)
        # The guider of a modular pipeline calls the denoiser once for each branch.
        may_double = not is_modular(pipe) and spec_of(denoisers[0]).doubles_batch(arguments)
        guided_run = GuidedRun(self, pipe, denoisers[0], calls, may_double, arguments, begins)
        args, kwargs = with_callbacks(function, pipe, args, kwargs, guided_run.resting)
        for turn in turns:
            replaced.attribute(turn, "run", guided_run)
        mark = replaced.mark()
        try:
            for denoiser, its in found.items():
                guided_run.stand_in(replaced, denoiser, its)
            guider_calls_noticed(replaced, pipe, guided_run.enter)
            wait_for_calls_begun({*denoisers, *map(inner_denoiser, denoisers)})
            result = function(*args, **kwargs)
            guided_run.check_places()
        finally:
            replaced.put_back(mark)
        if getattr(pipe, "_interrupt", False):  # cancelled on the way: it ends quietly, as without guidance
            return result
        if guided_run.calls == 0:
            kind = type(inner_denoiser(denoisers[0])).__name__
            raise RuntimeError(f"guide: {type(pipe).__name__} never called its {kind}: guidance did not act")
        calls.check()
        guided_run.steps.check_end()
        if guided_run.guided == 0 and not (guided_run.steps.visits and guided_run.steps.is_off()):
            raise RuntimeError(f"guide: {guided_run.steps.never_guided()}")
        return result
