# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny BRIA 3.2, FIBO and FIBO 2."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import ready_made
from stand_in import alone
from tiny import SEEN, TEXT, Tiny, TinyPipeline, flux_arguments, flux_like, flux_text, timed_images


def _fibo():
    return diffusers.BriaFiboTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT, axes_dims_rope=(4, 4, 8), text_encoder_dim=TEXT,
    )  # fmt: skip


def _fibo_text(x, mask):
    if mask is not None:
        mask = torch.cat([mask, torch.ones(len(mask), 16, dtype=torch.bool)], dim=1)[:, None, None]
        mask = {"attention_mask": mask}
    return flux_text(x, None) | {"text_encoder_layers": [x.flip(-1), -x], "joint_attention_kwargs": mask}


def _fibo2():
    return diffusers.BriaFibo2Transformer2DModel(
        in_channels=4, patch_size=2, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=TEXT,
        injection_layer_ids=(1,), perceiver_num_layers=1, min_num_gist_tokens=2, max_num_gist_tokens=5, gist_step=1,
        gist_min_text_len=1, gist_max_text_len=7, axes_dims=(8, 4, 4), axes_lens=(32, 16, 16),
    )  # fmt: skip


def _fibo2_text(x, mask):
    return {"encoder_hidden_states": torch.stack([x, x.flip(-1)], dim=1), "encoder_attention_mask": mask}


TINY: dict[str, Tiny] = {
    "BriaTransformer2DModel": flux_like("BriaTransformer2DModel"),
    "BriaFiboTransformer2DModel": Tiny(_fibo, flux_arguments, 16, _fibo_text, seen=SEEN),
    "BriaFibo2Transformer2DModel": Tiny(_fibo2, timed_images, 16, _fibo2_text, seen=SEEN, alone=True),
}


PIPELINES: dict[str, TinyPipeline] = {
    "bria": TinyPipeline(
        ready_made(
            "BriaPipeline",
            TINY["BriaTransformer2DModel"],
            length=7,
            height=8,
            width=8,
            more=lambda: {"vae": diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1)},
        )
    ),
}
EXAMPLES = {
    "bria fibo": alone(TINY["BriaFiboTransformer2DModel"]),
    "bria fibo 2": alone(TINY["BriaFibo2Transformer2DModel"]),
}
if not hasattr(diffusers, "BriaFibo2Transformer2DModel"):  # an older library has fewer
    del EXAMPLES["bria fibo 2"]
