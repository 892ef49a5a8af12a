# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The settings that the papers use for each model: what `guide` and the ComfyUI node take where none are given.

SHAPES and VSF_SCALE are what the commands begin with instead."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What the papers use for a model: NAG's scale (phi + 1), tau, alpha; NASA's scale, None if none is published."""

    nag_scale: float
    nag_tau: float
    nag_alpha: float
    nasa_scale: float | None = None


FLUX = Settings(5.0, 2.5, 0.25)  # FLUX.1 and Wan; also for all models for which none are published
SD15 = Settings(3.0, 2.5, 0.375, nasa_scale=0.1)
SD2 = Settings(3.0, 2.5, 0.375, nasa_scale=0.2)
SDXL = Settings(3.0, 2.5, 0.5)
SD3 = Settings(5.0, 2.5, 0.125)
SANA = Settings(5.0, 2.5, 0.375)
PIXART = Settings(5.0, 2.5, 0.375, nasa_scale=0.5)
SHAPES = Settings(5.0, 2.5, 0.2, nasa_scale=0.5)  # found by sweeps for the model that ships here (docs/shapes.md)
VSF_SCALE = 1.7  # the least in its authors' examples, which differ by prompt; `guide` wants one given
