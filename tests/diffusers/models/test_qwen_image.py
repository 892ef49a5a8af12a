# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Qwen-Image and Qwen-Image 2.1."""

import types

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from pipeline_parts import embeds, four_steps, no_text_encoders, ready_made
from tiny import SEEN, TEXT, DropIn, Tiny, TinyPipeline, image_tokens, noise, seeded


def qwen():
    return QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def _qwen21():
    return diffusers.QwenImage21Transformer2DModel(
        in_channels=16, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, context_in_dim=TEXT,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def _qwen21_arguments(rows, dtype):
    shapes = [[(1, 4, 4)]] * rows
    # One time for all rows: the model adds a single row of time 0.
    return {"hidden_states": noise(rows, 16, 16, seed=3, dtype=dtype), "timestep": torch.tensor([0.5], dtype=dtype),
            "img_shapes": shapes}  # fmt: skip


def _qwen21_text(x, mask):
    slots = torch.arange(x.shape[1] + 4) >= x.shape[1]  # after the text: each stands for four tokens of the image
    return {"encoder_hidden_states": x, "encoder_hidden_states_mask": mask, "img_mask": slots.expand(len(x), -1)}


def _arguments(rows, dtype):
    return image_tokens(rows, dtype) | {"img_shapes": [[(1, 4, 4)]] * rows}


TINY: dict[str, Tiny] = {
    "QwenImage21Transformer2DModel": Tiny(_qwen21, _qwen21_arguments, 16, _qwen21_text, seen=SEEN),
}


class ChatProcessor:
    """As Qwen-Image 2.1 asks one for two numbers."""

    tokenizer = types.SimpleNamespace(encode=lambda text: [9])

    def apply_chat_template(self, *_, **__):
        return [[1]]


def chat_processor():
    return {"processor": ChatProcessor()}


def qwen_pipeline():
    """Without its text encoder, a large language model, and a call of four steps."""
    pipe = QwenImagePipeline(**no_text_encoders(), vae=None, transformer=seeded(qwen))
    return four_steps(pipe, true_cfg_scale=1.0)


def qwen_with_embeds():
    texts = [{"prompt_embeds": embeds(n, 2, n, TEXT), "prompt_embeds_mask": torch.ones(2, n).long()} for n in (9, 6)]
    return *qwen_pipeline(), *texts


DROP_IN: dict[str, DropIn] = {
    "qwen": DropIn(qwen, _arguments),
}


PIPELINES: dict[str, TinyPipeline] = {
    "qwen image 2.1": TinyPipeline(
        ready_made(
            "QwenImage21Pipeline",
            TINY["QwenImage21Transformer2DModel"],
            masks="prompt_embeds_mask",
            rows=1,
            more=chat_processor,
        ),
        two_calls=True,
        scale="true_cfg_scale",
    ),
}
READY_MADE = {"qwen": qwen_pipeline}
EXAMPLES = {"qwen image": qwen_with_embeds}
if not hasattr(diffusers, "QwenImage21Pipeline"):  # an older library has fewer
    del PIPELINES["qwen image 2.1"]
