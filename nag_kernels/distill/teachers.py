# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The two teachers of variational score distillation, on one copy of the weights.

    eps(kappa) = (1 - kappa) eps(x_t, t, no text) + kappa eps(x_t, t, text)
    gradient   = w(t) (eps_frozen(kappa) - eps_lora(kappa)) d x_student / d theta

ProlificDreamer (arXiv 2305.16213, equation 9) for one particle, as in SwiftBrush (arXiv 2312.05239); both teachers guided, by a
scale that is drawn: SNOOPI (arXiv 2412.02687).
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .levels import like
from .models import Model, Text, joined, rows, where
from .settings import Settings

ATTENTION = ("to_q", "to_k", "to_v", "to_out", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


def weight(name: str, alpha: Tensor, sigma: Tensor, picture: Tensor, frozen_picture: Tensor) -> Tensor:
    """w(t) [B] for noise levels [B], pictures [B, ...] and the frozen teacher's x_0 of them.

    sigma2  sigma^2                                      DreamFusion (arXiv 2209.14988), SwiftBrush
    x0      sigma / alpha: the gradient is the difference of the teachers' x_0
    dmd     x0 over the mean of |x_student - x_0|        DMD (arXiv 2311.18828, equation 8)

    x0 and dmd are infinite in pure noise, alpha = 0, which `Teachers` refuses.
    """
    if name == "sigma2":
        return sigma**2
    ratio = sigma / alpha
    if name == "dmd":
        ratio = ratio / (picture - frozen_picture).abs().flatten(1).mean(1).to(ratio).clamp(min=1e-6)
    return ratio


def layers(module: nn.Module, targets: str) -> list[str]:
    """Names of the layers that get an adapter: "all" linear and convolution layers, or the linear ones of "attention"."""
    kinds = (nn.Linear, nn.Conv2d) if targets == "all" else nn.Linear
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, kinds) and (targets == "all" or any(part in ATTENTION for part in name.split(".")))
    ]


class Teachers:
    """The frozen teacher, which is `model.module` with its adapters off, and the LoRA teacher, the same with them on.

    Raises: ValueError where no layer is a target, and where `t_low` or `t_high` is a level at which the gradient is not finite:
        pure noise with the weight "x0" or "dmd", the picture itself for a model that predicts it.
    """

    def __init__(self, model: Model, settings: Settings):
        self.model, self.settings = model, settings
        _, alpha, sigma = model.levels.at(torch.tensor([settings.t_low, settings.t_high]))
        if settings.weight != "sigma2" and alpha[1] < 1e-6:
            raise ValueError(
                f"t_high must be a level at which the picture shows through for weight {settings.weight!r}, a multiple of "
                f"sigma / alpha, got {settings.t_high}: pure noise, alpha = {float(alpha[1]):.1g}"
            )
        if model.levels.prediction == "sample" and sigma[0] < 1e-6:
            raise ValueError(
                f"t_low must be a level with noise for a model that predicts 'sample', got {settings.t_low}: "
                f"sigma = {float(sigma[0]):.1g}"
            )
        module = model.module.requires_grad_(False)
        names = layers(module, settings.lora_targets)
        if not names:
            raise ValueError(f"lora_targets = {settings.lora_targets!r} finds no layer in this {type(module).__name__}")
        lora_alpha: Any = settings.lora_alpha  # peft says int, and divides by the rank
        config = LoraConfig(r=settings.lora_rank, lora_alpha=lora_alpha, target_modules=names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            inject_adapter_in_model(config, module)
        self._adapted = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
        self.lora = {name: each for name, each in module.named_parameters() if ".lora_" in name}
        for each in self.lora.values():  # of a teacher in half precision, too
            each.data = each.data.to(torch.promote_types(each.dtype, torch.float32))

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Within the block `model.module` is the frozen teacher."""
        for layer in self._adapted:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._adapted:
                layer.enable_adapters(True)

    def guided(self, x: Tensor, timestep: Tensor, text: Text, no_text: Text, kappa: float) -> Tensor:
        """The output at guidance scale kappa. As eps is linear in the output, so is eps(kappa) in this."""
        if kappa == 1:
            return self.model.output(self.model.module, x, timestep, text)
        both = joined(rows(no_text, len(x)), text)
        output = self.model.output(self.model.module, torch.cat([x, x]), timestep.repeat(2), both)
        without, with_text = output.chunk(2)
        return (1 - kappa) * without + kappa * with_text

    @torch.no_grad()
    def gradient(
        self, picture: Tensor, noise: Tensor, fraction: Tensor, text: Text, no_text: Text, kappas: tuple[float, float]
    ) -> Tensor:
        """w(t) (eps_frozen(kappa) - eps_lora(kappa)), like the student's `picture` [B, ...].

        noise: like picture.  fraction: [B], of the schedule.  text: of B rows.  no_text: of one.
        kappas: of the frozen and of the LoRA teacher.
        """
        levels = self.model.levels
        timestep, alpha, sigma = levels.at(fraction)
        x = like(alpha, picture) * picture + like(sigma, picture) * noise
        with self.frozen():
            frozen = self.guided(x, timestep, text, no_text, kappas[0])
        lora = self.guided(x, timestep, text, no_text, kappas[1])
        w = weight(self.settings.weight, alpha, sigma, picture, levels.picture(x, frozen, alpha, sigma))
        return like(w, x) * (levels.noise(x, frozen, alpha, sigma) - levels.noise(x, lora, alpha, sigma))

    def loss(self, picture: Tensor, noise: Tensor, fraction: Tensor, text: Text, no_text: Text, kept: Tensor) -> Tensor:
        """The LoRA teacher's denoising loss on the student's pictures, in what the model predicts: mean |output - target|^2.

        kept: bool [B]; the other pictures come without their text.
        """
        levels = self.model.levels
        timestep, alpha, sigma = levels.at(fraction)
        x = like(alpha, picture) * picture + like(sigma, picture) * noise
        seen = where(kept, text, rows(no_text, len(x)))
        output = self.model.output(self.model.module, x, timestep, seen)
        return (output - levels.target(picture, noise, alpha, sigma)).square().mean()
