# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny AudioLDM 2."""

import inspect
import types

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import embeds, with_text
from tiny import SEEN, TEXT, WHOLE, Tiny, TinyPipeline, masked_text, seeded, unet_arguments


def audioldm2():
    """In each block attention to itself, to a first and to a second text."""
    return diffusers.AudioLDM2UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=2, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=((None, TEXT, TEXT), (None, TEXT, TEXT)),
    )  # fmt: skip


def _two_texts(x, mask):
    """The second has other lengths; its mask begins where that of the first ends."""
    mask = None if mask is None else mask[:, : x.shape[1] - 2].long()
    return {"encoder_hidden_states": x, "encoder_hidden_states_1": x[:, 2:].flip(-1), "encoder_attention_mask_1": mask}


TINY: dict[str, Tiny] = {
    "AudioLDM2UNet2DConditionModel": Tiny(
        audioldm2, unet_arguments, WHOLE, _two_texts, seen=((5, 3, 4), (3, 2, 1)), tau=3.0
    ),
    "AudioLDM2UNet2DConditionModel of one text": Tiny(
        audioldm2, unet_arguments, WHOLE, masked_text, seen=SEEN, tau=3.0
    ),
}


def audioldm2_pipeline():
    """Two texts, one with a mask."""
    parts = dict.fromkeys(inspect.signature(diffusers.AudioLDM2Pipeline.__init__).parameters)
    del parts["self"]
    pipe = diffusers.AudioLDM2Pipeline(**parts | {"unet": seeded(audioldm2), "scheduler": diffusers.DDIMScheduler()})
    shape = {"upsample_rates": [2, 2], "sampling_rate": 16, "model_in_dim": 64, "model_type": "t5"}
    config = types.SimpleNamespace(**shape)
    pipe.vocoder = pipe.text_encoder_2 = pipe.language_model = types.SimpleNamespace(config=config, dtype=torch.float32)
    texts = []
    for n in (7, 5, 6):
        text = {"prompt_embeds": embeds(n, 2, 7, TEXT), "generated_prompt_embeds": embeds(n + 9, 2, 4, TEXT)}
        texts.append(text | {"attention_mask": (torch.arange(7) < torch.tensor([[n], [n - 2]])).long()})
    return pipe, *with_text(texts)


PIPELINES: dict[str, TinyPipeline] = {
    "audioldm 2": TinyPipeline(audioldm2_pipeline),
}
