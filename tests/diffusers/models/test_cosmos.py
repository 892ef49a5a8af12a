# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Cosmos 1, 2 and 3."""

import inspect
import types

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from pipeline_parts import IMAGE, NEGATIVE, SQUARE, ready_made, wan_vae
from stand_in import Pipeline
from tiny import TEXT, WHOLE, Tiny, TinyPipeline, noise, seeded, videos

from nag_kernels.diffusers import enable_guidance, guide

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")


def cosmos(**config):
    config = {"in_channels": 4, "out_channels": 4, "concat_padding_mask": False, **config}
    return diffusers.CosmosTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=2, mlp_ratio=2, text_embed_dim=TEXT,
        adaln_lora_dim=4, max_size=(4, 8, 8), patch_size=(1, 2, 2), extra_pos_embed_type=None, **config,
    )  # fmt: skip


def cosmos3():
    return diffusers.Cosmos3OmniTransformer(
        head_dim=12, hidden_size=24, intermediate_size=32, latent_channel=4, latent_patch_size=2, num_attention_heads=2,
        num_hidden_layers=2, num_key_value_heads=1, patch_latent_dim=16, sound_dim=4, sound_gen=True, vocab_size=64,
        rope_scaling={"mrope_section": [2, 2, 2]},
    )  # fmt: skip


def _cosmos3_arguments(rows, dtype):
    """Two frames, of which the first is given, and sound. It knows no batch."""
    return {"vision_tokens": [noise(1, 4, 2, 4, 8, seed=3, dtype=dtype)], "vision_token_shapes": [(2, 2, 4)],
            "vision_timesteps": torch.full((8,), 300.0, dtype=dtype), "vision_noisy_frame_indexes": [torch.tensor([1])],
            "sound_tokens": [noise(4, 6, seed=4, dtype=dtype)], "sound_token_shapes": [(6, 1, 1)],
            "sound_timesteps": torch.full((6,), 300.0, dtype=dtype), "sound_noisy_frame_indexes": [torch.arange(6)]}  # fmt: skip


def _cosmos3_text(x, mask):
    text = x.shape[1]
    places = torch.arange(text + 16 + 6)
    image, sound = places[text : text + 16], places[text + 16 :]
    return {"input_ids": (x[0].sum(-1) * 99).long() % 64, "text_indexes": places[:text], "und_len": text,
            "position_ids": places.expand(3, -1), "sequence_length": len(places), "vision_sequence_indexes": image,
            "vision_mse_loss_indexes": image[8:], "sound_sequence_indexes": sound, "sound_mse_loss_indexes": sound}  # fmt: skip


TINY: dict[str, Tiny] = {
    "CosmosTransformer3DModel": Tiny(cosmos, videos, 16),
    "Cosmos3OmniTransformer": Tiny(
        cosmos3, _cosmos3_arguments, WHOLE, _cosmos3_text, layer=lambda site: site.to_add_out, rows=1
    ),
}


class Harmless:
    """In the place of Cosmos's safety checker."""

    def to(self, device):
        return self

    def check_text_safety(self, prompt):
        return True


def karras():
    return FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)


def cosmos_pipeline(name, scheduler=karras, **call):
    def more():
        vae = wan_vae(4) if "Cosmos2" in name else seeded(lambda: diffusers.AutoencoderKLCosmos(
            latent_channels=4, encoder_block_out_channels=(8, 8, 8, 8), decode_block_out_channels=(8, 8, 8, 8), resolution=64,
            attention_resolutions=(8,), scaling_factor=1.0, temporal_compression_ratio=4,
        ))  # fmt: skip
        transformer = seeded(lambda: cosmos(in_channels=4 + ("image" in call)))  # a mask of what is given
        return {"vae": vae, "transformer": transformer, "safety_checker": Harmless()}

    return ready_made(name, TINY["CosmosTransformer3DModel"], scheduler=scheduler, more=more, rows=1, **SQUARE | call)


class ChatTokenizer:
    """As Cosmos 3 asks one for numbers."""

    eos_token_id = 1

    def convert_tokens_to_ids(self, token):
        return 2

    def apply_chat_template(self, conversations, **_):
        ids = [3 + ord(x) % 60 for part in conversations for x in part["content"]]
        return types.SimpleNamespace(input_ids=ids)


def cosmos3_pipeline():
    vae = seeded(lambda: diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ))  # fmt: skip
    pipe = diffusers.Cosmos3OmniPipeline(
        seeded(TINY["Cosmos3OmniTransformer"].build),
        ChatTokenizer(),
        vae,
        FlowMatchEulerDiscreteScheduler(),
        enable_safety_checker=False,
    )
    call = dict.fromkeys(("use_system_prompt", "add_resolution_template", "add_duration_template"), False)
    return pipe, call | {"height": 64, "width": 64, "num_frames": 5}, {"prompt": "a small red cat"}, NEGATIVE


PIPELINES: dict[str, TinyPipeline] = {
    "cosmos": TinyPipeline(
        cosmos_pipeline("CosmosTextToWorldPipeline", diffusers.EDMEulerScheduler, num_frames=5), two_calls=True
    ),
    "cosmos from an image": TinyPipeline(
        cosmos_pipeline("CosmosVideoToWorldPipeline", diffusers.EDMEulerScheduler, num_frames=5, image=IMAGE),
        two_calls=True,
    ),
    "cosmos 2": TinyPipeline(cosmos_pipeline("Cosmos2TextToImagePipeline"), two_calls=True),
    "cosmos 2 from an image": TinyPipeline(
        cosmos_pipeline("Cosmos2VideoToWorldPipeline", num_frames=5, image=IMAGE), two_calls=True
    ),
    "cosmos 3": TinyPipeline(cosmos3_pipeline, two_calls=True),
}
# Which is refused.
FIRST_COSMOS3 = (
    hasattr(diffusers, "Cosmos3OmniTransformer")
    and "return_dict" not in inspect.signature(diffusers.Cosmos3OmniTransformer.forward).parameters
)
if FIRST_COSMOS3:
    del TINY["Cosmos3OmniTransformer"]
if FIRST_COSMOS3 or not hasattr(diffusers, "Cosmos3OmniPipeline"):  # an older library has fewer
    del PIPELINES["cosmos 3"]


@pytest.mark.skipif(not FIRST_COSMOS3, reason="this diffusers has a newer form of Cosmos 3, or none")
def test_the_first_form_of_cosmos3_is_refused():
    with pytest.raises(ValueError, match="take a newer diffusers"):
        enable_guidance(Pipeline(TINY["CosmosTransformer3DModel"], build=cosmos3), "negative")


@pytest.mark.skipif("cosmos 3" not in PIPELINES, reason="this diffusers has no Cosmos 3")
def test_the_negative_of_cosmos3_comes_without_the_sentences_put_after_a_prompt():
    pipe, call, prompt, negative = PIPELINES["cosmos 3"]()
    pipe.set_progress_bar_config(disable=True)
    call |= {"add_resolution_template": True, "add_duration_template": True, "num_inference_steps": 1}
    lengths = []
    pipe.transformer.register_forward_pre_hook(
        lambda model, args, kwargs: lengths.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with guide(pipe, negative):
        pipe(**call, **prompt, guidance_scale=1.0, output_type="latent")
    longer, own = lengths
    assert own == len(negative) + 2  # two tokens end each text
    assert longer > len(prompt["prompt"]) + 20
