# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny aMUSEd."""

import pytest

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import NEGATIVE
from test_unet import sdxl_pipeline
from tiny import POOLED, TEXT, WHOLE, Tiny, TinyPipeline, noise, seeded


def amused():
    return diffusers.UVit2DModel(
        hidden_size=32, cond_embed_dim=POOLED, micro_cond_encode_dim=8, micro_cond_embed_dim=40, encoder_hidden_size=TEXT,
        vocab_size=36, codebook_size=32, in_channels=16, block_out_channels=16, num_res_blocks=1, block_num_heads=2,
        num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, sample_size=8,
    )  # fmt: skip


def _amused_arguments(rows, dtype):
    return {"input_ids": (noise(rows, 8, 8, seed=3) * 99).long() % 33, "micro_conds": noise(rows, 5, seed=4, dtype=dtype),
            "pooled_text_emb": noise(rows, POOLED, seed=5, dtype=dtype)}  # fmt: skip


TINY: dict[str, Tiny] = {
    "UVit2DModel": Tiny(amused, _amused_arguments, WHOLE, tau=2.0),
}


def amused_pipeline():
    """It draws numbers of a codebook."""
    parts = sdxl_pipeline().components
    pipe = diffusers.AmusedPipeline(
        None, parts["tokenizer_2"], parts["text_encoder_2"], seeded(TINY["UVit2DModel"].build),
        diffusers.AmusedScheduler(mask_token_id=33),
    )  # fmt: skip
    return pipe, {"height": 64, "width": 64, "negative_prompt": ""}, {"prompt": "a small red cat"}, NEGATIVE


PIPELINES: dict[str, TinyPipeline] = {
    "amused": TinyPipeline(amused_pipeline),
}
