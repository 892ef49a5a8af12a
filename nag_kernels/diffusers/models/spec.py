# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a model's file says of its denoiser."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor
from torch.nn import Module

from ..attention.base import GuidedProcessor, PackedText
from ..attention.dual_forward import Beside
from ..attention.generic import Layout, rebound, why_not_rebound
from ..attention.text_modules import Part


@dataclass(frozen=True)
class Settings:
    """What the papers use for a model: NAG's scale (phi + 1), tau, alpha; NASA's scale, None if none is published."""

    nag_scale: float
    nag_tau: float
    nag_alpha: float
    nasa_scale: float | None = None


FLUX_SETTINGS = Settings(5.0, 2.5, 0.25)  # of FLUX.1 and Wan, and of all models for which none are published


@dataclass(frozen=True)
class Family:
    """How text reaches attention in one denoiser class. What only one model needs is a method, overridden in its file.

    text: the arguments of forward that hold the text, and the dimension its tokens lie along (-2: whatever lies before them;
        0: in a model that knows no batch and draws one image a call).
    masks: the arguments that hold its masks, [B, T] (1 = seen) or a bias [B, 1, T], or say how many of the first tokens are
        seen, [B] (the model is then told it of text+); "outer.inner" is in a mapping.
    sites: (name, module) of every attention layer that sees the text.
    site_count: how many there must be, found in another way.
    processors: ours for each stock processor; any other at a site is refused.
    layout: instead of `processors`: the stock processors stay and their attention call is replaced. Several where layers are of
        several kinds, told apart by their processors.
    beside: instead of both: the texts cannot be packed, and the model runs twice.
    settings: the papers' settings for this very model.
    refuse: why this very model cannot be guided, or None.
    negative_call: arguments of the pipeline's call that are others for a negative than for a prompt.
    cfg_above: the guidance_scale above which classifier-free guidance doubles the batch.
    two_calls: whether classifier-free guidance calls the model twice a step, and not once with a doubled batch.
    prompt_first: whether the doubled batch is [conditional; unconditional], and not the other way round.
    by_timestep: whether a step is known by its timestep, and not counted: a pipeline runs through its schedule for each part of a
        video anew, or its frames have timesteps of their own, of which the highest then counts.
    unknown: arguments of forward that must be None, as they would change attention.
    keeps_text: whether keys and values of the texts are kept over the steps of a run: they depend on neither step nor image,
        and are small beside the model.
    apart: the parts of the model that see a whole text and have to see each text by itself (`texts_apart`).
    parts: where attention has several texts one after another: their arguments in that order, each with its mask or None. The
        model is then given masks in which all is seen. An argument that is no text is an image, which lies before the texts and
        is given to each.
    masks_for_image: whether the masks are [B, T + image], with ones for the image. The model is then given None.
    hard_masks: whether a text of which nothing is seen is not seen at all. (A mask that is made a bias, alike for all tokens,
        changes nothing: such a text is seen whole.)
    timestep: the argument of forward that holds it, or "" where the model is told none.
    pooled: the argument of forward with the pooled text that modulates the layers of both texts; "" where there is none.
    context_parallel: whether the model works under diffusers' context parallelism; others are refused there.
    exact: in which types the model has been found equal to two runs side by side (below 1e-12 in float64, 1e-5 in float32).
    """

    text: Mapping[str, int]
    sites: Callable[[Module], Iterator[tuple[str, Module]]]
    site_count: Callable[[Module], int]
    masks: tuple[str, ...] = ()
    processors: Mapping[type, type] = field(default_factory=dict)
    layout: Layout | tuple[Layout, ...] | None = None
    beside: Beside | None = None
    settings: Callable[[Module], Settings] = lambda denoiser: FLUX_SETTINGS
    refuse: Callable[[Module], str | None] = lambda denoiser: None
    negative_call: Mapping[str, Any] = field(default_factory=dict)
    cfg_above: float = 1.0
    two_calls: bool = False
    prompt_first: bool = False
    by_timestep: bool = False
    unknown: tuple[str, ...] = ()
    keeps_text: bool = False
    apart: Callable[[Module, PackedText], Iterable[Part]] = lambda denoiser, text: ()
    parts: tuple[tuple[str, str | None], ...] = ()
    masks_for_image: bool = False
    hard_masks: bool = False
    timestep: str = "timestep"
    pooled: str = ""
    context_parallel: bool = False
    exact: str = "float64, float32"

    cfg_rows: ClassVar[int] = 2  # the largest batch that classifier-free guidance makes of one image

    def pack(self, packer: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of forward that hold text, with both prompts in them; packer is a `packing.Packer`."""
        return packer.pack_tensors(arguments)

    def rows_per_image(self, arguments: Mapping[str, Any]) -> int:
        """How many rows of text a call has for each image: a pipeline may give the text once for each frame of a video."""
        return 1

    def attended(self, seen: Tensor) -> Tensor:
        """Which tokens the layers attend to, of those that a mask lets through; bool [B, T] both."""
        return seen

    def hides(self, image: Tensor) -> bool:
        """Whether the model masks this image among the prompts, [B, T, C], out and moves it behind them."""
        return False

    def idle_layers(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        """Parts of the names of layers that do nothing in a call with these arguments of forward."""
        return ()

    def fills_cache(self, arguments: Mapping[str, Any]) -> bool:
        """Whether such a call draws nothing and only keeps keys and values for later ones; it is guided as the step before."""
        return False

    @property
    def route(self) -> str:
        return "slow" if self.beside else "generic" if self.layout else "drop-in"

    @property
    def stock(self) -> tuple[str, ...]:
        """The names of the processors that guidance can take the place of."""
        if self.layout:
            return tuple(name for layout in self._layouts for name in layout.stock)
        return tuple(x.__name__ for x in self.processors)

    @property
    def _layouts(self) -> tuple[Layout, ...]:
        return self.layout if isinstance(self.layout, tuple) else (self.layout,)

    def _layout_of(self, processor: Any) -> Layout:
        return next((x for x in self._layouts if type(processor).__name__ in x.stock), self._layouts[0])

    def why_unknown(self, processor: Any) -> str | None:
        """Why guidance cannot take the place of this processor, or None where it can."""
        if self.beside:
            return None  # it is what comes after it that is guided
        if self.layout:
            return why_not_rebound(processor, self._layout_of(processor))
        return None if type(processor) in self.processors else "which is not known"

    def replaced(self, processor: Any, text: PackedText) -> GuidedProcessor:
        """Ours for the processor of a site."""
        if self.layout:
            return rebound(processor, self._layout_of(processor), text)
        ours = self.processors[type(processor)](text=text)
        ours.stands_for(processor)
        return ours
