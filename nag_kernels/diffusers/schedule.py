# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which steps of a pipeline's run are guided, by fraction of the steps and by noise level, and each with which nag_scale."""

import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from nag_kernels.checks import check_scalars
from nag_kernels.layer_choice import in_share

from .models.spec import ModelSpec
from .modular import first_timestep, is_modular
from .places import ADVICE, Expected, Places, factors, near_to, not_placed, place_of_view

Scales = float | Sequence[float] | torch.Tensor | Callable[[int, int], float]


class Scale:
    """nag_scale: one number, or one for each step: a list of them, or a function scale(i, n) for step i of n.

    number: where it is one number, else None.
    Raises: TypeError or ValueError for what is no scale of this rule; of a function once the number of steps is known.
    """

    def __init__(self, given: Scales, rule: str):
        self.rule = rule
        self.number: float | None = None
        self.function: Callable[[int, int], float] | None = None
        self.listed: list[float] = []
        _refuse_gradient("nag_scale", given)
        if callable(given):
            self.function = given
        elif _is_row(given):
            self.listed = _checked(given.tolist() if hasattr(given, "tolist") else list(given), rule)  # type: ignore[arg-type]
            if not self.listed:
                raise ValueError("guide: nag_scale must have a number for each step, got none")
        else:
            self.number = number_of("nag_scale", given)
            _check_scale("guide", self.number, rule)

    def over(self, steps: int) -> list[float]:
        """The scale of each of so many steps. Raises ValueError where it is a list of another length."""
        if self.function is not None:
            return _checked([self.function(i, steps) for i in range(steps)], self.rule)
        if len(self.listed) != steps:
            raise ValueError(
                f"guide: nag_scale must have a number for each step of the call, {steps}, got {len(self.listed)}; a function "
                "nag_scale(i, n) serves any number of steps"
            )
        return self.listed


def number_of(name: str, given: Any) -> Any:
    """What was given as a number: a tensor or an array without dimensions is the number in it. Raises TypeError where that cannot
    be read, and ValueError where a gradient would be lost. What is no number is for others to refuse."""
    if isinstance(given, numbers.Real) or getattr(given, "ndim", None) != 0:
        return given
    _refuse_gradient(name, given)
    try:
        return given.item()
    except RuntimeError as error:
        raise TypeError(f"guide: {name} must be a number, got a tensor that cannot be read: {error}") from error


NUMBERS = ("nag_scale", "nag_tau", "nag_alpha", "negative_logit_bias")


def with_numbers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, with numbers in the place of tensors without dimensions."""
    return {name: number_of(name, x) if name in NUMBERS else x for name, x in settings.items()}


def _refuse_gradient(name: str, given: Any) -> None:
    if isinstance(given, torch.Tensor) and given.requires_grad:
        raise ValueError(
            f"guide: {name} is a tensor that requires a gradient, and guidance takes the number in it, through which no gradient "
            f"flows; give {name}.detach(). GuidedDenoiser takes tensors in its call"
        )


def _checked(given: list[Any], rule: str) -> list[float]:
    """The scales of the steps, as numbers."""
    scales = [number_of("nag_scale", x) for x in given]
    for i, value in enumerate(scales):
        _check_scale(f"guide: step {i}", value, rule)
    return scales


def _is_row(x: object) -> bool:
    """Whether these are several numbers; tensors and arrays of one dimension are."""
    return (isinstance(x, Sequence) and not isinstance(x, str)) or getattr(x, "ndim", 0) == 1


def _check_scale(where: str, value: Any, rule: str) -> None:
    if value is None:
        raise TypeError(f"{where}: nag_scale must be a number, got None")
    if isinstance(value, bool):
        raise TypeError(f"{where}: nag_scale must be a number, got {value}")
    check_scalars(where, value)
    if rule != "nag" and value < 0:
        raise ValueError(
            f"{where}: nag_scale must be at least 0 for rule '{rule}', got {value:g}: less would draw the negative"
        )
    if rule == "nag" and value < 1:
        raise ValueError(
            f"{where}: nag_scale must be at least 1 for rule 'nag', got {value:g}: 1 does nothing, more goes further away from "
            "the negative, and less would draw it"
        )


class Steps:
    """Counts a run's visits of its denoiser, and says of each whether its step is guided.

    start, end: step i of n is guided if start <= i / n < end.
    sigma_end: and if its noise level is above this; None is no bound.
    scale: nag_scale; a step with `idle` is not guided.
    idle: the scale that does nothing; None where every scale does something, or is to be guided all the same.
    spec: of the denoiser. Its steps are counted, or known by their timestep (`ModelSpec.by_timestep`).
    arguments: of the pipeline's call.
    """

    def __init__(
        self, pipe: Any, window: tuple[float, float, float | None], spec: ModelSpec, arguments: Mapping[str, Any],
        scale: Scale, idle: float | None,
    ):  # fmt: skip
        self.pipe, self.spec, self.arguments, self.idle = pipe, spec, arguments, idle
        self.start, self.end, self.sigma_end = window
        self.schedule = scale if scale.number is None else None
        self.scale = scale.number  # of the latest step; None before the first
        self.scales: list[float] = []  # of all steps
        self.latest = self.start == 0 and self._acts()  # whether the latest step was guided
        self.everything = window == (0, 1, None) and self.schedule is None
        self.visits = 0
        self.step_of: list[int] = []  # the step that each visit of the denoiser belongs to
        self.sigmas: list[float] = []  # its noise level
        self.values: tuple[torch.Tensor, list[float]] | None = (
            None  # of the scheduler's timesteps, where they tell the step
        )
        self.places: Places | None = None  # of the visits, in this pass through the scheduler's steps
        self.expected: Expected | None = None  # where the place of each visit is known by its timestep

    def _acts(self) -> bool:
        return self.scale is None or self.scale != self.idle

    def is_off(self) -> bool:
        """Whether every step has a scale that does nothing."""
        scales: list[float | None] = [*self.scales] or [self.scale]
        return self.idle is not None and all(x == self.idle for x in scales)

    def begin(self, arguments: Mapping[str, Any]) -> None:
        """Called before the denoiser is, with these arguments. Raises ValueError where there is not a scale for each step."""
        if self.schedule is not None and not self.scales:
            if self.spec.fills_cache(arguments):  # before there are timesteps
                self.scales = self.schedule.over(self.arguments["num_inference_steps"])
            else:
                self._read_scheduler(arguments)
            self.scale = self.scales[0]
            self.latest = self.start == 0 and self._acts()

    def visit(self, arguments: Mapping[str, Any]) -> bool:
        """Counts one visit, with these arguments of forward; whether it is guided."""
        self.visits += 1
        if self.everything:
            return self._acts()
        if not self.spec.fills_cache(arguments):
            self.latest = self._inside(arguments)
        return self.latest

    def _inside(self, arguments: Mapping[str, Any]) -> bool:
        if not self.step_of or (self.spec.by_timestep and not self._is_read()):
            self._read_scheduler(arguments)
        now = self._place(arguments)
        step, steps = self.step_of[now], self.step_of[-1] + 1
        inside = in_share(step, steps, self.start, self.end)
        if self.schedule is not None:
            self.scale = self.scales[step]
        return inside and self._acts() and (self.sigma_end is None or self.sigmas[now] > self.sigma_end)

    def _place(self, arguments: Mapping[str, Any]) -> int:
        """Which of the run's timesteps a visit is for."""
        given = self.spec.time(arguments)
        if self.expected is not None:
            return self.expected.place(given)
        if self.values is not None:
            # The noisiest of the frames: given ones have an earlier time. A look at its value waits for a GPU.
            value, timesteps = float(given.max()), self.values[1]
            return min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - value))
        assert self.places is not None
        if self.places.is_over(given):
            if self.places.last > 0:  # else it was at the first of them, and still is
                self.check_end()
            self._read_scheduler(arguments)
        now = self.places.place(given)
        if now == len(self.step_of) and getattr(self.pipe, "free_init_enabled", False):
            self._read_scheduler(arguments)  # FreeInit goes through them several times, and they may have become more
            now = self.places.place(given)
        if now == len(self.step_of):
            raise RuntimeError(
                not_placed(
                    f"{type(self.pipe).__name__} visits its denoiser more often than its scheduler has timesteps "
                    f"({len(self.step_of)}); leave them out, or let it call its denoiser once for each timestep"
                )
            )
        return now

    def check_end(self) -> None:
        """Called when a pass through the scheduler's timesteps has ended. Raises RuntimeError where it did not come to their end:
        then it has fewer steps than it was told to have, or the denoiser was not called in each, and nothing said in which."""
        if self.everything or self.places is None or self.spec.by_timestep:
            return
        if self.expected is None:
            whole, places = self.places.is_whole(), self.places.places
        else:
            whole, places = self.expected.at == len(self.step_of) - 1, set(range(self.expected.at + 1))
        if places and not whole:
            visited = len({self.step_of[place] for place in places})
            raise RuntimeError(
                "guide: start, end, sigma_end and a nag_scale for each step were placed over "
                f"{self.step_of[-1] + 1} steps, and {type(self.pipe).__name__} called its denoiser in "
                f"{visited} of them, and not in the last; leave them out, call the denoiser in the last step too, or set "
                "self._num_timesteps to the number of steps up to the last that calls it"
            )

    def _is_read(self) -> bool:
        """Whether the scheduler has the timesteps that were read before. They are read once, as that waits for a GPU."""
        return self.values is not None and self.values[0] is self.pipe.scheduler.timesteps

    def never_guided(self) -> str:
        """What to say where no visit was guided."""
        if self.visits == 0:
            return (
                f"{type(self.pipe).__name__} called its denoiser with a text that does not change with the prompt: the negative "
                "prompt in its place gives the same text, so there is nothing to steer away from, and guidance did not act. Look "
                "whether its encode_prompt uses the text that it is given"
            )
        sigma = "" if self.sigma_end is None else f" with a sigma above {self.sigma_end:g}"
        highest = f" and its highest sigma is {max(self.sigmas):g}" if self.sigmas else ""
        idle = None if self.schedule is None else self.idle
        scale = "" if idle is None else f" with a nag_scale other than {idle:g}, which does nothing"
        return (
            f"no step fell between start {self.start:g} and end {self.end:g}{sigma}{scale}: guidance did not act; the call had "
            f"{len(set(self.step_of))} steps{highest}"
        )

    def _read_scheduler(self, arguments: Mapping[str, Any]) -> None:
        """The step of each visit: of a scheduler of second order, which visits most timesteps twice, the distinct ones in a row.

        From the scheduler, not from the denoiser's calls: pipelines round their timesteps to half precision, in which
        neighbours become equal.
        """
        if getattr(self.pipe, "scheduler", None) is None:
            raise ValueError(not_placed(f"{type(self.pipe).__name__} has no scheduler; leave them out"))
        scheduler = self.pipe.scheduler
        timesteps = torch.as_tensor(scheduler.timesteps)
        start, used = self._taken(timesteps, arguments)
        begins = len(timesteps) - used if start is None else start
        run = slice(begins, begins + used)
        if _visits_twice(scheduler):
            self.step_of = torch.unique_consecutive(timesteps[run], return_inverse=True)[1].tolist()
        else:  # equal ones are rounded
            self.step_of = list(range(len(timesteps[run])))
        self.places = Places(type(self.pipe).__name__, scheduler, timesteps, start, len(self.step_of))
        if self.spec.by_timestep:
            self.values = scheduler.timesteps, timesteps.double().tolist()
        if self.expected is not None:
            self.expected.begin(timesteps[run], self.step_of)
        steps = self.step_of[-1] + 1
        if self.schedule is not None and len(self.scales) != steps:
            self.scales = self.schedule.over(steps)
        if self.sigma_end is not None:
            self.sigmas = _sigmas(scheduler, timesteps)[run]

    def _taken(self, timesteps: torch.Tensor, arguments: Mapping[str, Any]) -> tuple[int | None, int]:
        """With which of the scheduler's timesteps a run begins, None for the last ones where that is not known, and how many it
        takes."""
        known = self.spec.timesteps_taken(self.pipe, self.arguments)
        if known is not None:
            return known.start, len(known)
        stop = len(timesteps)
        used = getattr(self.pipe, "num_timesteps", None)
        end = getattr(self.pipe, "denoising_end", self.arguments.get("denoising_end"))
        if isinstance(end, float) and 0 < end < 1:
            # SDXL leaves the last ones out (to a refiner) and says how many remain; others leave out the first.
            trained = self.pipe.scheduler.config.num_train_timesteps
            stop = int((timesteps >= round(trained - end * trained)).sum())
        if self.spec.by_timestep:
            used = stop
        elif is_modular(self.pipe):  # which does not say how many it uses
            used = stop - first_timestep(self.pipe, self.arguments)
        elif used is None and not self._takes_all():
            used = stop - self._first_of(timesteps, arguments)
        used = min(used or stop, stop)
        start = place_of_view(timesteps, self.spec.time(arguments))
        if start is None:
            start = getattr(self.pipe.scheduler, "begin_index", None)
        if stop < len(timesteps):
            # SDXL with a ControlNet counts before it leaves the last ones out.
            start = start if isinstance(start, int) and 0 <= start < stop else stop - used
            return start, stop - start
        if used == len(timesteps):
            return 0, used
        # Some leave out the first ones, and some the last.
        return (start if isinstance(start, int) and 0 <= start <= stop - used else None), used

    def _takes_all(self) -> bool:
        """Whether a pipeline that does not say how many timesteps it uses is known to use all that its scheduler has."""
        call = inspect.unwrap(type(self.pipe).__call__)
        parts = [self.arguments.get(name) for name in PARTS]
        return call.__module__.startswith("diffusers.") and all(x is None or x == 1 for x in parts)

    def _first_of(self, timesteps: torch.Tensor, arguments: Mapping[str, Any]) -> int:
        """Which of the scheduler's timesteps the denoiser is called with first."""
        given = self.spec.time(arguments)
        if given is not None:
            for factor in factors(self.pipe.scheduler):
                near = near_to(timesteps, given, factor)
                if near.any():
                    self.expected = Expected(type(self.pipe).__name__, factor)
                    return int(near.double().argmax())
        raise ValueError(
            not_placed(
                f"{type(self.pipe).__name__} does not say which of its scheduler's {len(timesteps)} timesteps it uses; {ADVICE}"
            )
        )


PARTS = ("strength", "inpaint_strength")  # arguments by which a pipeline leaves out its first steps


def _visits_twice(scheduler: Any) -> bool:
    return getattr(scheduler, "order", 1) > 1 or hasattr(scheduler, "prk_timesteps")  # the latter is PNDM's, of order 1


def check_window(start: float, end: float, sigma_end: float | None) -> None:
    for name, value in (("start", start), ("end", end), ("sigma_end", sigma_end)):
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number and not (name == "sigma_end" and value is None):
            raise TypeError(
                f"guide: {name} must be a number, got {value!r:.60} ({type(value).__name__}); write {name}=0.5, say"
            )
    if not 0 <= start < end <= 1:
        raise ValueError(f"guide: start and end must be 0 <= start < end <= 1, got {start:g} and {end:g}")
    if sigma_end is not None and not (math.isfinite(sigma_end) and sigma_end >= 0):
        raise ValueError(f"guide: sigma_end must be a noise level of at least 0, or None, got {sigma_end:g}")


def _sigmas(scheduler: Any, timesteps: torch.Tensor) -> list[float]:
    """The noise level at each timestep: the scheduler's own, else sqrt((1 - a) / a) with a its cumulative product of alphas."""
    own = getattr(scheduler, "sigmas", None)
    if own is not None and len(own) >= len(timesteps):  # sigmas may carry one extra value, the final sigma
        levels = torch.as_tensor(own).double()[: len(timesteps)]
        # Mochi's count how much of the picture is there.
        return (1 - levels if getattr(scheduler.config, "invert_sigmas", False) else levels).tolist()
    products = getattr(scheduler, "alphas_cumprod", None)
    if products is not None and not timesteps.is_floating_point():
        kept = products.double().cpu()[timesteps.long().cpu()]
        return ((1 - kept) / kept).sqrt().tolist()
    raise ValueError(
        f"guide: sigma_end needs a scheduler that has noise levels; {type(scheduler).__name__} has none: use end"
    )
