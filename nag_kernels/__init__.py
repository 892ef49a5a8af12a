# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Negative prompts inside attention: NAG, NASA and VSF as one fused operation, for diffusion models."""

from pathlib import Path

# An installed package holds `triton_kernels`. In a checkout that folder lies beside the package, where setup.py finds it.
if not (Path(__file__).parent / "triton_kernels").exists():
    __path__.append(str(Path(__file__).parents[1]))

from .availability import available_backends
from .backends import explain
from .flops import register_with_counter
from .functional import fused_guided_attention, guidance, warmup

register_with_counter()

__version__ = "0.1.0"
__all__ = ["available_backends", "explain", "fused_guided_attention", "guidance", "warmup"]
