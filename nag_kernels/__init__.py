# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Negative prompts inside attention: NAG, NASA and VSF as one fused operation, for diffusion models."""

from .availability import available_backends
from .backends import explain
from .functional import fused_guided_attention, guidance, warmup

__version__ = "0.1.0"
__all__ = ["available_backends", "explain", "fused_guided_attention", "guidance", "warmup"]
