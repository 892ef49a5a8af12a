# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Ovis-Image."""

import pytest

pytest.importorskip("diffusers")

from pipeline_parts import ready_made
from tiny import Tiny, TinyPipeline, flux_like

TINY: dict[str, Tiny] = {
    "OvisImageTransformer2DModel": flux_like("OvisImageTransformer2DModel", out_channels=16),
}


PIPELINES: dict[str, TinyPipeline] = {
    "ovis": TinyPipeline(
        ready_made("OvisImagePipeline", TINY["OvisImageTransformer2DModel"], negative_prompt=None), two_calls=True
    ),
}
