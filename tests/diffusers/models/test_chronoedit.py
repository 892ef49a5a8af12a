# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny ChronoEdit."""

import pytest

pytest.importorskip("diffusers")

from test_wan import from_an_image, wan_relative
from tiny import Tiny, TinyPipeline

TINY: dict[str, Tiny] = {
    "ChronoEditTransformer3DModel from an image": from_an_image("ChronoEditTransformer3DModel"),
}


PIPELINES: dict[str, TinyPipeline] = {
    "chronoedit": TinyPipeline(
        wan_relative(
            "ChronoEditPipeline",
            "ChronoEditTransformer3DModel",
            enable_temporal_reasoning=True,
            num_temporal_reasoning_steps=2,
        ),
        two_calls=True,
    ),
}
