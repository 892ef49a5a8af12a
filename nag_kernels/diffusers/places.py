# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which of its scheduler's timesteps a call of the denoiser is for: as the call's own timestep says, or the scheduler, or the
calls one after another."""

from typing import Any

import torch
from torch import Tensor

ADVICE = "leave them out, or set self._num_timesteps in the pipeline's call, as diffusers' pipelines do"


def not_placed(why: str) -> str:
    """What to say where it is not known which step a call of the denoiser is for."""
    return f"guide: start, end, sigma_end and a nag_scale for each step cannot be placed: {why}"


def place_of_view(timesteps: Tensor, given: Any) -> int | None:
    """Which of the timesteps `given` is a view of, as it is where a pipeline hands on what it takes from them. No value is looked
    at, as that would wait for a GPU."""
    if not isinstance(given, Tensor) or given.device != timesteps.device or given.dtype != timesteps.dtype:
        return None
    where, whole = given.untyped_storage(), timesteps.untyped_storage()
    if (
        where.data_ptr() != whole.data_ptr()
        or where.data_ptr() == 0
        or any(n > 1 and step for n, step in zip(given.shape, given.stride(), strict=True))
    ):
        return None
    return (given.storage_offset() - timesteps.storage_offset()) // max(timesteps.stride(0), 1)


def _written(given: Any) -> tuple[Any, int] | None:
    """A tensor and how often it was written into; None where that is not known."""
    return None if not isinstance(given, Tensor) or given.is_inference() else (given, given._version)


class Places:
    """Of the visits of one pass through the scheduler's timesteps.

    pipe: its class. scheduler: whose `step_index` says how many of its timesteps it has stepped through, if it counts them.
    timesteps: all that the scheduler has. count: how many of them the pass takes.
    start: the first of them, None where that is not known.
    """

    def __init__(self, pipe: str, scheduler: Any, timesteps: Tensor, start: int | None, count: int):
        self.pipe, self.scheduler, self.timesteps, self.start, self.count = pipe, scheduler, timesteps, start, count
        self.counted = 0  # visits that were placed one after another, as nothing said where they are
        self.unsure: list[Any] = []  # the timestep of the first visit, as long as it is only taken for the first
        self.latest: tuple[Any, int] | None = None  # the latest visit's timestep, and its version
        self.last = -1  # the place of the latest visit
        self.places: set[int] = set()

    def is_over(self, given: Any) -> bool:
        """Whether a call with this timestep begins another pass: the scheduler has new timesteps, and has not stepped."""
        timesteps = self.scheduler.timesteps
        if timesteps is self.timesteps or self._is_latest(given) or place_of_view(self.timesteps, given) is not None:
            return False
        if hasattr(self.scheduler, "step_index"):
            return self._stepped() is None
        if self.last < self.count - 1 and len(timesteps) == len(self.timesteps):
            self.timesteps = timesteps  # a copy: panoramas have one for each view
            return False
        return True

    def is_whole(self) -> bool:
        """Whether the pass has come to its last timestep. Raises RuntimeError where it began later than it said."""
        if self.last == self.count - 1:
            return True
        stepped = None if self.scheduler.timesteps is not self.timesteps else self._stepped()
        if stepped is None or self.start is None or stepped < self.start + self.count:
            return False
        self._check_first(surely=True)
        return True

    def place(self, given: Any) -> int:
        """Of a visit with this timestep, from 0 to `count`, which it is where nothing but the number of visits tells. Raises
        RuntimeError where it is no place of the pass."""
        at = place_of_view(self.timesteps, given)
        told = self._stepped() if at is None else at
        if told is None:
            # A second call with the very same timestep is for the same step.
            if not self._is_latest(given):
                self.counted += 1
                if not self.places:
                    self.unsure = [given.clone() if isinstance(given, Tensor) else given]
            place = self.counted - 1
        else:
            found = self.start is None
            if self.start is None:  # the visits before were one after another
                self.start = told - self.counted
            place = told - self.start
            begins_late = place > 0 and not self.places
            if not 0 <= place <= self.count or begins_late or (at is None and self.counted > 1):
                raise self._others()
            if found or place > self.counted:  # else it comes right after the first visit
                self._check_first(surely=not found)
            self.unsure = []
        self.last, self.latest = place, _written(given)
        self.places.add(place)
        return place

    def _check_first(self, surely: bool) -> None:
        """Raises RuntimeError where the first visit, which nothing has placed, was for another timestep than the first, or where
        that is not known and must be known (surely). Looks at values, which waits for a GPU."""
        known = [x for x in self.unsure if x is not None]
        near = [near_to(self.timesteps, x, factor) for x in known for factor in factors(self.scheduler)]
        must = (surely and bool(self.unsure)) or any(bool(x.any()) for x in near)
        if must and not any(bool(x[self.start]) for x in near):
            raise self._others()

    def _others(self) -> RuntimeError:
        return RuntimeError(
            not_placed(
                f"the timesteps with which {self.pipe} calls its denoiser are not the {self.count} that it takes of its "
                f"scheduler's; {ADVICE}"
            )
        )

    def _is_latest(self, given: Any) -> bool:
        now = _written(given)
        return now is not None and self.latest is not None and now[0] is self.latest[0] and now[1] == self.latest[1]

    def _stepped(self) -> int | None:
        index = getattr(self.scheduler, "step_index", None)
        return index if isinstance(index, int) else None


def factors(scheduler: Any) -> tuple[float, float]:
    """A denoiser's timestep is its scheduler's, or counts in thousandths; times one of these it is the scheduler's."""
    return 1.0, float(getattr(scheduler.config, "num_train_timesteps", 1000))


def near_to(timesteps: Tensor, given: Any, factor: float) -> Tensor:
    """Which of the timesteps, on the CPU, are a denoiser's to its rounding."""
    given = torch.as_tensor(given)
    rounding = torch.finfo(given.dtype).eps if given.is_floating_point() else 0.0
    value = factor * float(given.max())
    return (timesteps.double().cpu() - value).abs() <= max(1e-3, rounding * abs(value))


class Expected:
    """The timesteps with which a run is to call its denoiser, one after another."""

    def __init__(self, pipe: str, factor: float):
        """factor: times the denoiser's timestep it is the scheduler's."""
        self.pipe, self.factor = pipe, factor
        self.timesteps, self.step_of, self.at = torch.empty(0), [0], -1

    def begin(self, timesteps: Tensor, step_of: list[int]) -> None:
        self.timesteps, self.step_of, self.at = timesteps.double().cpu(), step_of, -1

    def place(self, given: Any) -> int:
        """The place of a visit in the run. Raises RuntimeError where it is not the next one."""
        near = near_to(self.timesteps, given, self.factor).tolist()
        for at in range(self.at + 1, len(near)):
            if near[at]:
                self.at = at
                return at
            # A run from an image may begin with the second visit of a step.
            if self.at != 0 or self.step_of[at] != self.step_of[0]:
                break
        raise RuntimeError(
            not_placed(
                f"the timesteps with which {self.pipe} calls its denoiser are not those of its scheduler one after another; "
                f"{ADVICE}"
            )
        )
