# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""A denoiser that predicts epsilon, v, flow or the sample, as one that predicts the noise and the sample.

Whatever it predicts, a noised sample is x_t = a x_0 + s e with e ~ N(0, 1), and (a, s) are the schedule's:

    epsilon       out = e                                   x_0 = (x_t - s e) / a
    v_prediction  out = a e - s x_0                         x_0 = a x_t - s out,    e = s x_t + a out      (a^2 + s^2 = 1)
    flow          out = e - x_0                             x_0 = x_t - s out,      e = x_t + a out        (a + s = 1)
    sample        out = x_0                                 e = (x_t - a x_0) / s

v_prediction is arXiv 2202.00512 (appendix D); flow is arXiv 2210.02747 with straight paths.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import Module

Prediction = Literal["epsilon", "v_prediction", "flow", "sample"]


class Schedule(Protocol):
    """Noise levels as a share of the way, u in [0, 1]: 0 is the sample, 1 the most noise that the model was trained on."""

    def levels(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s) at u [B]."""

    def timestep(self, u: Tensor) -> Tensor:
        """What the model is told at u [B]."""


@dataclass(frozen=True)
class Flow:
    """Straight paths: a = 1 - s, s = shift u / (1 + (shift - 1) u), the timestep 1000 s."""

    shift: float = 1.0

    def levels(self, u: Tensor) -> tuple[Tensor, Tensor]:
        s = self.shift * u / (1 + (self.shift - 1) * u)
        return 1 - s, s

    def timestep(self, u: Tensor) -> Tensor:
        return 1000 * self.levels(u)[1]


@dataclass(frozen=True)
class VarianceKept:
    """The T discrete levels of a DDPM: a^2 = alphas_cumprod[t], s^2 = 1 - a^2, t = round(u (T - 1))."""

    alphas_cumprod: Tensor

    def timestep(self, u: Tensor) -> Tensor:
        return (u * (len(self.alphas_cumprod) - 1)).round().long()

    def levels(self, u: Tensor) -> tuple[Tensor, Tensor]:
        kept = self.alphas_cumprod.to(u.device, u.dtype)[self.timestep(u)]
        return kept.sqrt(), (1 - kept).sqrt()


@dataclass(frozen=True)
class Denoiser:
    """How to ask a module, a diffusers transformer or UNet, for its prediction.

    arguments: (module, x_t [B, ...], timestep [B], text) to the arguments of the module's forward. A text is a tuple of
        tensors [B, ...], such as embeddings and mask.
    """

    module: Module
    arguments: Callable[[Module, Tensor, Tensor, tuple[Tensor, ...]], Mapping[str, Any]]
    prediction: Prediction
    schedule: Schedule

    def __post_init__(self):
        if self.prediction not in ("epsilon", "v_prediction", "flow", "sample"):
            raise ValueError(f"prediction must be epsilon, v_prediction, flow or sample, got {self.prediction!r}")

    def __call__(self, x: Tensor, u: Tensor, text: tuple[Tensor, ...]) -> Tensor:
        """The module's own prediction at x_t [B, ...] and noise levels u [B]."""
        return self.module(**self.arguments(self.module, x, self.schedule.timestep(u), text), return_dict=False)[0]

    def levels(self, u: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s) as they multiply tensors like `like`."""
        return tuple(x.reshape(-1, *[1] * (like.ndim - 1)) for x in self.schedule.levels(u))

    def noised(self, sample: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        a, s = self.levels(u, sample)
        return a * sample + s * noise

    def noise(self, out: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """e that the prediction `out` at x_t means."""
        a, s = self.levels(u, x)
        if self.prediction == "epsilon":
            return out
        if self.prediction == "v_prediction":
            return s * x + a * out
        if self.prediction == "flow":
            return x + a * out
        return (x - a * out) / s

    def sample(self, out: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """x_0 that the prediction `out` at x_t means."""
        a, s = self.levels(u, x)
        if self.prediction == "epsilon":
            return (x - s * out) / a
        if self.prediction == "v_prediction":
            return a * x - s * out
        if self.prediction == "flow":
            return x - s * out
        return out

    def target(self, sample: Tensor, noise: Tensor, u: Tensor) -> Tensor:
        """What the module should predict where x_t is made of `sample` and `noise`."""
        a, s = self.levels(u, sample)
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "v_prediction":
            return a * noise - s * sample
        if self.prediction == "flow":
            return noise - sample
        return sample


def guided(without: Tensor, with_text: Tensor, kappa: float) -> Tensor:
    """(1 - kappa) without + kappa with_text, of predictions of any kind: e is linear in each of them."""
    return torch.lerp(without, with_text, kappa)
