# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""More tiny pipelines as in `tiny_pipelines`: of videos, by models that other pipelines have as well."""

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_models import WAN, pipeline, seeded, wan
from tiny_pipeline import IMAGE, ready_made, unipc, wan_vae
from tiny_video_pipelines import FRAMES, LARGE

SQUARE = {"height": 32, "width": 32}
FIVE = [x.resize((32, 32)) for x in (*FRAMES, *FRAMES[:2])]


def wan_with(name, build, scheduler=FlowMatchEulerDiscreteScheduler, **call):
    def more():
        return {"vae": wan_vae(4), "transformer": seeded(build)}

    return ready_made(name, "WanTransformer3DModel from an image", more=more, scheduler=scheduler, **SQUARE | call)


def wan_vace():
    return diffusers.WanVACETransformer3DModel(**WAN, vace_layers=[0], vace_in_channels=72)


def ltx_vae():
    return seeded(lambda: diffusers.AutoencoderKLLTXVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8), patch_size=1,
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1), decoder_inject_noise=(False,) * 5,
        decoder_spatio_temporal_scaling=(True, True, True, False),
    ))  # fmt: skip


def ltx_with(name, **call):
    def build():
        pipe = getattr(diffusers, name)(**pipeline("ltx").components | {"vae": ltx_vae()})
        size = {"height": 64, "width": 64, "num_frames": 9, "max_sequence_length": 12}
        return pipe, size | call, {"prompt": "a small red cat"}, "a large blue dog on grass"

    return build


def hunyuan_vae():
    return seeded(lambda: diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    ))  # fmt: skip


OTHERS = {
    "lucy": wan_with("LucyEditPipeline", lambda: wan(in_channels=8), video=FIVE, num_frames=5, rows=1),
    "wan from a video": wan_with("WanVideoToVideoPipeline", wan, scheduler=unipc, video=FIVE, strength=0.99, rows=1),
    "wan vace": wan_with("WanVACEPipeline", wan_vace, num_frames=5, rows=1),
    "ltx from an image": ltx_with("LTXImageToVideoPipeline", image=IMAGE),
    "ltx with conditions": ltx_with("LTXConditionPipeline", image=LARGE[0]),
    "ltx of several prompts": ltx_with("LTXI2VLongMultiPromptPipeline", temporal_tile_size=16, temporal_overlap=8),
    "allegro": ready_made(
        "AllegroPipeline", "AllegroTransformer3DModel", scheduler=diffusers.DDIMScheduler, masks="prompt_attention_mask",
        length=7, num_frames=8, clean_caption=False, negative_prompt=None,
    ),
}  # fmt: skip
