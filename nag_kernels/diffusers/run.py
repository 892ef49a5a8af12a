# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""One guided call of a pipeline, from its first call of the denoiser to its last."""

import functools
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from .attention.base import Layer, PackedText, SharedText
from .attention.dual_forward import DualForwardRun
from .attention.kept import KeptKeysAndValues, KeptTensor
from .attention.pooled_modulation import negative_modulation
from .attention.text_modules import TextModule, run_once_per_prompt
from .compatibility import check_calls, check_gradients, head_mesh, sequence_mesh
from .denoiser_calls import (
    Denoiser,
    as_they_came,
    denoiser_arguments,
    denoisers_of,
    forward_parameters,
    inner_denoiser,
)
from .guard import changed_on_the_way, intercepted, pipelines_calling
from .interception import Interception, contexts_noticed
from .models.registry import Found, guided_layers, spec_of
from .negative_prompt import RecordedCall
from .packing import Packer
from .prompt_calls import CONTEXTS, SECOND_PROMPT, UNCONDITIONAL
from .restore import Replaced
from .schedule import Steps
from .turns import take, turn_of
from .views import AT_ONCE, together, views_apart


class ToldApart(Protocol):
    """Which calls carry the prompt: `prompt_calls.PromptCalls` of a pipeline, `own_loop.GivenTexts` of a bare denoiser."""

    negative: RecordedCall | None
    prompts: int  # of which the images are made; 0 where that is not known
    made: int  # how many images the run is told to make; 0 where that is not known

    def kind(self, arguments: Mapping[str, Any], context: str | None) -> str: ...
    def images(self, arguments: Mapping[str, Any]) -> int: ...
    def prompt_first(self, arguments: Mapping[str, Any], images: int) -> bool: ...
    def ended(self, output: Any) -> None: ...
    def text_may_change(self) -> None: ...


class _RestedCallbacks(MultiPipelineCallbacks):  # type: ignore[misc]
    """A callback of diffusers' classes, called by `rested`; what tensors it wants is what it says."""

    def __init__(self, callback: Any, rested: Callable[..., Any]):
        super().__init__([callback])
        self.rested = rested

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.rested(*args, **kwargs)


class GuidedRun:
    """Stands for the denoisers during one call of the pipeline."""

    def __init__(
        self, guidance: Any, pipe: Any, denoiser: Denoiser, prompt_calls: ToldApart, may_double: bool,
        arguments: Mapping[str, Any] | None = None, begins: Callable[[], None] = lambda: None,
    ):  # fmt: skip
        """guidance: the settings, `guide._Guidance`; may_double as in `Packer`; arguments: of the pipeline's call; begins: called
        before its first call of the denoiser."""
        self.guidance, self.pipe, self.spec = guidance, pipe, spec_of(denoiser)
        self.thread = threading.get_ident()
        self.calls = self.guided = 0
        self.begins = begins
        self.places: list[Interception] = []  # what stands in the place of each denoiser's call
        self.rests = False
        self.prompt_calls = prompt_calls
        self.given: dict[str, Tensor | None] = {}  # settings as tensors, in the place of the numbers: `GuidedDenoiser`
        self.steered: Any = None  # rows, images, their order and the scale, for which the settings stand
        # What looks on, and a loop of one's own, get guided calls also where the scale does nothing.
        looked_at = guidance.watch is not None or isinstance(pipe, torch.nn.Module)
        idle = None if looked_at else guidance.idle_scale
        self.views_at_once = (arguments or {}).get(AT_ONCE, 1)
        self.view = 0  # of those that came in one batch, which one the running call is for
        self.steps = Steps(pipe, guidance.window, self.spec, arguments or {}, guidance.scale, idle)
        self.unsteered: set[Layer] = set()  # layers that are not to be guided
        self.context: str | None = None  # what the pipeline calls the running call: "cond", "uncond", ...
        self.keeps = self.spec.keeps_text
        self.texts: list[KeptTensor] = []  # texts and masks of the latest guided call, before packing
        self.packed: dict[str, KeptTensor] = {}  # its texts, packed
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
        self.packer = Packer(self.spec, may_double, guidance.pad, self.shared, sequence)

    def stand_in(self, replaced: Replaced, denoiser: Denoiser, found: Found) -> None:
        """Takes the calls of `denoiser` until `replaced` is put back."""
        if self.meshes != (sequence_mesh(denoiser), head_mesh(denoiser)):
            raise ValueError(f"guide: the denoisers of {type(self.pipe).__name__} must be spread over the same devices")
        ours = found.layers if self.spec.dual_forward is None else ()
        self.unsteered |= found.unsteered
        processors = [(site, site.processor, self._replaced(site)) for site in ours]
        text_modules = list(self.spec.text_modules(inner_denoiser(denoiser)))

        def call(place: Interception, *args: Any, **kwargs: Any) -> Any:
            return self._call(replaced, place, steered or place.original, processors, text_modules, args, kwargs)

        contexts_noticed(replaced, denoiser, self.enter)
        steered: Callable[..., Any] | None = None
        place = intercepted(replaced, denoiser, call)
        self.places.append(place)
        if self.spec.dual_forward is not None:
            steered = DualForwardRun(
                place.original, denoiser, found.layers, self.spec.dual_forward, self.shared, self.packer, replaced,
                self.unsteered,
            )  # fmt: skip

    def _replaced(self, site: Layer) -> Any:
        """Our processor for that of this layer."""
        return self.spec.guided_processor(site.processor, self.shared, site not in self.unsteered)

    def _call(
        self, replaced: Replaced, place: Interception, steered: Callable[..., Any], processors: list[tuple[Layer, Any, Any]],
        text_modules: list[TextModule], args: tuple[Any, ...], kwargs: dict[str, Any],
    ) -> Any:  # fmt: skip
        """processors: (layer, its processor, ours) of each."""
        if threading.get_ident() != self.thread:
            return place.plain(*args, **kwargs)
        if self.rests:
            return place.original(*args, **kwargs)
        denoiser = place.denoiser
        if self.calls == 0:
            self.begins()
        self._refuse_another_pipeline(denoiser)
        arguments = denoiser_arguments(denoiser, args, kwargs)
        views = self._views(arguments)
        if len(views) == 1:
            return self._one_call(replaced, place, steered, processors, text_modules, args, kwargs, arguments)
        outputs = []
        try:
            for self.view, one in enumerate(views):
                own = as_they_came(denoiser, args, one)
                outputs.append(self._one_call(replaced, place, steered, processors, text_modules, *own, one))
        finally:
            self.view = 0
        return together(outputs)

    def _views(self, arguments: dict[str, Any]) -> list[dict[str, Any]]:
        """The arguments of a call, for each view that has rows in it."""
        if self.views_at_once == 1:
            return [arguments]
        text = arguments.get(next(iter(self.spec.text)))
        rows = len(text) if isinstance(text, Tensor) else 0
        each = self.prompt_calls.made * (2 if self.packer.may_double else 1)
        fits = each and rows % each == 0 and 1 < rows // each <= self.views_at_once
        return views_apart(arguments, rows, each) if fits else [arguments]

    def _one_call(
        self, replaced: Replaced, place: Interception, steered: Callable[..., Any], processors: list[tuple[Layer, Any, Any]],
        text_modules: list[TextModule], args: tuple[Any, ...], kwargs: Mapping[str, Any], arguments: dict[str, Any],
    ) -> Any:  # fmt: skip
        """arguments: those that came as args and kwargs, by name."""
        denoiser = place.denoiser
        self.calls += 1
        if self.spec.stays_plain(arguments):
            return place.original(*args, **kwargs)
        self.steps.begin(arguments)
        if self._is_guided(arguments):
            result = self._guided_call(replaced, denoiser, steered, processors, text_modules, args, arguments)
        else:
            result = place.original(*args, **kwargs)
        self.prompt_calls.ended(result)
        return result

    def _refuse_another_pipeline(self, denoiser: Denoiser) -> None:
        """Raises RuntimeError where the pipeline's own call has called another one, whose texts and images are its own."""
        caller = None if isinstance(self.pipe, torch.nn.Module) else next(pipelines_calling(denoiser), None)
        if caller is not None and caller is not self.pipe:
            kind, pipe, other = (type(x).__name__ for x in (inner_denoiser(denoiser), self.pipe, caller))
            raise RuntimeError(
                f"guide: this {kind} was called by a {other} within the guided call of the {pipe}, which knows nothing of the "
                "other's texts and images; guide the inner pipeline instead"
            )

    def _guided_call(
        self, replaced: Replaced, denoiser: Denoiser, steered: Callable[..., Any], processors: list[tuple[Layer, Any, Any]],
        text_modules: list[TextModule], args: tuple[Any, ...], arguments: dict[str, Any],
    ) -> Any:  # fmt: skip
        for name in self.spec.must_be_none:
            if arguments.get(name) is not None:
                raise ValueError(f"guide: {name} must be None in the denoiser's calls, got {arguments[name]!r:.60}")
        check_gradients(denoiser)
        self._notice_processors(denoiser, processors)
        packed = self.packer.pack(arguments)
        self._refuse_one_text_of_several_images(denoiser, arguments)
        self._keep_texts(arguments, packed)
        arguments |= packed
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

    def _refuse_one_text_of_several_images(self, denoiser: Denoiser, arguments: Mapping[str, Any]) -> None:
        """Some pipelines do not repeat ready-made text for each image, and stock attention spreads a batch of one over them."""
        image = arguments.get(forward_parameters(denoiser)[0])
        if self.packer.rows == 1 and isinstance(image, Tensor) and len(image) > 1 and 0 not in self.spec.text.values():
            raise ValueError(
                f"guide: the denoiser was called with one text for {len(image)} images; guidance needs a text for each: give "
                f"ready-made text with {len(image)} rows (prompt_embeds.repeat({len(image)}, 1, 1), and so on), or call the "
                "pipeline for one image at a time"
            )

    def _notice_processors(self, denoiser: Denoiser, processors: list[tuple[Layer, Any, Any]]) -> None:
        """A pipeline or a callback may have set others since the latest call. Raises ValueError for one that is not known."""
        if all(site.processor is stock for site, stock, _ in processors):
            return
        guided_layers(denoiser)
        for i, (site, stock, _) in enumerate(processors):
            if site.processor is not stock:
                processors[i] = site, site.processor, self._replaced(site)

    def enter(self, context: str | None) -> None:
        if context is not None and context not in CONTEXTS and not self.rests:
            raise RuntimeError(
                f"guide: {type(self.pipe).__name__} calls its denoiser for '{context}', which is not known"
            )
        self.context = context

    def _is_guided(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the call carries a prompt, in a step that is to be guided."""
        context = self.context
        kind = self.prompt_calls.kind(arguments, context)
        self.context = context  # a recording has contexts of its own
        if kind == UNCONDITIONAL:
            return False
        assert self.prompt_calls.negative is not None
        self.packer.negative = self.prompt_calls.negative.arguments
        each = self.spec.rows_per_image(arguments)
        self.packer.images = self.prompt_calls.images(arguments) * each
        self.packer.prompts = self.prompt_calls.prompts if each == 1 else 0
        if self.packer.may_double:
            self.packer.prompt_first = self.prompt_calls.prompt_first(arguments, self.packer.images)
        if kind == SECOND_PROMPT or self.view > 0:
            return self.steps.latest
        return self.steps.visit(arguments)

    def _keep_texts(self, arguments: Mapping[str, Any], packed: dict[str, Any]) -> None:
        """As long as the pipeline gives the same texts, the packed ones are those of the step before, by which the layers know
        that their keys and values may stay. (Whether they do is for the layers to say.)"""
        if not self.keeps or torch.is_grad_enabled():
            self.shared.change(kept=None)
            return
        names = (*self.spec.text, *self.spec.masks)
        texts = [call.get(name) for call in (arguments, self.packer.negative) for name in names]
        texts += [self.packer.images, self.packer.prompt_first]
        same = len(texts) == len(self.texts) and all(map(KeptTensor.is_still, self.texts, texts))
        same = same and all(kept.is_still(kept.given) for kept in self.packed.values())  # no hook wrote into them
        same = same and all(kept.given.shape == packed[name].shape for name, kept in self.packed.items())
        if not same:
            self.texts = [KeptTensor(x) for x in texts]
            self.packed = {name: KeptTensor(packed[name]) for name in self.spec.text if name in packed}
        if not same or self.shared.packed.kept is None:
            self.shared.change(kept=KeptKeysAndValues([x.given for x in self.packed.values()]))
        packed |= {name: x.given for name, x in self.packed.items()}

    def resting(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """The same callback; what it does with the denoiser (by another pipeline, say) is its own and not steered.

        It may change weights or write into the texts, so nothing is kept from step to step beside it.
        """
        self.keeps = False

        def rested(*args: Any, **kwargs: Any) -> Any:
            self.rests = True
            try:
                result = callback(*args, **kwargs)
            finally:
                self.rests = False
                self.prompt_calls.text_may_change()
            self.check_places()
            return result

        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):  # pipelines look for these classes
            return _RestedCallbacks(callback, rested)
        return functools.wraps(callback)(rested)

    def check_places(self) -> None:
        """Raises RuntimeError where the pipeline calls another denoiser by now, or where something stands in our place."""
        ours = [place.denoiser for place in self.places]
        now = [] if isinstance(self.pipe, torch.nn.Module) else denoisers_of(self.pipe)
        others = [x for x in now if not any(x is denoiser for denoiser in ours)]
        lost = [place.denoiser for place in self.places if not place.stands()]
        if others or lost:
            what = "got another" if others else "compiled, or wrapped, its"
            raise changed_on_the_way(self.pipe, what, (others or lost)[0])

    def _set_settings(self) -> None:
        """One value for each row; the unconditional rows of classifier-free guidance are not steered."""
        rows, images = self.packer.rows, self.packer.images
        steered_now = rows, images, self.packer.prompt_first, self.steps.scale
        if self.steered == steered_now:
            return
        self.steered = steered_now
        neutral = (1.0 if self.guidance.rule == "nag" else 0.0, math.inf, 1.0)
        steered = [True] * images + [False] * (rows - images)
        if not self.packer.prompt_first:
            steered.reverse()
        settings = self.steps.scale, self.guidance.nag_tau, self.guidance.nag_alpha
        values = [[ours if yes else plain for yes in steered]
                  for plain, ours in zip(neutral, settings, strict=True)]  # fmt: skip
        numbers = torch.tensor(values, dtype=torch.float32, device=self.packer.device).unbind()
        named = dict(zip(("nag_scale", "nag_tau", "nag_alpha"), numbers, strict=True))
        named |= {name: self._given_setting(name, x, rows) for name, x in self.given.items() if x is not None}
        has_text = None
        if self.guidance.rule == "vsf" and rows > images:  # it has no neutral scale
            has_text = torch.tensor(steered, device=self.packer.device)
        self.shared.change(**named, steered=has_text)

    def _given_setting(self, name: str, given: Tensor, rows: int) -> Tensor:
        """For each row. Raises ValueError where it has another shape."""
        if given.shape not in ((), (rows,)):
            raise ValueError(
                f"GuidedDenoiser: {name} must have shape [] or [{rows}], one number for each row of the prompt's text, got "
                f"{tuple(given.shape)}"
            )
        return given.expand(rows)
