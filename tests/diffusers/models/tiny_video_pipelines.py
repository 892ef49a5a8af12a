# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""More tiny pipelines as in `tiny_pipelines`: of videos."""

import types

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline  # diffusers shows it with OpenCV alone
from PIL import Image
from tiny_models import TEXT, Tokenizer, pipeline, seeded
from tiny_pipeline import IMAGE, NEGATIVE, embeds, image_encoder, ready_made, siglip, unipc, wan_vae, with_text
from tiny_video_families import cogvideox as tiny_cogvideox
from tiny_video_families import consisid, face, unet3d, unet_motion, unet_motion_xl, wan_animate
from tiny_video_families import easyanimate as tiny_easyanimate
from tiny_video_families import i2vgen_xl as tiny_i2vgen_xl
from tiny_video_families import kandinsky6 as tiny_kandinsky6
from tiny_video_families import motif_video as tiny_motif_video
from tiny_video_families import sana_wm as tiny_sana_wm
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

SMALL = IMAGE[:, :, ::4, ::4]  # as large as the latents of a VAE that shrinks nothing
FRAMES = [Image.fromarray((SMALL[0] * x).byte().permute(1, 2, 0).numpy()) for x in (80, 160, 255)]
VIDEO = torch.linspace(0, 1, 5 * 64 * 64).view(1, 1, 5, 64, 64).expand(-1, 3, -1, -1, -1)
LARGE = [x.resize((64, 64)) for x in FRAMES]
CAT = {"prompt": "a small red cat"}


def _motion(name, like="sd15", unet=unet_motion, **parts):
    """Of AnimateDiff, with text encoders."""
    stable = pipeline(like).components
    known = ("vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler")
    parts = {part: stable[part] for part in known if part in stable} | parts
    adapter = diffusers.MotionAdapter(block_out_channels=(8,), motion_num_attention_heads=2, motion_norm_num_groups=8)
    return getattr(diffusers, name)(**parts, unet=seeded(unet), motion_adapter=adapter)


def _modelscope(name, unet, **parts):
    """Of the older UNets of videos, with a text encoder."""
    stable = pipeline("sd15").components
    parts |= {part: stable[part] for part in ("vae", "text_encoder", "tokenizer", "scheduler")}
    return getattr(diffusers, name)(**parts, unet=seeded(unet))


def modelscope():
    call = {"height": 8, "width": 8, "num_frames": 3}
    return _modelscope("TextToVideoSDPipeline", unet3d), call, {"prompt": ["a small red cat", "a fox"]}, NEGATIVE


def modelscope_from_a_video():
    call = {"video": torch.cat([SMALL] * 3), "strength": 0.99}
    return _modelscope("VideoToVideoSDPipeline", unet3d), call, CAT, NEGATIVE


def i2vgen_xl():
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4,
        projection_dim=TEXT,
    )  # fmt: skip
    parts = {"image_encoder": seeded(lambda: CLIPVisionModelWithProjection(config)),
             "feature_extractor": CLIPImageProcessor(size=8, crop_size=8)}  # fmt: skip
    call = {"image": FRAMES[0], "height": 8, "width": 8, "num_frames": 3, "clip_skip": None}
    return _modelscope("I2VGenXLPipeline", tiny_i2vgen_xl, **parts), call, CAT, NEGATIVE


def animatediff():
    """In few steps, of two prompts."""
    pipe = _motion("AnimateDiffPipeline", scheduler=diffusers.LCMScheduler())
    return pipe, {"height": 8, "width": 8, "num_frames": 3}, {"prompt": ["a small red cat", "a fox"]}, NEGATIVE


def animatediff_xl():
    pipe = _motion("AnimateDiffSDXLPipeline", "sdxl", lambda: unet_motion_xl(cross_attention_dim=2 * TEXT))
    return pipe, {"height": 8, "width": 8, "num_frames": 3}, CAT, NEGATIVE


def animatediff_from_a_video():
    call = {"video": FRAMES, "height": 8, "width": 8, "strength": 0.99}
    return _motion("AnimateDiffVideoToVideoPipeline"), call, CAT, NEGATIVE


def _controlnet():
    return diffusers.ControlNetModel(
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=4, cross_attention_dim=TEXT,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), conditioning_embedding_out_channels=(16,),
    )  # fmt: skip


def animatediff_controlled(name, **given):
    def build():
        call = {"conditioning_frames": FRAMES, "height": 8, "width": 8} | given
        return _motion(name, controlnet=seeded(_controlnet)), call, CAT, NEGATIVE

    return build


def animatediff_sparsely_controlled():
    control = seeded(lambda: diffusers.SparseControlNetModel(
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=4, motion_num_attention_heads=2,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), cross_attention_dim=TEXT,
    ))  # fmt: skip
    call = {"conditioning_frames": [SMALL], "controlnet_frame_indices": [1], "height": 8, "width": 8, "num_frames": 3}
    return _motion("AnimateDiffSparseControlNetPipeline", controlnet=control), call, CAT, NEGATIVE


def pia():
    pipe = _motion("PIAPipeline", unet=lambda: unet_motion(in_channels=9))
    return pipe, {"image": SMALL, "height": 8, "width": 8, "num_frames": 3}, CAT, NEGATIVE


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


class VisionTower(torch.nn.Module):
    """A text encoder, of which no more is asked than to encode an image."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        super().__init__()
        self.vision_tower = siglip()["image_encoder"]


def motif_video(name, **call):
    def more():
        parts = {"vae": wan_vae(), "transformer": seeded(lambda: tiny_motif_video(in_channels=33, out_channels=16))}
        parts |= {"guider": diffusers.ClassifierFreeGuidance(guidance_scale=3.0)}
        return parts | (
            {"text_encoder": VisionTower(), "feature_extractor": siglip()["feature_extractor"]} if call else {}
        )

    masks = {"masks": "prompt_attention_mask", "length": 7}
    return ready_made(
        name, "MotifVideoTransformer3DModel", **masks, rows=1 if call else 2, more=more, num_frames=9, **call
    )


def kandinsky6(image=None):
    """With sound, or from an image and without."""

    def build():
        vae = seeded(lambda: diffusers.AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
        ))  # fmt: skip
        parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
        parts |= {"transformer": seeded(tiny_kandinsky6), "vae": vae, "scheduler": FlowMatchEulerDiscreteScheduler()}
        pipe = diffusers.Kandinsky6TI2VAPipeline(**parts)
        pipe.audio_vae = pipe.vocoder = types.SimpleNamespace()
        texts = [
            {"prompt_embeds": embeds(n, 2, n, TEXT), "pooled_prompt_embeds": embeds(n + 9, 2, 8)} for n in (7, 5, 6)
        ]
        call = {"num_frames": 5, "height": 32, "width": 32, "image": image, "sample_audio": image is None}
        return pipe, *with_text(texts, **call)

    return build


def cogvideox(name, channels, build=tiny_cogvideox, **call):
    """DualForward noise of four channels the model sees an image, a video or what else it starts from."""

    def more():
        vae = seeded(lambda: diffusers.AutoencoderKLCogVideoX(
            latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
        ))  # fmt: skip
        return {"vae": vae, "transformer": seeded(lambda: build(in_channels=channels))}

    scheduler = diffusers.CogVideoXDDIMScheduler
    return ready_made(name, "CogVideoXTransformer3DModel", length=6, rows=1, scheduler=scheduler, more=more, **call)


def easyanimate(name, **call):
    def more():
        vae = seeded(lambda: diffusers.AutoencoderKLMagvit(
            latent_channels=4, block_out_channels=[4, 4, 4, 4], layers_per_block=1, norm_num_groups=2
        ))  # fmt: skip
        return {
            "vae": vae,
            "transformer": seeded(
                lambda: tiny_easyanimate(in_channels=12 if call else 4, resize_inpaint_mask_directly=False)
            ),
        }

    masks = {"masks": "prompt_attention_mask", "length": 7}
    return ready_made(
        name, "EasyAnimateTransformer3DModel", **masks, rows=1 if call else 2, more=more, num_frames=5, **call
    )


class Padding(Tokenizer):
    """What it gives can be moved."""

    def __call__(self, *call, **options):
        tokens = super().__call__(*call, **options)
        tokens.to = lambda device: tokens
        return tokens


def sana_wm():
    """A camera that does not move, and a prompt that is not to be enhanced."""
    vae = seeded(lambda: diffusers.AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8), patch_size=1, patch_size_t=1,
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1), spatial_compression_ratio=8,
        temporal_compression_ratio=8,
    ))  # fmt: skip
    pipe = diffusers.SanaWMPipeline(
        Padding(16),
        pipeline("sana").components["text_encoder"],
        vae,
        seeded(tiny_sana_wm),
        FlowMatchEulerDiscreteScheduler(),
    )
    camera = {"c2w": torch.eye(4).expand(9, -1, -1).numpy(), "intrinsics": [64.0, 64.0, 32.0, 32.0]}
    call = {"image": LARGE[0], "height": 64, "width": 64, "max_sequence_length": 12, "chi_prompt": [""]}
    return pipe, call | camera, CAT, NEGATIVE


VIDEO_PIPELINES = {
    "animatediff": animatediff,
    "animatediff xl": animatediff_xl,
    "animatediff from a video": animatediff_from_a_video,
    "animatediff controlled": animatediff_controlled("AnimateDiffControlNetPipeline", num_frames=3),
    "animatediff from a video, controlled": animatediff_controlled(
        "AnimateDiffVideoToVideoControlNetPipeline", video=FRAMES, strength=0.99
    ),
    "animatediff sparsely controlled": animatediff_sparsely_controlled,
    "pia": pia,
    "wan animate": wan_animated,
    "cogvideox from an image": cogvideox("CogVideoXImageToVideoPipeline", 8, image=IMAGE, num_frames=9),
    "cogvideox from a video": cogvideox("CogVideoXVideoToVideoPipeline", 4, video=LARGE * 3, strength=0.99),
    "cogvideox controlled": cogvideox("CogVideoXFunControlPipeline", 8, control_video=LARGE * 3),
    "consisid": cogvideox(ConsisIDPipeline, 8, consisid, image=IMAGE, num_frames=9, **face(1, torch.float32)),
    "easyanimate": easyanimate("EasyAnimatePipeline"),
    "easyanimate filled in": easyanimate(
        "EasyAnimateInpaintPipeline", video=VIDEO, mask_video=(VIDEO[:, :1] > 0.5).float()
    ),
    "sana wm": sana_wm,
    "modelscope": modelscope,
    "modelscope from a video": modelscope_from_a_video,
    "i2vgen-xl": i2vgen_xl,
    "kandinsky 6": kandinsky6(),
    "kandinsky 6 from an image": kandinsky6(IMAGE.expand(2, -1, -1, -1)),
    "motif video": motif_video("MotifVideoPipeline"),
    "motif video from an image": motif_video("MotifVideoImage2VideoPipeline", image=IMAGE, prompt=None),
}
for kind, name in (
    ("kandinsky 6", "Kandinsky6TI2VAPipeline"),
    ("sana wm", "SanaWMPipeline"),
):  # an older library has fewer
    if not hasattr(diffusers, name):
        VIDEO_PIPELINES = {x: build for x, build in VIDEO_PIPELINES.items() if not x.startswith(kind)}
