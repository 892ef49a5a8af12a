# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Chroma."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from pipeline_parts import NEGATIVE, t5
from tiny import TEXT, UNSEEN, Tiny, TinyPipeline, flux_arguments, flux_text, seeded


def _chroma():
    return diffusers.ChromaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT, axes_dims_rope=(4, 4, 8), approximator_num_channels=8, approximator_hidden_dim=16,
        approximator_layers=1,
    )  # fmt: skip


def _chroma_text(x, mask):
    mask = None if mask is None else torch.cat([mask, torch.ones(len(mask), 16, dtype=torch.bool)], dim=1)
    return flux_text(x, None) | {"attention_mask": mask}


def _chroma_text_with_numbers(x, mask):
    text = _chroma_text(x, mask)
    return text if mask is None else text | {"attention_mask": text["attention_mask"].to(x)}


TINY: dict[str, Tiny] = {
    "ChromaTransformer2DModel": Tiny(_chroma, flux_arguments, 16, _chroma_text, seen=UNSEEN),
    "ChromaTransformer2DModel numbers": Tiny(_chroma, flux_arguments, 16, _chroma_text_with_numbers, seen=UNSEEN),
}


def chroma_pipeline():
    pipe = diffusers.ChromaPipeline(
        FlowMatchEulerDiscreteScheduler(), None, **t5(), transformer=seeded(TINY["ChromaTransformer2DModel"].build)
    )
    return pipe, {"height": 32, "width": 32, "max_sequence_length": 12}, {"prompt": "a small red cat"}, NEGATIVE


PIPELINES: dict[str, TinyPipeline] = {
    "chroma": TinyPipeline(chroma_pipeline, two_calls=True),
}
