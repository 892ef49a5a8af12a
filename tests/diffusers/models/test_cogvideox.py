# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny CogVideoX and ConsisID."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline
from pipeline_parts import IMAGE, LARGE, ready_made
from tiny import TEXT, Tiny, TinyPipeline, noise, seeded, times

COGVIDEOX = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
    "text_embed_dim": TEXT, "num_layers": 2, "sample_width": 4, "sample_height": 8, "sample_frames": 9, "patch_size": 2,
    "temporal_compression_ratio": 4, "max_text_seq_length": 6,
}  # fmt: skip


def cogvideox(rotary=True, **config):
    return diffusers.CogVideoXTransformer3DModel(**COGVIDEOX | {"use_rotary_positional_embeddings": rotary, **config})


def cogvideox_arguments(rotary):
    def arguments(rows, dtype):
        video = {"hidden_states": noise(rows, 3, 4, 8, 4, seed=3, dtype=dtype), "timestep": times(rows)}
        angles = noise(24, 8, seed=5).repeat_interleave(2, dim=1).float()
        return video | ({"image_rotary_emb": (angles.cos(), angles.sin())} if rotary else {})

    return arguments


def consisid(**config):
    config = COGVIDEOX | {"num_attention_heads": 3, "use_rotary_positional_embeddings": True, **config}
    face = {"id_dim": 8, "vit_dim": 8, "depth": 2, "dim_head": 4, "num_heads": 2, "num_id_token": 2, "num_querie": 3,
            "output_dim": 32, "ff_mult": 1, "num_scale": 2}  # fmt: skip
    return diffusers.ConsisIDTransformer3DModel(
        **config, is_train_face=True, cross_attn_dim_head=8, cross_attn_num_heads=2,
        **{f"LFE_{name}": x for name, x in face.items()},
    )  # fmt: skip


def face(rows, dtype):
    """Whose layers see no text."""
    layers = [noise(rows, 4, 8, seed=6 + i, dtype=dtype) for i in range(2)]
    return {"id_cond": noise(rows, 8, seed=8, dtype=dtype), "id_vit_hidden": layers}


def _consisid_arguments(rows, dtype):
    return cogvideox_arguments(True)(rows, dtype) | face(rows, dtype)


TINY: dict[str, Tiny] = {
    "CogVideoXTransformer3DModel": Tiny(cogvideox, cogvideox_arguments(True), 24),
    "CogVideoXTransformer3DModel 2b": Tiny(lambda: cogvideox(False), cogvideox_arguments(False), 24, lengths=(6, 6)),
    "ConsisIDTransformer3DModel": Tiny(consisid, _consisid_arguments, 24),
}


def cogvideox_pipeline(name, channels, build=cogvideox, **call):
    """Beside noise of four channels the model sees an image, a video or what else it starts from."""

    def more():
        vae = seeded(lambda: diffusers.AutoencoderKLCogVideoX(
            latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
        ))  # fmt: skip
        return {"vae": vae, "transformer": seeded(lambda: build(in_channels=channels))}

    scheduler = diffusers.CogVideoXDDIMScheduler
    return ready_made(
        name, TINY["CogVideoXTransformer3DModel"], length=6, rows=1, scheduler=scheduler, more=more, **call
    )


PIPELINES: dict[str, TinyPipeline] = {
    "cogvideox from an image": TinyPipeline(
        cogvideox_pipeline("CogVideoXImageToVideoPipeline", 8, image=IMAGE, num_frames=9)
    ),
    "cogvideox from a video": TinyPipeline(
        cogvideox_pipeline("CogVideoXVideoToVideoPipeline", 4, video=LARGE * 3, strength=0.99)
    ),
    "cogvideox controlled": TinyPipeline(cogvideox_pipeline("CogVideoXFunControlPipeline", 8, control_video=LARGE * 3)),
    "consisid": TinyPipeline(
        cogvideox_pipeline(ConsisIDPipeline, 8, consisid, image=IMAGE, num_frames=9, **face(1, torch.float32))
    ),
    "cogvideox": TinyPipeline(
        ready_made(
            "CogVideoXPipeline",
            TINY["CogVideoXTransformer3DModel 2b"],
            length=6,
            num_frames=9,
            scheduler=diffusers.CogVideoXDDIMScheduler,
        )
    ),
}
