# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""One-step distillation by variational score distillation: SwiftBrush (a fixed guidance scale) and PG-SB (a random one)."""

from .denoiser import Denoiser, Flow, Prediction, Schedule, VarianceKept
from .train import Distillation, Settings, Texts

__all__ = ["Denoiser", "Distillation", "Flow", "Prediction", "Schedule", "Settings", "Texts", "VarianceKept"]
