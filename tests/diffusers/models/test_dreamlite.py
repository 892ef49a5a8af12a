# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny DreamLite."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from pipeline_parts import NEGATIVE, PICTURE, Tokenizer, llama
from tiny import SEEN, TEXT, WHOLE, Tiny, TinyPipeline, masked_text, seeded, unet_arguments
from transformers import BatchEncoding


def dreamlite():
    return diffusers.DreamLiteUNetModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=4,
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"), cross_attention_dim=24, ff_mult=2,
        encoder_hid_dim=TEXT, encoder_hid_dim_type="text_proj_rms", num_kv_heads=2, addition_embed_type="time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=16, use_linear_projection=True,
    )  # fmt: skip


def _dreamlite_arguments(rows, dtype):
    sizes = {"time_ids": torch.full((rows, 2), 8.0, dtype=dtype)}
    return unet_arguments(rows, dtype) | {"added_cond_kwargs": sizes}


TINY: dict[str, Tiny] = {
    "DreamLiteUNetModel": Tiny(dreamlite, _dreamlite_arguments, WHOLE, masked_text, seen=SEEN),
}


class EncodedTokenizer(Tokenizer):
    """Whose answer is a mapping, too."""

    def __call__(self, *args, **kwargs):
        return BatchEncoding(vars(super().__call__(*args, **kwargs)))


def dreamlite_pipeline(name, **call):
    """It draws one image a call, always with classifier-free guidance or, distilled, never."""

    def build():
        parts = {"unet": seeded(dreamlite), "vae": seeded(lambda: diffusers.AutoencoderTiny(latent_channels=4))}
        parts |= {"text_encoder": llama(), "tokenizer": EncodedTokenizer(16), "processor": EncodedTokenizer(32)}
        pipe = getattr(diffusers, name)(scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
        for task in ("generate", "edit"):
            setattr(pipe, f"prompt_template_encode_{task}", "{}")
            setattr(pipe, f"prompt_template_encode_{task}_start_idx", 0)
        return pipe, {"height": 64, "width": 64, **call}, {"prompt": "a small red cat"}, NEGATIVE

    return build


PIPELINES: dict[str, TinyPipeline] = {
    "dreamlite": TinyPipeline(dreamlite_pipeline("DreamLitePipeline")),
    "dreamlite from an image": TinyPipeline(dreamlite_pipeline("DreamLitePipeline", image=PICTURE), cfg_rows=3),
    "dreamlite mobile": TinyPipeline(dreamlite_pipeline("DreamLiteMobilePipeline"), cfg_rows=0),
}
