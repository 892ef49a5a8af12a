# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the trainings of shapes and of students share: steps of AdamW that all processes take together, and averaged weights."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def cosine_rate(done: int, steps: int, warmup: int, final: float) -> float:
    """The learning rate of step `done` of `steps`, over its peak: a linear rise over `warmup` steps times half a cosine from 1 to
    `final`."""
    fall = 0.5 * (1 + math.cos(math.pi * min(done / steps, 1.0)))
    return min(1.0, (done + 1) / warmup) * (final + (1 - final) * fall)


class Descent:
    """AdamW with warm-up, cosine decay, clipping, and gradients averaged over the processes of torch.distributed, if it is on.

    groups: parameters, or groups of them as torch's optimizers take them.  rate: the largest.  clip: the largest norm of all
    gradients together.  Parameters begin as those of the first process.
    """

    def __init__(self, groups: Sequence[Tensor] | Sequence[dict[str, Any]], rate: float, steps: int, *, warmup: int,
                 final: float, clip: float = 1.0, beta2: float = 0.99):  # fmt: skip
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, beta2), weight_decay=0.0, fused=True)
        self.parameters: list[Tensor] = [x for group in self.optimizer.param_groups for x in group["params"]]
        self.rate, self.steps, self.clip = rate, max(steps, 1), clip
        self.warmup, self.final, self.done = warmup, final, 0
        if _processes() > 1:
            for each in self.parameters:
                dist.broadcast(each.data, 0)

    def step(self, loss: Tensor) -> float:
        """One step down `loss`, the mean over this process's part of the batch; returns the gradients' norm before clipping."""
        loss.backward()
        gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in self.parameters]
        flat = torch.cat([x.reshape(-1) for x in gradients])
        if (processes := _processes()) > 1:
            dist.all_reduce(flat)
            flat /= processes
        norm = float(flat.norm())
        flat *= min(1.0, self.clip / (norm + 1e-6))
        parts = flat.split([x.numel() for x in gradients])
        for parameter, gradient, part in zip(self.parameters, gradients, parts, strict=True):
            parameter.grad = gradient.copy_(part.view_as(gradient))
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * cosine_rate(self.done, self.steps, self.warmup, self.final)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return norm


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class Average:
    """Exponential moving average of modules' parameters, with a short memory at the start."""

    def __init__(self, modules: Iterable[nn.Module], decay: float = 0.999):
        self.live = [each for module in modules for each in module.parameters()]
        self.mean = [each.detach().clone() for each in self.live]
        self.decay, self.count = decay, 0

    def update(self) -> None:
        self.count += 1
        share = 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.mean, [each.detach() for each in self.live], share)

    def swap(self) -> None:
        """Exchange the average and the live weights; a second call undoes the first."""
        for live, mean in zip(self.live, self.mean, strict=True):
            kept = live.detach().clone()
            live.data.copy_(mean)
            mean.copy_(kept)
