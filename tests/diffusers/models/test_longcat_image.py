# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny LongCat-Image."""

import pytest

pytest.importorskip("diffusers")

import diffusers
from stand_in import alone
from tiny import Tiny, flux_like

TINY: dict[str, Tiny] = {
    "LongCatImageTransformer2DModel": flux_like("LongCatImageTransformer2DModel"),
}
EXAMPLES = (
    {"longcat image": alone(TINY["LongCatImageTransformer2DModel"])}
    if hasattr(diffusers, "LongCatImageTransformer2DModel")
    else {}
)
