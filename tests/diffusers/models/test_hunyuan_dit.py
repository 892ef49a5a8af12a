# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny HunyuanDiT."""

import inspect

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import embeds, with_text
from tiny import TEXT, Tiny, TinyPipeline, images, noise, seeded, times


def hunyuan_dit():
    """Its texts have one length, and it sees all of them: what a mask hides is filled up with embeddings of the model."""
    return diffusers.HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, patch_size=2, sample_size=8, hidden_size=32,
        num_layers=4, cross_attention_dim=TEXT, cross_attention_dim_t5=TEXT, pooled_projection_dim=8, text_len=7,
        text_len_t5=6,
    )  # fmt: skip


def _hunyuan_dit_pooled_alike():
    """The oracle's run with the negative would have the pooled negative in its time."""
    model = hunyuan_dit()
    model.time_extra_emb.pooler = _Pooled()
    return model


class _Pooled(torch.nn.Module):
    def forward(self, x):
        return torch.linspace(-1, 1, 8).to(x).expand(len(x), -1)


def _hunyuan_dit_arguments(rows, dtype):
    angles = noise(16, 8, seed=5).repeat_interleave(2, dim=1).float()
    sizes = {"image_meta_size": torch.full((rows, 6), 8.0, dtype=dtype), "style": torch.zeros(rows, dtype=torch.long)}
    turns = {"image_rotary_emb": (angles.cos(), angles.sin())}
    return images(rows, dtype) | {"timestep": times(rows).to(dtype)} | sizes | turns


def _hunyuan_dit_text(x, mask):
    mask = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    return {"encoder_hidden_states": x, "text_embedding_mask": mask.long(), "encoder_hidden_states_t5": x[:, 1:].flip(-1),
            "text_embedding_mask_t5": mask[:, :-1].long()}  # fmt: skip


TINY: dict[str, Tiny] = {
    "HunyuanDiT2DModel": Tiny(
        _hunyuan_dit_pooled_alike,
        _hunyuan_dit_arguments,
        16,
        _hunyuan_dit_text,
        lengths=(7, 7),
        seen=((7, 3, 5), (5, 0, 1)),
        whole=hunyuan_dit,
    ),
}


def hunyuan_dit_pipeline():
    known = inspect.signature(diffusers.HunyuanDiTPipeline.__init__).parameters
    parts = {part: None for part in known if part != "self"} | {"requires_safety_checker": False}
    parts |= {"transformer": seeded(hunyuan_dit), "scheduler": diffusers.DDIMScheduler()}
    pipe, texts = diffusers.HunyuanDiTPipeline(**parts), []
    for n in (7, 5, 6):  # tokens that are no padding, of as many as there always are
        text = {"prompt_embeds": embeds(n, 2, 7, TEXT), "prompt_embeds_2": embeds(n + 9, 2, 6, TEXT)}
        text["prompt_attention_mask"] = (torch.arange(7) < torch.tensor([[n], [n - 2]])).long()
        text["prompt_attention_mask_2"] = text["prompt_attention_mask"][:, 1:]
        texts.append(text)
    return pipe, *with_text(texts, height=64, width=64, use_resolution_binning=False)


PIPELINES: dict[str, TinyPipeline] = {
    "hunyuan dit": TinyPipeline(hunyuan_dit_pipeline),
}
