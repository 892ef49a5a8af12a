# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The autoencoder of shapes: stock `AutoencoderDC`, 32x32x3 pictures to 8x8x8 latents and back."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderDC
from safetensors.torch import save_file

from ..whole_file import whole_file
from .parallel import bar, descent
from .scenes import draw_scenes, render
from .settings import Settings


def build_autoencoder() -> AutoencoderDC:
    """An untrained autoencoder; no layer works at full resolution, where a CPU spends its time."""
    channels = (32, 32, 64)
    return AutoencoderDC(
        latent_channels=8,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=(0, 1, 1),
        decoder_layers_per_block=(0, 1, 3),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        scaling_factor=1.0,
    )


def train_autoencoder(settings: Settings, rank: int, folder: Path) -> None:
    """Write `vae.safetensors`: the autoencoder's weights in float32.

        loss = |D(z') - x|_1 + |D(z') - x|^2 + mean(z)^2 + (std(z) - 1)^2,    z = E(x)

    z' is z with noise: the decoder learns to draw a clean picture from a latent that a few sampling steps left slightly
    wrong. The last two terms give latents the mean 0 and spread 1 that flow matching starts from.
    """
    torch.manual_seed(settings.seed + 10 + rank)
    rng = np.random.default_rng(settings.seed + 10 + rank)
    vae: Any = build_autoencoder()
    vae = vae.to(memory_format=torch.channels_last)
    down = descent([vae], settings.ae_steps, settings.ae_rate)
    batch = settings.ae_batch
    pictures: Any = ()
    steps = bar(range(settings.ae_steps), "autoencoder", rank)
    for step in steps:
        if step % 50 == 0:
            pictures = render(draw_scenes(50 * batch, rng)).split(batch)
        x = pictures[step % 50].contiguous(memory_format=torch.channels_last)
        latents = vae.encode(x).latent
        spread = latents.mean().square() + (latents.std() - 1).square()
        touched = latents + settings.ae_noise * torch.rand(batch, 1, 1, 1) * torch.randn_like(latents)
        error = vae.decode(touched).sample - x
        loss = error.abs().mean() + error.square().mean() + spread
        down.step(loss)
        if step % 100 == 0:
            steps.set_postfix(loss=f"{float(loss.detach()):.4f}", spread=f"{float(latents.detach().std()):.3f}")
    if rank == 0:
        state = {name: value.contiguous() for name, value in vae.state_dict().items()}
        with whole_file(folder / "vae.safetensors") as part:
            save_file(state, str(part))
