# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny SANA, SANA-Sprint, SANA-Video and SANA-WM."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import (
    AutoencoderDC,
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)
from pipeline_parts import CAT, IMAGE, LARGE, MASKED, NEGATIVE, Tokenizer, ready_made, wan_vae
from tiny import SEEN, TEXT, WHOLE, DropIn, Tiny, TinyPipeline, images, masked_text, noise, seeded, videos
from transformers import Gemma2Config, Gemma2Model

from nag_kernels.diffusers import guide

pytestmark = pytest.mark.usefixtures("one_thread")


def sana(**config):
    return SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=TEXT,
        sample_size=8, patch_size=1, **config,
    )  # fmt: skip


def sana_sprint():
    return sana(guidance_embeds=True, guidance_embeds_scale=0.1, qk_norm="rms_norm_across_heads", timestep_scale=1000.0)


def _sana_parts():
    vae = seeded(lambda: AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        encoder_block_out_channels=(4, 4, 8), decoder_block_out_channels=(4, 4, 8), encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1), encoder_qkv_multiscales=((), (), ()), decoder_qkv_multiscales=((), (), ()),
    ), seed=3)  # fmt: skip
    config = Gemma2Config(
        vocab_size=64, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=128,
    )  # fmt: skip
    return {"tokenizer": Tokenizer(16), "text_encoder": seeded(lambda: Gemma2Model(config), seed=2), "vae": vae}


def sana_pipeline():
    return SanaPipeline(
        transformer=seeded(sana), scheduler=FlowMatchEulerDiscreteScheduler(), **_sana_parts()
    )  # fmt: skip


def sana_sprint_pipeline():
    return SanaSprintPipeline(transformer=seeded(sana_sprint), scheduler=SCMScheduler(), **_sana_parts())


def _sana_video():
    return diffusers.SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=TEXT,
        sample_size=8, patch_size=(1, 2, 2), rope_max_seq_len=32,
    )  # fmt: skip


def sana_wm():
    return diffusers.SanaWMTransformer3DModel(
        in_channels=4, num_layers=2, hidden_size=48, num_attention_heads=2, softmax_every_n=2, linear_head_dim=24,
        caption_channels=TEXT, mlp_ratio=1.0,
    )  # fmt: skip


def _sana_wm_arguments(rows, dtype):
    """The first frame is given; cameras look straight on."""
    frames, height, width = 3, 2, 4
    camera = torch.cat([torch.eye(4).flatten(), torch.tensor([4.0, 4.0, 2.0, 1.0])]).to(dtype)
    return {"hidden_states": noise(rows, 4, frames, height, width, seed=3, dtype=dtype),
            "timestep": torch.tensor([0.0, 300.0, 300.0]).expand(rows, 1, -1),
            "camera_conditions": camera.expand(rows, frames, -1),
            "chunk_plucker": noise(rows, 48, frames, height, width, seed=4, dtype=dtype)}  # fmt: skip


def _sana_wm_text(x, mask):
    mask = torch.ones(x.shape[:2], dtype=torch.long) if mask is None else mask.long()
    return {"encoder_hidden_states": x[:, None], "mask": mask}


def _sprint_arguments(rows, dtype):
    return images(rows, dtype) | {"guidance": torch.linspace(0.3, 0.6, rows, dtype=dtype)}


TINY: dict[str, Tiny] = {
    "SanaVideoTransformer3DModel": Tiny(_sana_video, videos, 16, masked_text, seen=SEEN),
    "SanaWMTransformer3DModel": Tiny(
        sana_wm,
        _sana_wm_arguments,
        WHOLE,
        _sana_wm_text,
        layer=lambda site: site.proj,
        seen=SEEN,
        double=False,
    ),
}


def sana_video_from_an_image():
    return ready_made("SanaImageToVideoPipeline", TINY["SanaVideoTransformer3DModel"], rows=1, **MASKED,
                      more=lambda: {"vae": wan_vae(4)}, frames=9, image=IMAGE, use_resolution_binning=False,
                      negative_prompt=None)  # fmt: skip


class Padding(Tokenizer):
    """What it gives can be moved."""

    def __call__(self, *call, **options):
        tokens = super().__call__(*call, **options)
        tokens.to = lambda device: tokens
        return tokens


def sana_wm_pipeline():
    """A camera that does not move, and a prompt that is not to be enhanced."""
    vae = seeded(lambda: diffusers.AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8), patch_size=1, patch_size_t=1,
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1), spatial_compression_ratio=8,
        temporal_compression_ratio=8,
    ))  # fmt: skip
    pipe = diffusers.SanaWMPipeline(
        Padding(16),
        sana_pipeline().components["text_encoder"],
        vae,
        seeded(sana_wm),
        FlowMatchEulerDiscreteScheduler(),
    )
    camera = {"c2w": torch.eye(4).expand(9, -1, -1).numpy(), "intrinsics": [64.0, 64.0, 32.0, 32.0]}
    call = {"image": LARGE[0], "height": 64, "width": 64, "max_sequence_length": 12, "chi_prompt": [""]}
    return pipe, call | camera, CAT, NEGATIVE


DROP_IN: dict[str, DropIn] = {
    "sana": DropIn(sana, images),
    "sana sprint": DropIn(sana_sprint, _sprint_arguments),
}


FULL_PIPELINES: dict[str, Callable] = {
    "sana": sana_pipeline,
    "sana sprint": sana_sprint_pipeline,
}


PIPELINES: dict[str, TinyPipeline] = {
    "sana video from an image": TinyPipeline(sana_video_from_an_image()),
    "sana wm": TinyPipeline(sana_wm_pipeline),
    "sana video": TinyPipeline(
        ready_made(
            "SanaVideoPipeline",
            TINY["SanaVideoTransformer3DModel"],
            frames=9,
            use_resolution_binning=False,
            negative_prompt=None,
            **MASKED,
        )
    ),
}
if not hasattr(diffusers, "SanaWMPipeline"):  # an older library has fewer
    del PIPELINES["sana wm"]


@pytest.mark.skipif("sana wm" not in PIPELINES, reason="this diffusers has no SANA-WM")
def test_the_negative_of_sana_wm_comes_without_the_instruction_put_before_a_prompt():
    pipe, call, prompt, negative = PIPELINES["sana wm"]()
    pipe.set_progress_bar_config(disable=True)
    call |= {"chi_prompt": ["say more of this: "], "num_inference_steps": 1}
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda model, args, kwargs: seen.append(kwargs["mask"][:, 12:].long().sum().item()), with_kwargs=True
    )
    with guide(pipe, negative):
        pipe(**call, **prompt, guidance_scale=1.0, output_type="latent")
    assert seen == [len(negative.split()) + 1]
