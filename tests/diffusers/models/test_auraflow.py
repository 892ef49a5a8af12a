# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny AuraFlow."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import MASKED, ready_made
from tiny import TEXT, Tiny, TinyPipeline, images


def _auraflow():
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=TEXT, pos_embed_max_size=16, out_channels=4,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("to_v.weight", "add_v_proj.weight")):
                parameter.mul_(40)  # it would hardly see its text
    return model


TINY: dict[str, Tiny] = {
    "AuraFlowTransformer2DModel": Tiny(_auraflow, images, 16),
}


PIPELINES: dict[str, TinyPipeline] = {
    "auraflow": TinyPipeline(ready_made("AuraFlowPipeline", TINY["AuraFlowTransformer2DModel"], **MASKED)),
}
