# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""More tiny pipelines as in `tiny_pipelines`: of videos, by models that other pipelines have as well."""

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_families import cosmos as tiny_cosmos
from tiny_families import hunyuan_video as tiny_hunyuan_video
from tiny_families import kandinsky5 as tiny_kandinsky5
from tiny_models import TEXT, WAN, pipeline, seeded, wan
from tiny_pipeline import IMAGE, embeds, ready_made, unipc, wan_vae, with_text
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


def still_vae():
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, latent_channels=4, layers_per_block=1, shift_factor=0.0,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def kandinsky5(name, **call):
    """From text, or from an image, which the model sees beside its noise."""

    def build():
        parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
        seen = {"in_visual_dim": 4, "visual_cond": True} if "image" in call else {}
        vae = seeded(still_vae) if "2I" in name else hunyuan_vae()
        transformer = seeded(lambda: tiny_kandinsky5(**seen))
        pipe = getattr(diffusers, name)(
            **parts, vae=vae, transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler()
        )
        if hasattr(pipe, "resolutions"):
            pipe.resolutions = [(32, 32)]
        texts = [
            {"prompt_embeds_qwen": embeds(n, 1, n, TEXT), "prompt_embeds_clip": embeds(n + 9, 1, 8),
             "prompt_cu_seqlens": torch.tensor([0, n])} for n in (7, 5, 6)
        ]  # fmt: skip
        return pipe, *with_text(texts, **SQUARE, **call)

    return build


class Harmless:
    """In the place of Cosmos's safety checker."""

    def to(self, device):
        return self

    def check_text_safety(self, prompt):
        return True


def karras():
    return FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)


def cosmos(name, scheduler=karras, **call):
    def more():
        vae = wan_vae(4) if "Cosmos2" in name else seeded(lambda: diffusers.AutoencoderKLCosmos(
            latent_channels=4, encoder_block_out_channels=(8, 8, 8, 8), decode_block_out_channels=(8, 8, 8, 8), resolution=64,
            attention_resolutions=(8,), scaling_factor=1.0, temporal_compression_ratio=4,
        ))  # fmt: skip
        transformer = seeded(lambda: tiny_cosmos(in_channels=4 + ("image" in call)))  # a mask of what is given
        return {"vae": vae, "transformer": transformer, "safety_checker": Harmless()}

    return ready_made(name, "CosmosTransformer3DModel", scheduler=scheduler, more=more, rows=1, **SQUARE | call)


def helios(name, stages, **call):
    """In two parts, of which each sees the frames of the other."""

    def more():
        # With the default gamma of 1/3 the pyramid's noise has a singular covariance, of which only some processors' rounding
        # lets a Cholesky factor be made.
        return {"vae": wan_vae(4), "scheduler": diffusers.HeliosScheduler(stages=stages, gamma=0.3)}

    return ready_made(name, "HeliosTransformer3DModel", more=more, rows=1, num_frames=9, history_sizes=[4, 2, 1],
                      num_latent_frames_per_chunk=2, **SQUARE | call)  # fmt: skip


def hunyuan_video_from_an_image(kind):
    def more():
        seen = {"in_channels": 9 if kind == "latent_concat" else 4, "image_condition_type": kind}
        return {
            "vae": hunyuan_vae(),
            "transformer": seeded(lambda: tiny_hunyuan_video(**seen)),
            "image_processor": None,
        }

    return ready_made("HunyuanVideoImageToVideoPipeline", "HunyuanVideoTransformer3DModel", more=more, rows=1, num_frames=5,
                      image=IMAGE, pooled=8, masks="prompt_attention_mask", length=7, **SQUARE)  # fmt: skip


def sana_video_from_an_image():
    return ready_made("SanaImageToVideoPipeline", "SanaVideoTransformer3DModel", masks="prompt_attention_mask", length=7, rows=1,
                      more=lambda: {"vae": wan_vae(4)}, frames=9, image=IMAGE, use_resolution_binning=False,
                      negative_prompt=None)  # fmt: skip


OTHERS = {
    "kandinsky 5": kandinsky5("Kandinsky5T2VPipeline", num_frames=5),
    "kandinsky 5 from an image": kandinsky5("Kandinsky5I2VPipeline", num_frames=25, image=LARGE[0].resize((32, 32))),
    "kandinsky 5 still": kandinsky5("Kandinsky5T2IPipeline"),
    "kandinsky 5 still from an image": kandinsky5("Kandinsky5I2IPipeline", image=LARGE[0].resize((32, 32))),
    "cosmos": cosmos("CosmosTextToWorldPipeline", diffusers.EDMEulerScheduler, num_frames=5),
    "cosmos from an image": cosmos("CosmosVideoToWorldPipeline", diffusers.EDMEulerScheduler, num_frames=5, image=IMAGE),
    "cosmos 2": cosmos("Cosmos2TextToImagePipeline"),
    "cosmos 2 from an image": cosmos("Cosmos2VideoToWorldPipeline", num_frames=5, image=IMAGE),
    "helios": helios("HeliosPipeline", 1),
    "helios in a pyramid": helios(
        "HeliosPyramidPipeline", 3, pyramid_num_inference_steps_list=[1, 1, 1], height=128, width=128
    ),
    "hunyuan video from an image": hunyuan_video_from_an_image("latent_concat"),
    "hunyuan video from an image, replaced": hunyuan_video_from_an_image("token_replace"),
    "sana video from an image": sana_video_from_an_image(),
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
