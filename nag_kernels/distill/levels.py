# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Noise levels, and what a denoiser's output says about picture and noise.

    x_t = alpha_t x_0 + sigma_t eps,  eps ~ N(0, 1)

Every output is linear in (x_0, eps), so with x_t it gives both, at any alpha and sigma:

    epsilon       eps
    v_prediction  alpha eps - sigma x_0      (arXiv 2202.00512, appendix D)
    flow          eps - x_0                  (arXiv 2210.02747)
    sample        x_0
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "flow", "sample")


@dataclass(frozen=True)
class Levels:
    """The noise levels of a schedule and the prediction of the model that learned it.

    prediction: one of `PREDICTIONS`.
    alphas_cumprod: float64 [N], alpha_t^2 of a diffusion schedule with sigma_t^2 = 1 - alpha_t^2, where the model's timestep is
        the index; None for flow matching, alpha = 1 - s and sigma = s, where it is `timesteps` s.
    shift: of flow matching, s = shift f / (1 + (shift - 1) f) at the fraction f.
    timesteps: of flow matching, the model's timestep at s = 1.
    """

    prediction: str
    alphas_cumprod: Tensor | None = None
    shift: float = 1.0
    timesteps: int = 1000

    def __post_init__(self):
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {self.prediction!r}")

    def __str__(self) -> str:
        """All of it, in a few words."""
        if self.alphas_cumprod is None:
            return f"{self.prediction}, shift {self.shift:g}, {self.timesteps} timesteps"
        table = self.alphas_cumprod.double().cpu()
        return f"{self.prediction}, {len(table)} timesteps {hashlib.sha256(table.numpy().data).hexdigest()[:12]}"

    def at(self, fraction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(timestep, alpha, sigma), each [B], at fractions [B] of the schedule: 0 is the picture, 1 is noise."""
        fraction = fraction.double()
        if self.alphas_cumprod is None:
            sigma = self.shift * fraction / (1 + (self.shift - 1) * fraction)
            return self.timesteps * sigma, 1 - sigma, sigma
        table = self.alphas_cumprod.to(fraction.device, torch.float64)
        timestep = (fraction * (len(table) - 1)).round().long()
        return timestep, table[timestep].sqrt(), (1 - table[timestep]).sqrt()

    def noise(self, x: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """eps from x_t and the model's output."""
        alpha, sigma = like(alpha, x), like(sigma, x)
        if self.prediction == "epsilon":
            return output
        if self.prediction == "v_prediction":
            return (alpha * output + sigma * x) / (alpha**2 + sigma**2)
        if self.prediction == "flow":
            return (x + alpha * output) / (alpha + sigma)
        return (x - alpha * output) / sigma

    def picture(self, x: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x_0 from x_t and the model's output."""
        alpha, sigma = like(alpha, x), like(sigma, x)
        if self.prediction == "epsilon":
            return (x - sigma * output) / alpha
        if self.prediction == "v_prediction":
            return (alpha * x - sigma * output) / (alpha**2 + sigma**2)
        if self.prediction == "flow":
            return (x - sigma * output) / (alpha + sigma)
        return output

    def target(self, picture: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The output of a model that knows x_0 and eps: what the denoising loss compares with."""
        if self.prediction == "v_prediction":
            return like(alpha, picture) * noise - like(sigma, picture) * picture
        return {"epsilon": noise, "flow": noise - picture, "sample": picture}[self.prediction]


def like(value: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, 1, ...] in the dtype of x."""
    return value.to(x).reshape(-1, *[1] * (x.ndim - 1))


def levels_of(scheduler: Any) -> Levels:
    """Those of a diffusers scheduler. Raises ValueError for one that is neither a diffusion nor a flow schedule."""
    config, name = scheduler.config, type(scheduler).__name__
    if getattr(scheduler, "alphas_cumprod", None) is None:
        if not name.startswith("FlowMatch"):
            raise ValueError(f"scheduler must have alphas_cumprod or be one of flow matching, got {name}")
        if config.get("use_dynamic_shifting"):
            raise ValueError(f"scheduler must have a fixed shift, got a {name} with use_dynamic_shifting")
        return Levels("flow", shift=config.get("shift", 1.0), timesteps=config.num_train_timesteps)
    prediction: str = "flow" if config.prediction_type == "flow_prediction" else config.prediction_type
    products = scheduler.alphas_cumprod.double()
    levels = Levels(prediction, products)
    if prediction == "epsilon" and products[-1] < 1e-6:
        raise ValueError(
            f"scheduler must not end in pure noise for a model that predicts noise, which then says nothing about the "
            f"picture: rescale_betas_zero_snr of this {name}"
        )
    return levels
