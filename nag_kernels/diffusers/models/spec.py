# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a model file says about its denoiser."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from nag_kernels import published
from nag_kernels.published import Settings

from ..attention.base import GuidedProcessor, Layer, PackedText, SharedText
from ..attention.dual_forward import DualForward
from ..attention.generic import Layout, generic_processor, why_not_generic
from ..attention.text_modules import TextModule
from ..denoiser_calls import Denoiser, Modules


@dataclass(frozen=True)
class ModelSpec:
    """How text reaches attention in one denoiser class, and what its pipelines do around it.

    The fields are for what many models need. The methods are for what one model needs: its file overrides them in a subclass.

    What forward takes:
        text: the arguments of forward that hold prompt embeddings, each with the dimension of its tokens. -2 is the last but one
            dimension, for tensors with or without a batch. 0 is for a model without a batch, which draws one image in each call.
        masks: the arguments that hold the masks of the text. A mask is one of three: [B, T] (1 = attended to), a bias [B, 1, T],
            or [B], how many of the first tokens are attended to. "outer.inner" is the entry "inner" of the mapping "outer".
        masks_for_image: True if the masks are [B, T + image], with ones for the image. A guided call then gives no mask.
        hard_masks: what a mask that is all False means. True: no token is attended to. False: the mask becomes a constant bias,
            which softmax cancels, so every token is attended to.
        concatenated: if attention sees the embeddings of several text encoders one after another, their arguments in that order,
            each with its mask or None. The guided call gives the model masks that are all ones. An argument that is not in
            `text` is an image; it comes before the text, and each prompt gets a copy of it.
        pooled: the argument with the pooled text that modulates the layers of both prompts; "" if there is none.
        timestep: the argument that holds the timestep; "" if the model gets no timestep.
        must_be_none: arguments that would change attention. A call that gives one is refused.

    Its layers:
        layers: a function that takes all modules of the denoiser, and yields (name, module) of every attention layer that sees
            the text.
        layer_count: a function that finds the number of these layers in another way, as a check.
        text_modules: modules that mix the tokens of a prompt, and run once for each prompt (`attention/text_modules.py`).
        keeps_text: True if keys and values of the text depend on neither step nor image, and are small. They are then kept over
            a run (`attention/kept.py`).

    How they are guided, one of three ways:
        processors (drop-in): for each stock processor, the processor of this package. Any other processor is refused.
        layout (generic): the model keeps its processor, and the call of attention in it is replaced. A tuple if the layers have
            several kinds of processors.
        dual_forward: the prompts cannot be packed, so the model runs twice.

    Its pipelines:
        settings: the published settings for this very model.
        refuse: why this very model cannot be guided, or None.
        negative_call: arguments of the pipeline's call, by name, that the dry run with the negative prompt sets to other values.
        cfg_above: classifier-free guidance is on if guidance_scale is above this.
        negatives_for: what may have a negative prompt of its own (video and sound), each with the arguments of forward that hold
            its text.
        unconditional_denoiser: the name of a second denoiser, for the unconditional branch alone; "" where there is none.
        two_calls: classifier-free guidance calls the denoiser twice in each step, instead of once with a doubled batch.
        prompt_first: a doubled batch is [conditional; unconditional] instead of [unconditional; conditional].
        by_timestep: a step is known by its timestep, and is not counted. This is for a pipeline that runs through its schedule
            once for each part of a video, or whose frames have timesteps of their own; the highest of these counts.
        context_parallel: the model works under diffusers' context parallelism. Other models are refused there.
        since: the oldest diffusers whose form of the model can be guided.
        exact: the dtypes in which the tests found the guided model equal to two runs side by side (below 1e-12 in float64, 1e-5
            in float32).
    """

    text: Mapping[str, int]
    layers: Callable[[Modules], Iterator[tuple[str, Layer]]]
    layer_count: Callable[[Denoiser], int]
    masks: tuple[str, ...] = ()
    processors: Mapping[type, type[GuidedProcessor]] = field(default_factory=dict)
    layout: Layout | tuple[Layout, ...] | None = None
    dual_forward: DualForward | None = None
    settings: Callable[[Denoiser], Settings] = lambda denoiser: published.FLUX
    refuse: Callable[[Denoiser], str | None] = lambda denoiser: None
    negative_call: Mapping[str, Any] = field(default_factory=dict)
    cfg_above: float = 1.0
    negatives_for: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unconditional_denoiser: str = ""
    two_calls: bool = False
    prompt_first: bool = False
    by_timestep: bool = False
    must_be_none: tuple[str, ...] = ()
    keeps_text: bool = False
    text_modules: Callable[[Denoiser], Iterable[TextModule]] = lambda denoiser: ()
    concatenated: tuple[tuple[str, str | None], ...] = ()
    masks_for_image: bool = False
    hard_masks: bool = False
    timestep: str = "timestep"
    pooled: str = ""
    context_parallel: bool = False
    since: str = "0.37"
    exact: str = "float64, float32"

    cfg_rows: ClassVar[int] = 2  # the largest batch that classifier-free guidance makes of one image

    def pack(self, packer: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of forward that hold text, with both prompts in them; packer is a `packing.Packer`."""
        return packer.pack_tensors(arguments)

    def rows_per_image(self, arguments: Mapping[str, Any]) -> int:
        """How many rows of text a call has for each image: a pipeline may give the text once for each frame of a video."""
        return 1

    def attended(self, seen: Tensor) -> Tensor:
        """Which of the tokens that a mask shows (seen) the layers attend to; both are bool [B, T]."""
        return seen

    def doubles_batch(self, arguments: Mapping[str, Any]) -> bool:
        """Whether a call of the pipeline with these arguments may double the batch for classifier-free guidance."""
        scale = arguments.get("guidance_scale")
        return not self.two_calls and (not isinstance(scale, (int, float)) or scale > self.cfg_above)

    def hides(self, image: Tensor) -> bool:
        """Whether the model masks out this image, [B, T, C], which stands among the prompts, and moves it behind them."""
        return False

    def idle_layers(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Parts of the names of those layers that do nothing in a call with these arguments of forward."""
        return ()

    def timesteps_taken(self, pipe: Any, arguments: Mapping[str, Any]) -> range | None:
        """Which of its scheduler's timesteps a pipeline's call with these arguments takes, where it says something else."""
        return None

    def time(self, arguments: Mapping[str, Any]) -> Any:
        """The timestep of a call with these arguments of forward, by which calls of one step are known."""
        return arguments.get(self.timestep)

    def fills_cache(self, arguments: Mapping[str, Any]) -> bool:
        """Whether such a call draws nothing, and only keeps keys and values for later. It is guided like the step before."""
        return False

    def stays_plain(self, arguments: Mapping[str, Any]) -> bool:
        """Whether such a call reads another text than a prompt. It is not guided, and the negative is not recorded there."""
        return False

    @property
    def route(self) -> str:
        return "dual forward" if self.dual_forward else "generic" if self.layout else "drop-in"

    @property
    def stock(self) -> tuple[str, ...]:
        """The names of the processors that guidance replaces."""
        if self._layouts:
            return tuple(name for layout in self._layouts for name in layout.stock)
        return tuple(x.__name__ for x in self.processors)

    @property
    def _layouts(self) -> tuple[Layout, ...]:
        if self.layout is None:
            return ()
        return self.layout if isinstance(self.layout, tuple) else (self.layout,)

    def _layout_of(self, processor: Any) -> Layout:
        return next((x for x in self._layouts if type(processor).__name__ in x.stock), self._layouts[0])

    def _processor(self, stock: type) -> Callable[..., GuidedProcessor]:
        return self.processors[stock]

    def why_unknown(self, processor: Any) -> str | None:
        """Why guidance cannot replace this processor, or None where it can."""
        if self.dual_forward:
            return None  # it is what comes after it that is guided
        if self.layout:
            return why_not_generic(processor, self._layout_of(processor))
        return None if type(processor) in self.processors else "which is not known"

    def guided_processor(self, processor: Any, text: PackedText | SharedText, steers: bool = True) -> Any:
        """The guided processor for a layer's processor: a `GuidedProcessor`, or a copy of the model's own that has one.

        steers: False if the layer is not to be guided. It sees both texts nevertheless.
        """
        if self.layout:
            return generic_processor(processor, self._layout_of(processor), text, steers)
        ours = self._processor(type(processor))(text=text)
        ours.steers = steers
        ours.takes_over(processor)
        return ours
