# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What distillation needs of a pipeline: its denoiser, how text reaches it, and the shape of a sample."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch import Tensor

from nag_kernels.shapes.pipeline import ShapesPipeline, denoiser_arguments
from nag_kernels.shapes.scenes import COLOUR_NAMES, caption, draw_scenes

from .denoiser import Denoiser, Flow, VarianceKept
from .train import Texts


@dataclass(frozen=True)
class Source:
    teacher: Denoiser
    texts: Texts
    shape: tuple[int, ...]


def source(pipe: Any, prompts: list[str] | None = None, negative: str | None = None) -> Source:
    """The teacher, texts and sample shape of a pipeline: `ShapesPipeline`, or `StableDiffusionPipeline` and its kin (SD1.5,
    SD2) of any prediction type.

    prompts: what to draw from; needed but for shapes, whose world supplies captions. negative: what NASA leads away from; for
    shapes, if None, a colour that the prompt does not name.
    Raises ValueError for another pipeline, or no prompts.
    """
    if isinstance(pipe, ShapesPipeline):
        return _shapes(pipe, prompts, negative)
    if isinstance(pipe, StableDiffusionPipeline):
        if not prompts:
            raise ValueError("prompts must be given for a StableDiffusionPipeline, got none")
        return _stable_diffusion(pipe, prompts, negative)
    raise ValueError(
        f"pipe must be a ShapesPipeline or StableDiffusionPipeline, got {type(pipe).__name__}; for another model give "
        "nag_kernels.distill.Distillation a Denoiser of your own"
    )


def _texts(prompts: list[str], negative: str | None, encode: Any) -> Texts:
    def draw(rng: np.random.Generator, count: int) -> list[str]:
        return [prompts[i] for i in rng.integers(0, len(prompts), count)]

    return Texts(draw, encode, None if negative is None else lambda rng, drawn: [negative] * len(drawn))


def _shapes(pipe: ShapesPipeline, prompts: list[str] | None, negative: str | None) -> Source:
    def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
        return pipe.encode_prompt(texts)[:2]

    def captions(rng: np.random.Generator, count: int) -> list[str]:
        return caption(draw_scenes(count, rng, two_share=0.25), rng, full_share=0.5)

    def other_colours(rng: np.random.Generator, drawn: list[str]) -> list[str]:
        names = [[name for name in COLOUR_NAMES if name not in text.split()] for text in drawn]
        return [free[rng.integers(len(free))] for free in names]

    texts = _texts(prompts, negative, encode) if prompts else Texts(captions, encode, other_colours)
    config = pipe.denoiser.config
    teacher = Denoiser(
        pipe.denoiser,
        lambda module, x, timestep, text: denoiser_arguments(module, x, timestep, *text),
        "flow",
        Flow(pipe.scheduler.config.shift),
    )
    return Source(teacher, texts, (config.in_channels, config.sample_size, config.sample_size))


def _stable_diffusion(pipe: StableDiffusionPipeline, prompts: list[str], negative: str | None) -> Source:
    def encode(texts: list[str]) -> tuple[Tensor]:
        return (pipe.encode_prompt(texts, pipe.unet.device, 1, False)[0],)

    noise = DDPMScheduler.from_config(pipe.scheduler.config)
    config = pipe.unet.config
    teacher = Denoiser(
        pipe.unet,
        lambda module, x, timestep, text: {"sample": x, "timestep": timestep, "encoder_hidden_states": text[0]},
        noise.config.prediction_type,
        VarianceKept(noise.alphas_cumprod),
    )
    return Source(teacher, _texts(prompts, negative, encode), (config.in_channels, *[config.sample_size] * 2))
