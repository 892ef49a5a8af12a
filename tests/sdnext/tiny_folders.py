# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Folders of tiny Stable Diffusion models with random weights, in the form that SD.Next loads."""

import json

import diffusers
import torch
from diffusers import UNet2DConditionModel
from pipeline_parts import ddim, image_vae
from test_unet import unet_sd15
from tiny import POOLED, TEXT, seeded
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

MARKS = "!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~"
WIDE = 784
ENDS = ("<|startoftext|>", "<|endoftext|>")


def tokenizer(folder):
    """CLIP's tokenizer with a vocabulary of single letters."""
    words = [*MARKS, *(mark + "</w>" for mark in MARKS), *ENDS]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=77)


def text_encoder(cls, words, seed, width=TEXT):
    end = words.eos_token_id
    config = CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, projection_dim=POOLED, bos_token_id=words.bos_token_id, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    return seeded(lambda: cls(config), seed=seed)


def sd15_folder(folder):
    words = tokenizer(folder / "words")
    diffusers.StableDiffusionPipeline(
        vae=image_vae(), text_encoder=text_encoder(CLIPTextModel, words, 1), tokenizer=words, unet=seeded(unet_sd15),
        scheduler=ddim(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder / "tiny-sd15")  # fmt: skip
    return folder / "tiny-sd15"


def unet_sdxl():
    """SD.Next takes a pooled text only from a text encoder wider than 768."""
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), cross_attention_dim=TEXT + WIDE, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=POOLED + 6 * 8,
    )  # fmt: skip


def sdxl_folder(folder):
    words = tokenizer(folder / "words")
    diffusers.StableDiffusionXLPipeline(
        vae=image_vae(), text_encoder=text_encoder(CLIPTextModel, words, 1), tokenizer=words, tokenizer_2=words,
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, words, 2, WIDE), unet=seeded(unet_sdxl), scheduler=ddim(),
    ).save_pretrained(folder / "tiny-sdxl")  # fmt: skip
    return folder / "tiny-sdxl"


if __name__ == "__main__":
    import sys
    from pathlib import Path

    torch.manual_seed(0)
    sd15_folder(Path(sys.argv[1]))
    sdxl_folder(Path(sys.argv[1]))
