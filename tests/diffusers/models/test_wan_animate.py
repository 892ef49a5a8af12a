# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Wan-Animate."""

import pytest

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import FRAMES, IMAGE, embeds, image_encoder, unipc, wan_vae, with_text
from test_wan import attention_to_first_frame, wan_like
from tiny import TEXT, WHOLE, Tiny, TinyPipeline, noise, seeded, times


def wan_animate():
    sizes = {"4": 8, "8": 8, "16": 8}
    return wan_like(
        "WanAnimateTransformer3DModel", in_channels=36, latent_channels=16, out_channels=16, image_dim=8, added_kv_proj_dim=24,
        motion_encoder_channel_sizes=sizes, motion_encoder_size=16, motion_style_dim=8, motion_dim=4, motion_encoder_dim=8,
        face_encoder_hidden_dim=8, face_encoder_num_heads=2, inject_face_latents_blocks=2,
    )()  # fmt: skip


def _wan_animate_arguments(rows, dtype):
    """The image's frame and two more, with a pose and a face, whose attention sees no text."""
    shapes = {"hidden_states": (36, 3, 4, 8), "pose_hidden_states": (16, 2, 4, 8), "face_pixel_values": (3, 5, 16, 16)}
    given = {name: noise(rows, *shape, seed=3 + i, dtype=dtype) for i, (name, shape) in enumerate(shapes.items())}
    return given | {"timestep": times(rows), "encoder_hidden_states_image": noise(rows, 6, 8, seed=6, dtype=dtype)}


TINY: dict[str, Tiny] = {
    "WanAnimateTransformer3DModel": Tiny(
        wan_animate, _wan_animate_arguments, WHOLE, lengths=(512, 512), beside=attention_to_first_frame
    ),
}


def wan_animated():
    """In two segments, of which each sees the frames of the other."""
    parts = image_encoder() | {"vae": wan_vae(), "scheduler": unipc(), "text_encoder": None, "tokenizer": None}
    pipe = diffusers.WanAnimatePipeline(**parts, transformer=seeded(wan_animate))
    texts = [{"prompt_embeds": embeds(n, 1, 512, TEXT)} for n in (7, 5, 6)]
    frames = [x.resize((32, 32)) for x in (*FRAMES, *FRAMES, *FRAMES)]
    call = {
        "image": IMAGE,
        "pose_video": frames,
        "face_video": frames,
        "segment_frame_length": 5,
        "height": 32,
        "width": 32,
    }
    return pipe, *with_text(texts, **call)


PIPELINES: dict[str, TinyPipeline] = {
    "wan animate": TinyPipeline(wan_animated, two_calls=True, runs=2),
}
