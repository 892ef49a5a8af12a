# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny PRX."""

import pytest

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import MASKED, ready_made
from tiny import SEEN, TEXT, Tiny, TinyPipeline, images


def _prx():
    return diffusers.PRXTransformer2DModel(
        in_channels=4, patch_size=2, context_in_dim=TEXT, hidden_size=32, num_heads=2, depth=2, axes_dim=[8, 8]
    )


TINY: dict[str, Tiny] = {
    "PRXTransformer2DModel": Tiny(
        _prx, images, 16, lambda x, mask: {"encoder_hidden_states": x, "attention_mask": mask}, seen=SEEN
    ),
}


PIPELINES: dict[str, TinyPipeline] = {
    "prx": TinyPipeline(
        ready_made("PRXPipeline", TINY["PRXTransformer2DModel"], use_resolution_binning=False, rows=1, **MASKED)
    ),
}
