# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Distillations small enough for tests, on the CPU."""

import copy

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, UNet2DConditionModel

from nag_kernels.distill.levels import Levels
from nag_kernels.distill.models import Model, call_unet
from nag_kernels.distill.settings import Settings
from nag_kernels.distill.train import Distillation

TINY = Settings(steps=4, batch=4, lora_rank=2, lora_alpha=2.0, warmup=1, student_rate=1e-3, average=0.9)
DIFFUSION = DDIMScheduler(num_train_timesteps=1000).alphas_cumprod.double()


def levels(prediction: str) -> Levels:
    return Levels(prediction, None if prediction == "flow" else DIFFUSION, shift=2.0)


def tiny_unet() -> UNet2DConditionModel:
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=4, in_channels=2, out_channels=2, block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2, cross_attention_dim=6, norm_num_groups=4,
    ).eval()  # fmt: skip


def tiny_model(prediction: str = "epsilon") -> Model:
    def encode(prompts):
        rows = [torch.randn(5, 6, generator=torch.Generator().manual_seed(len(x))) for x in prompts]
        return {"embeds": torch.stack(rows)}

    return Model(tiny_unet(), levels(prediction), call_unet, encode, (2, 4, 4))


def prompts(step, count):
    return ["x" * (1 + (step * count + k) % 7) for k in range(count)]


def tiny(settings: Settings, prediction: str = "epsilon") -> Distillation:
    model = tiny_model(prediction)
    return Distillation(model, copy.deepcopy(model.module), prompts, settings, Accelerator(cpu=True))


def weights(run: Distillation) -> list[torch.Tensor]:
    return [*run.student.parameters(), *run.average.mean, *run.teachers.lora.values()]
