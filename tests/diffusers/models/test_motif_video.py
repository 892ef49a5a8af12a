# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Motif-Video."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import IMAGE, ready_made, siglip, wan_vae
from tiny import TEXT, UNSEEN, Tiny, TinyPipeline, masked_text, noise, seeded, videos


def motif_video(**config):
    """With a block at its end that sees no text."""
    config = {"in_channels": 4, "out_channels": 4, "enable_text_cross_attention_dual": True,
              "enable_text_cross_attention_single": True, "image_embed_dim": 8, **config}  # fmt: skip
    model = diffusers.MotifVideoTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=1, num_single_layers=2, num_decoder_layers=1, patch_size=2,
        text_embed_dim=TEXT, rope_axes_dim=(4, 4, 4), **config,
    )  # fmt: skip
    # Else it knows no float64.
    model.time_text_embed.time_proj.register_forward_hook(lambda layer, inputs, time: time.to(model.proj_out.weight))
    return model


def _motif_video_plain():
    return motif_video(enable_text_cross_attention_dual=False, enable_text_cross_attention_single=False)


def _from_an_image(rows, dtype):
    return videos(rows, dtype) | {"image_embeds": noise(rows, 6, 8, seed=4, dtype=dtype)}


TINY: dict[str, Tiny] = {
    "MotifVideoTransformer3DModel": Tiny(motif_video, videos, 16, masked_text, text_first=False, seen=UNSEEN),
    "MotifVideoTransformer3DModel plain": Tiny(
        _motif_video_plain, videos, 16, masked_text, text_first=False, seen=UNSEEN
    ),
    "MotifVideoTransformer3DModel from an image": Tiny(
        motif_video, _from_an_image, 16, masked_text, text_first=False, seen=UNSEEN
    ),
}


class VisionTower(torch.nn.Module):
    """A text encoder, of which no more is asked than to encode an image."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        super().__init__()
        self.vision_tower = siglip()["image_encoder"]


def motif_video_pipeline(name, **call):
    def more():
        parts = {"vae": wan_vae(), "transformer": seeded(lambda: motif_video(in_channels=33, out_channels=16))}
        parts |= {"guider": diffusers.ClassifierFreeGuidance(guidance_scale=3.0)}
        return parts | (
            {"text_encoder": VisionTower(), "feature_extractor": siglip()["feature_extractor"]} if call else {}
        )

    masks = {"masks": "prompt_attention_mask", "length": 7}
    return ready_made(
        name, TINY["MotifVideoTransformer3DModel"], **masks, rows=1 if call else 2, more=more, num_frames=9, **call
    )


PIPELINES: dict[str, TinyPipeline] = {
    "motif video": TinyPipeline(motif_video_pipeline("MotifVideoPipeline"), two_calls=True),
    "motif video from an image": TinyPipeline(
        motif_video_pipeline("MotifVideoImage2VideoPipeline", image=IMAGE, prompt=None), two_calls=True
    ),
}
