# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny HunyuanVideo, HunyuanVideo 1.5 and FramePack."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from pipeline_parts import (
    IMAGE,
    NEGATIVE,
    SQUARE,
    Tokenizer,
    embeds,
    hunyuan_vae,
    ready_made,
    siglip,
    two_encoders,
    with_text,
)
from tiny import SEEN, TEXT, WHOLE, Tiny, TinyPipeline, masked_text, noise, seeded, times, two_masked_texts, videos
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel


def hunyuan_video(**config):
    config = {"in_channels": 4, **config}
    return diffusers.HunyuanVideoTransformer3DModel(
        out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=2, patch_size_t=1, text_embed_dim=TEXT, pooled_projection_dim=8,
        rope_axes_dim=(4, 4, 4), **config,
    )  # fmt: skip


def _hunyuan_video_arguments(rows, dtype):
    pooled = noise(rows, 8, seed=4, dtype=dtype)
    return videos(rows, dtype) | {"pooled_projections": pooled, "guidance": times(rows)}


def hunyuan_video15(**config):
    config = {"in_channels": 4, "task_type": "t2v", **config}
    return diffusers.HunyuanVideo15Transformer3DModel(
        out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2, num_refiner_layers=1,
        patch_size=2, patch_size_t=1, text_embed_dim=TEXT, text_embed_2_dim=TEXT, image_embed_dim=8,
        rope_axes_dim=(4, 4, 4), **config,
    )  # fmt: skip


def _hunyuan_video15_arguments(rows, dtype):
    image = torch.zeros(rows, 6, 8, dtype=dtype)
    return videos(rows, dtype) | {"timestep": times(rows, dtype), "image_embeds": image}


def _hunyuan_video15_from_an_image(rows, dtype):
    return _hunyuan_video15_arguments(rows, dtype) | {"image_embeds": noise(rows, 6, 8, seed=4, dtype=dtype)}


def _framepack():
    return diffusers.HunyuanVideoFramepackTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=2, patch_size_t=1, text_embed_dim=TEXT, pooled_projection_dim=8,
        rope_axes_dim=(4, 4, 4), has_image_proj=True, image_proj_dim=8, has_clean_x_embedder=True,
    )  # fmt: skip


def _framepack_arguments(rows, dtype):
    """With frames drawn before, at three sizes, which see the text too."""
    frames = {"latents_clean": 2, "latents_history_2x": 2, "latents_history_4x": 4}
    history = {name: noise(rows, 4, n, 4, 8, seed=5 + n, dtype=dtype) for name, n in frames.items()}
    indices = {f"indices_{name}": torch.arange(n) for name, n in frames.items()}
    image = {"image_embeds": noise(rows, 6, 8, seed=4, dtype=dtype), "indices_latents": torch.arange(2)}
    return _hunyuan_video_arguments(rows, dtype) | image | history | indices


def _left_padded_text(x, mask):
    """HunyuanVideo then counts what is seen, and sees as many tokens from the first."""
    return masked_text(x, None if mask is None else mask.flip(1))


TINY: dict[str, Tiny] = {
    "HunyuanVideoTransformer3DModel": Tiny(
        hunyuan_video, _hunyuan_video_arguments, 16, masked_text, text_first=False, seen=SEEN
    ),
    "HunyuanVideoTransformer3DModel left": Tiny(
        hunyuan_video, _hunyuan_video_arguments, 16, _left_padded_text, text_first=False, seen=SEEN
    ),
    "HunyuanVideo15Transformer3DModel": Tiny(
        hunyuan_video15,
        _hunyuan_video15_arguments,
        16,
        two_masked_texts,
        text_first=False,
        seen=((7, 3, 5), (5, 4, 1)),
    ),
    "HunyuanVideo15Transformer3DModel from an image": Tiny(
        hunyuan_video15,
        _hunyuan_video15_from_an_image,
        16,
        two_masked_texts,
        text_first=False,
        seen=((7, 3, 5), (5, 4, 1)),
    ),
    "HunyuanVideoFramepackTransformer3DModel": Tiny(
        _framepack, _framepack_arguments, WHOLE, masked_text, text_first=False, seen=SEEN
    ),
    "HunyuanVideoFramepackTransformer3DModel left": Tiny(
        _framepack, _framepack_arguments, WHOLE, _left_padded_text, text_first=False, seen=SEEN
    ),
    "HunyuanVideoFramepackTransformer3DModel one": Tiny(
        _framepack, _framepack_arguments, WHOLE, _left_padded_text, text_first=False, seen=((4,), (3,)), rows=1
    ),
}


def hunyuan_video_from_an_image(kind):
    def more():
        seen = {"in_channels": 9 if kind == "latent_concat" else 4, "image_condition_type": kind}
        return {
            "vae": hunyuan_vae(),
            "transformer": seeded(lambda: hunyuan_video(**seen)),
            "image_processor": None,
        }

    return ready_made("HunyuanVideoImageToVideoPipeline", TINY["HunyuanVideoTransformer3DModel"], more=more, rows=1, num_frames=5,
                      image=IMAGE, pooled=8, masks="prompt_attention_mask", length=7, **SQUARE)  # fmt: skip


def hunyuan_video_pipeline():
    pipe = diffusers.HunyuanVideoPipeline(
        None,
        None,
        seeded(TINY["HunyuanVideoTransformer3DModel"].build),
        None,
        FlowMatchEulerDiscreteScheduler(),
        None,
        None,
    )
    texts = [{"prompt_embeds": embeds(n, 2, n, TEXT), "pooled_prompt_embeds": embeds(n, 2, 8),
              "prompt_attention_mask": (torch.arange(n) < torch.tensor([[n], [n - 2]])).long()} for n in (7, 5, 6)]  # fmt: skip
    return pipe, *with_text(texts, height=32, width=32, num_frames=5)


def hunyuan_video15_pipeline(from_an_image):
    """Classifier-free guidance is a part of the pipeline, on or off; the second text may have no token."""

    def build():
        vae = seeded(lambda: diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1
        ))  # fmt: skip
        transformer = seeded(lambda: hunyuan_video15(
            in_channels=9, target_size=64, task_type="i2v" if from_an_image else "t2v"
        ))  # fmt: skip
        parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
        parts |= {"vae": vae, "transformer": transformer, "scheduler": FlowMatchEulerDiscreteScheduler()}
        parts |= {"guider": diffusers.ClassifierFreeGuidance(guidance_scale=3.0)} | (siglip() if from_an_image else {})
        name = "HunyuanVideo15ImageToVideoPipeline" if from_an_image else "HunyuanVideo15Pipeline"
        picture = Image.fromarray((IMAGE[0] * 255).byte().permute(1, 2, 0).numpy())
        call = {"image": picture} if from_an_image else {"height": 64, "width": 64}
        return getattr(diffusers, name)(**parts), *with_text(two_encoders(), num_frames=5, **call)

    return build


def framepack():
    """With text encoders; two parts of a video, of which each sees the frames of the other."""
    llama = LlamaConfig(
        vocab_size=64, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4
    )
    clip = CLIPTextConfig(
        vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, eos_token_id=2
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )
    pipe = diffusers.HunyuanVideoFramepackPipeline(
        seeded(lambda: LlamaModel(llama)), Tokenizer(16), seeded(TINY["HunyuanVideoFramepackTransformer3DModel"].build),
        seeded(lambda: vae), FlowMatchEulerDiscreteScheduler(), seeded(lambda: CLIPTextModel(clip)),
        Tokenizer(77, last=2, pad=2), **siglip(),
    )  # fmt: skip
    call = {"image": IMAGE, "height": 32, "width": 32, "num_frames": 9, "latent_window_size": 2, "guidance_scale": 6.0,
            "prompt_template": {"template": "{}", "crop_start": 0}, "max_sequence_length": 12, "negative_prompt": ""}  # fmt: skip
    return pipe, call, {"prompt": "a small red cat"}, NEGATIVE


PIPELINES: dict[str, TinyPipeline] = {
    "hunyuan video from an image": TinyPipeline(
        hunyuan_video_from_an_image("latent_concat"), two_calls=True, scale="true_cfg_scale"
    ),
    "hunyuan video from an image, replaced": TinyPipeline(
        hunyuan_video_from_an_image("token_replace"), two_calls=True, scale="true_cfg_scale"
    ),
    "hunyuan video 1.5": TinyPipeline(hunyuan_video15_pipeline(False), two_calls=True),
    "hunyuan video 1.5 from an image": TinyPipeline(hunyuan_video15_pipeline(True), two_calls=True),
    "framepack": TinyPipeline(framepack, two_calls=True, runs=2, scale="true_cfg_scale"),
    "hunyuan video": TinyPipeline(hunyuan_video_pipeline, two_calls=True, scale="true_cfg_scale"),
}
