# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny SkyReels V2."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import IMAGE, embeds, ready_made, unipc, wan_vae, with_text
from test_wan import from_an_image, wan_like, wan_relative
from tiny import TEXT, Tiny, TinyPipeline, seeded, videos


def _forced(rows, dtype):
    """Frames with timesteps of their own."""
    time = torch.linspace(300, 700, 2 * rows).view(rows, 2).long()
    return videos(rows, dtype) | {"timestep": time, "enable_diffusion_forcing": True, "fps": [1] * rows}


TINY: dict[str, Tiny] = {
    "SkyReelsV2Transformer3DModel from an image": from_an_image("SkyReelsV2Transformer3DModel"),
    "SkyReelsV2Transformer3DModel": Tiny(wan_like("SkyReelsV2Transformer3DModel"), videos, 16),
    "SkyReelsV2Transformer3DModel forced": Tiny(
        wan_like("SkyReelsV2Transformer3DModel", inject_sample_info=True, num_frame_per_block=2), _forced, 16, rows=1
    ),
}


def skyreels_forced(name, rows=1, **call):
    """Frames at noise levels of their own; `call` has what the pipeline starts from."""

    def build():
        transformer = seeded(wan_like("SkyReelsV2Transformer3DModel", inject_sample_info=rows == 1))
        pipe = getattr(diffusers, name)(None, None, transformer, wan_vae(4), unipc())
        texts = [{"prompt_embeds": embeds(n, rows, n, TEXT)} for n in (7, 5, 6)]
        return pipe, *with_text(texts, prompt=None, height=32, width=32, num_frames=9, **call)

    return build


PIPELINES: dict[str, TinyPipeline] = {
    "skyreels": TinyPipeline(
        ready_made("SkyReelsV2Pipeline", TINY["SkyReelsV2Transformer3DModel"], num_frames=9), two_calls=True
    ),
    "skyreels from an image": TinyPipeline(
        wan_relative("SkyReelsV2ImageToVideoPipeline", "SkyReelsV2Transformer3DModel"), two_calls=True
    ),
    "skyreels forced": TinyPipeline(skyreels_forced("SkyReelsV2DiffusionForcingPipeline", rows=2), two_calls=True),
    "skyreels forced from an image": TinyPipeline(
        skyreels_forced("SkyReelsV2DiffusionForcingImageToVideoPipeline", image=IMAGE), two_calls=True
    ),
}
