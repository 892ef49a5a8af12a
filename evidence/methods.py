# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""How each method steers the pipeline."""

import contextlib

import torch
from torch import Tensor

from nag_kernels.diffusers import guide
from nag_kernels.shapes.pipeline import ShapesPipeline

from .ablation import formula, heads_of
from .cells import PAIRS, Steering
from .perturbed import perturbed

BATCH = 64


def noise_for(pipe: ShapesPipeline, each: int) -> Tensor:
    """Start noise of `each` samples of every pair, pair by pair, [N, C, 8, 8].

    It depends on the pair and the number of the sample alone: the same seeds for every method, step count and variant, and
    the first samples of a large cell are those of a small one.
    """
    config = pipe.denoiser.config
    shape = (each, config.in_channels, config.sample_size, config.sample_size)
    seeds = [torch.Generator().manual_seed(1000 + index) for index in range(len(PAIRS))]
    return torch.cat([torch.randn(shape, generator=seed) for seed in seeds])


def draw(pipe: ShapesPipeline, method: Steering, steps: int, each: int, batch: int = BATCH) -> Tensor:
    """Pictures [N, 3, 32, 32] in [-1, 1], `each` of every pair, pair by pair."""
    pairs = [pair for pair in PAIRS for _ in range(each)]
    noise, pictures = noise_for(pipe, each), []
    pipe.set_progress_bar_config(disable=True)
    for start in range(0, len(pairs), batch):
        part = pairs[start : start + batch]
        prompts, negatives = [pair.prompt for pair in part], [pair.negative for pair in part]
        call = {"latents": noise[start : start + batch], "num_inference_steps": steps, "output_type": "pt"}
        if method.cfg > 1:
            call |= {"guidance_scale": method.cfg, "negative_prompt": [""] * len(part) if method.empty else negatives}
        with contextlib.ExitStack() as stack:
            if method.formula != "full":
                stack.enter_context(formula(method.formula, heads_of(pipe.denoiser)))
            if method.pag:
                call |= stack.enter_context(perturbed(pipe, prompts, call["latents"], method.pag))
            if method.rule:
                stack.enter_context(
                    guide(pipe, negatives, nag_scale=method.scale, nag_tau=method.tau, nag_alpha=method.alpha,
                          rule=method.rule, end=method.end)
                )  # fmt: skip
            pictures.append(pipe(prompts, **call).images.cpu())
    return torch.cat(pictures).float() * 2 - 1
