# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Kandinsky 3."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import NEGATIVE, embeds, t5, with_text
from tiny import SEEN, TEXT, WHOLE, Tiny, TinyPipeline, masked_text, seeded, unet_arguments


def kandinsky3():
    return diffusers.Kandinsky3UNet(
        time_embedding_dim=16, groups=1, attention_head_dim=8, layers_per_block=2, block_out_channels=(16, 16, 16, 32),
        cross_attention_dim=24, encoder_hid_dim=TEXT,
    )  # fmt: skip


def _kandinsky3_pooled_alike():
    """As above."""
    model = kandinsky3()
    model.add_time_condition.forward = lambda time, *_: time
    return model


TINY: dict[str, Tiny] = {
    "Kandinsky3UNet": Tiny(
        _kandinsky3_pooled_alike, unet_arguments, WHOLE, masked_text, seen=SEEN, tau=2.0, whole=kandinsky3
    ),
}


def kandinsky3_pipeline():
    """With a text encoder; texts are cut to the longest of the call."""
    pipe = diffusers.Kandinsky3Pipeline(
        t5()["tokenizer"], t5()["text_encoder"], seeded(kandinsky3), diffusers.DDPMScheduler(), None
    )
    return pipe, {"height": 64, "width": 64, "negative_prompt": "blue"}, {"prompt": "a small red cat"}, NEGATIVE


def kandinsky3_ready_made():
    pipe, call, *_ = kandinsky3_pipeline()
    texts = []
    for n in (7, 5, 6):
        text = {
            "prompt_embeds": embeds(n, 2, 7, TEXT),
            "attention_mask": torch.arange(7) < torch.tensor([[n], [n - 2]]),
        }
        texts.append(text)
    return pipe, *with_text(texts, **call | {"negative_prompt": None})


PIPELINES: dict[str, TinyPipeline] = {
    "kandinsky 3": TinyPipeline(kandinsky3_pipeline),
    "kandinsky 3 ready made": TinyPipeline(kandinsky3_ready_made),
}
