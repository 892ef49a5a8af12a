# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the tiny pipelines of `tiny_pipelines` are made of."""

import inspect

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_families import TINY
from tiny_models import TEXT, Tokenizer, seeded
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

NEGATIVE = "a large blue dog on grass"


def t5():
    config = T5Config(vocab_size=64, d_model=TEXT, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    return {"text_encoder": seeded(lambda: T5EncoderModel(config), seed=2), "tokenizer": Tokenizer(16)}


def denoiser(kind):
    return seeded(TINY[kind].build)


def embeds(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_text(texts, **call):
    """The call with ready-made text for the prompt and for the unconditional text; the prompt's and the negative's own."""
    prompt, negative, unconditional = texts
    return call | {f"negative_{name}": x for name, x in unconditional.items()}, prompt, negative


def wan_vae(z_dim=16):
    config = {"base_dim": 3, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}
    own = {} if z_dim == 16 else {"latents_mean": [0.0] * z_dim, "latents_std": [1.0] * z_dim}
    return seeded(lambda: diffusers.AutoencoderKLWan(z_dim=z_dim, **config, **own))


def image_encoder():
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    processor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8)
    return {"image_encoder": seeded(lambda: CLIPVisionModel(vision)), "image_processor": processor}


def siglip():
    vision = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    processor = SiglipImageProcessor(size={"height": 8, "width": 8})
    return {"image_encoder": seeded(lambda: SiglipVisionModel(vision)), "feature_extractor": processor}


IMAGE = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32)
FROM_AN_IMAGE = {"image_dim": 8, "added_kv_proj_dim": 24, "in_channels": 36, "out_channels": 16}


def unipc():
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def ready_made(
    name, kind, *, masks="", pooled=0, length=None, rows=2, scheduler=FlowMatchEulerDiscreteScheduler, more=dict, **call
):
    """A pipeline (its class, or its name in diffusers) over a tiny model, with ready-made text; masks: the name of theirs in the
    call, pooled: the width of a pooled one."""

    def build():
        cls = getattr(diffusers, name) if isinstance(name, str) else name
        known = inspect.signature(cls.__init__).parameters
        absent = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "safety_checker")
        parts = {part: None for part in known if part in absent}
        parts |= {"vae": None, "scheduler": scheduler(), "transformer": denoiser(kind), **more()}
        pipe = cls(**parts)
        texts = []
        for n in (7, 5, 6):
            text = {"prompt_embeds": embeds(n, rows, length or n, *((2,) if "Krea" in kind else ()), TEXT)}
            if pooled:
                text["pooled_prompt_embeds"] = embeds(n + 9, rows, pooled)
            if masks:
                text[masks] = torch.arange(length or n) < torch.tensor([[n], [n - 2]][:rows])
            texts.append(text)
        return pipe, *with_text(texts, **{"height": 64, "width": 64} | call)

    return build
