# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Pipelines of further families over tiny random models: (pipeline, call, prompt, negative) from each builder."""

import inspect
import types

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from tiny_families import FIRST_COSMOS3, TINY, Pipeline
from tiny_families import hunyuan_dit as tiny_hunyuan_dit
from tiny_families import hunyuan_video15 as tiny_hunyuan_video15
from tiny_families import ltx2 as tiny_ltx2
from tiny_further_pipelines import OTHERS
from tiny_image_pipelines import IMAGES
from tiny_models import TEXT, Tokenizer, flux, pipeline, ready_made_pipeline, seeded, texts, wan
from tiny_pipeline import (
    FROM_AN_IMAGE,
    IMAGE,
    NEGATIVE,
    denoiser,
    embeds,
    image_encoder,
    ready_made,
    siglip,
    t5,
    unipc,
    wan_vae,
    with_text,
)
from tiny_video_families import wan_like
from tiny_video_pipelines import VIDEO_PIPELINES
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel


def chroma():
    pipe = diffusers.ChromaPipeline(
        FlowMatchEulerDiscreteScheduler(), None, **t5(), transformer=denoiser("ChromaTransformer2DModel")
    )
    return pipe, {"height": 32, "width": 32, "max_sequence_length": 12}, {"prompt": "a small red cat"}, NEGATIVE


def z_image():
    pipe = diffusers.ZImagePipeline(
        FlowMatchEulerDiscreteScheduler(), None, None, None, denoiser("ZImageTransformer2DModel")
    )
    texts = [{"prompt_embeds": [embeds(n + i, n, TEXT) for i in range(2)]} for n in (7, 5, 3)]
    return pipe, *with_text(texts, height=64, width=64)


def hunyuan_video():
    pipe = diffusers.HunyuanVideoPipeline(
        None, None, denoiser("HunyuanVideoTransformer3DModel"), None, FlowMatchEulerDiscreteScheduler(), None, None
    )
    texts = [{"prompt_embeds": embeds(n, 2, n, TEXT), "pooled_prompt_embeds": embeds(n, 2, 8),
              "prompt_attention_mask": (torch.arange(n) < torch.tensor([[n], [n - 2]])).long()} for n in (7, 5, 6)]  # fmt: skip
    return pipe, *with_text(texts, height=32, width=32, num_frames=5)


def ltx2():
    connectors = diffusers.pipelines.ltx2.LTX2TextConnectors(
        caption_channels=TEXT, text_proj_in_factor=1, video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=8, video_connector_num_layers=1, video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=4, audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None, connector_rope_base_seq_len=32, rope_theta=10000.0,
        rope_double_precision=False, causal_temporal_positioning=False,
    )  # fmt: skip
    pipe = diffusers.LTX2Pipeline(
        FlowMatchEulerDiscreteScheduler(), None, None, None, None, seeded(lambda: connectors),
        seeded(tiny_ltx2(audio_in_channels=128, audio_out_channels=128)), None,
    )  # fmt: skip
    config = types.SimpleNamespace(scaling_factor=1.0, mel_bins=64, latent_channels=8)
    pipe.vae = pipe.audio_vae = types.SimpleNamespace(
        latents_mean=torch.zeros(1), latents_std=torch.ones(1), config=config, dtype=torch.float32
    )
    texts = [{"prompt_embeds": embeds(n, 2, 8, TEXT),
              "prompt_attention_mask": (torch.arange(8) >= torch.tensor([[8 - n], [2]])).long()} for n in (7, 5, 6)]  # fmt: skip
    return pipe, *with_text(texts, height=64, width=64, num_frames=9, stg_scale=0.0, audio_stg_scale=0.0, modality_scale=1.0,
                            audio_modality_scale=1.0, audio_guidance_scale=None)  # fmt: skip


def wan_from_an_image():
    parts = pipeline("wan").components | image_encoder() | {"vae": wan_vae()}
    parts["transformer"] = seeded(lambda: wan(**FROM_AN_IMAGE))
    texts = [{"prompt_embeds": embeds(n, 1, 512, TEXT)} for n in (7, 5, 6)]  # the only length that this model knows
    call = {"image": IMAGE, "height": 32, "width": 32, "num_frames": 5}
    return diffusers.WanImageToVideoPipeline(**parts), *with_text(texts, **call)


def wan_relative(name, model, **call):
    """From an image; `model` is one with a first frame's tokens."""

    def build():
        parts = image_encoder() | {"vae": wan_vae(), "scheduler": unipc(), "text_encoder": None, "tokenizer": None}
        pipe = getattr(diffusers, name)(**parts, transformer=seeded(wan_like(model, **FROM_AN_IMAGE)))
        texts = [{"prompt_embeds": embeds(n, 1, 512, TEXT)} for n in (7, 5, 6)]
        return pipe, *with_text(texts, image=IMAGE, height=32, width=32, num_frames=9, **call)

    return build


def skyreels_forced(name, rows=1, **call):
    """Frames at noise levels of their own; `call` has what the pipeline starts from."""

    def build():
        transformer = seeded(wan_like("SkyReelsV2Transformer3DModel", inject_sample_info=rows == 1))
        pipe = getattr(diffusers, name)(None, None, transformer, wan_vae(4), unipc())
        texts = [{"prompt_embeds": embeds(n, rows, n, TEXT)} for n in (7, 5, 6)]
        return pipe, *with_text(texts, prompt=None, height=32, width=32, num_frames=9, **call)

    return build


def anyflow_far():
    """From an image: a part of the video of its own, which is not drawn. Two others follow."""
    transformer = seeded(
        wan_like("AnyFlowFARTransformer3DModel", full_chunk_limit=2, chunk_partition=(1, 1, 1), rope_max_seq_len=32)
    )
    scheduler = diffusers.FlowMapEulerDiscreteScheduler()
    pipe = diffusers.AnyFlowFARPipeline(None, None, transformer, wan_vae(4), scheduler)
    texts = [{"prompt_embeds": embeds(n, 2, 7, TEXT)} for n in (7, 5, 6)]
    return pipe, *with_text(texts, video=IMAGE[None].expand(2, -1, -1, -1, -1), height=32, width=32, num_frames=9)


def two_encoders():
    """Prompt, negative and the pipeline's own negative as Hunyuan's two text encoders give them, of two rows, with masks."""
    texts = []
    for n in (7, 5, 6):
        text = {"prompt_embeds": embeds(n, 2, n, TEXT), "prompt_embeds_2": embeds(n + 9, 2, n - 1, TEXT)}
        text["prompt_embeds_mask"] = torch.arange(n) < torch.tensor([[n], [n - 2]])
        text["prompt_embeds_mask_2"] = torch.arange(n - 1) < torch.tensor([[2], [0]])
        texts.append(text)
    return texts


def hunyuan_video15(from_an_image):
    """Classifier-free guidance is a part of the pipeline, on or off; the second text may have no token."""

    def build():
        vae = seeded(lambda: diffusers.AutoencoderKLHunyuanVideo15(
            latent_channels=4, block_out_channels=(8, 8, 8, 8, 8), layers_per_block=1
        ))  # fmt: skip
        transformer = seeded(lambda: tiny_hunyuan_video15(
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
        seeded(lambda: LlamaModel(llama)), Tokenizer(16), denoiser("HunyuanVideoFramepackTransformer3DModel"),
        seeded(lambda: vae), FlowMatchEulerDiscreteScheduler(), seeded(lambda: CLIPTextModel(clip)),
        Tokenizer(77, last=2, pad=2), **siglip(),
    )  # fmt: skip
    call = {"image": IMAGE, "height": 32, "width": 32, "num_frames": 9, "latent_window_size": 2, "guidance_scale": 6.0,
            "prompt_template": {"template": "{}", "crop_start": 0}, "max_sequence_length": 12, "negative_prompt": ""}  # fmt: skip
    return pipe, call, {"prompt": "a small red cat"}, NEGATIVE


def flux_fill():
    parts = {k: v for k, v in pipeline("flux").components.items() if v is not None}
    parts["transformer"] = seeded(lambda: flux(in_channels=36, out_channels=16))
    pipe = diffusers.FluxFillPipeline(**parts)
    call = {"image": torch.linspace(0, 1, 192).view(1, 3, 8, 8), "mask_image": torch.ones(1, 1, 8, 8), "height": 8}
    return pipe, call | {"width": 8, "max_sequence_length": 12}, {"prompt": "a small red cat"}, NEGATIVE


class ChatTokenizer:
    """As Cosmos 3 asks one for numbers."""

    eos_token_id = 1

    def convert_tokens_to_ids(self, token):
        return 2

    def apply_chat_template(self, conversations, **_):
        ids = [3 + ord(x) % 60 for part in conversations for x in part["content"]]
        return types.SimpleNamespace(input_ids=ids)


def cosmos3():
    vae = seeded(lambda: diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    ))  # fmt: skip
    pipe = diffusers.Cosmos3OmniPipeline(
        denoiser("Cosmos3OmniTransformer"),
        ChatTokenizer(),
        vae,
        FlowMatchEulerDiscreteScheduler(),
        enable_safety_checker=False,
    )
    call = dict.fromkeys(("use_system_prompt", "add_resolution_template", "add_duration_template"), False)
    return pipe, call | {"height": 64, "width": 64, "num_frames": 5}, {"prompt": "a small red cat"}, NEGATIVE


class ChatProcessor:
    """As Qwen-Image 2.1 asks one for two numbers."""

    tokenizer = types.SimpleNamespace(encode=lambda text: [9])

    def apply_chat_template(self, *_, **__):
        return [[1]]


def chat_processor():
    return {"processor": ChatProcessor()}


def hunyuan_image():
    """As Hunyuan Video 1.5."""
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "vae"))
    parts |= {"transformer": denoiser("HunyuanImageTransformer2DModel of two texts")}
    guider = diffusers.AdaptiveProjectedMixGuidance(guidance_scale=3.0, adaptive_projected_guidance_start_step=9)
    pipe = diffusers.HunyuanImagePipeline(**parts, scheduler=FlowMatchEulerDiscreteScheduler(), guider=guider)
    return pipe, *with_text(two_encoders(), height=256, width=256)


def hunyuan_dit():
    known = inspect.signature(diffusers.HunyuanDiTPipeline.__init__).parameters
    parts = {part: None for part in known if part != "self"} | {"requires_safety_checker": False}
    parts |= {"transformer": seeded(tiny_hunyuan_dit), "scheduler": diffusers.DDIMScheduler()}
    pipe, texts = diffusers.HunyuanDiTPipeline(**parts), []
    for n in (7, 5, 6):  # tokens that are no padding, of as many as there always are
        text = {"prompt_embeds": embeds(n, 2, 7, TEXT), "prompt_embeds_2": embeds(n + 9, 2, 6, TEXT)}
        text["prompt_attention_mask"] = (torch.arange(7) < torch.tensor([[n], [n - 2]])).long()
        text["prompt_attention_mask_2"] = text["prompt_attention_mask"][:, 1:]
        texts.append(text)
    return pipe, *with_text(texts, height=64, width=64, use_resolution_binning=False)


def stable_audio():
    """A sound of 16 samples; the length of a sound is a part of its text."""
    vae = seeded(lambda: diffusers.AutoencoderOobleck(
        encoder_hidden_size=4, downsampling_ratios=[1, 2], decoder_channels=3, decoder_input_channels=4, audio_channels=2,
        channel_multiples=[1, 2], sampling_rate=4,
    ))  # fmt: skip
    lengths = seeded(lambda: diffusers.StableAudioProjectionModel(TEXT, TEXT, 0, 10))
    pipe = diffusers.StableAudioPipeline(
        vae, **t5(), projection_model=lengths, transformer=denoiser("StableAudioDiTModel"),
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(),
    )  # fmt: skip
    return pipe, {"num_waveforms_per_prompt": 2}, {"prompt": "a small red cat"}, NEGATIVE


MASKED = {"masks": "prompt_attention_mask", "length": 7}
FURTHER = VIDEO_PIPELINES | OTHERS | {
    "cogview4": ready_made("CogView4Pipeline", "CogView4Transformer2DModel"),
    "cogview3": ready_made("CogView3PlusPipeline", "CogView3PlusTransformer2DModel", length=7,
                           scheduler=diffusers.CogVideoXDDIMScheduler),
    "bria": ready_made("BriaPipeline", "BriaTransformer2DModel", length=7, height=8, width=8,
                       more=lambda: {"vae": diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1)}),
    "cogvideox": ready_made("CogVideoXPipeline", "CogVideoXTransformer3DModel 2b", length=6, num_frames=9,
                            scheduler=diffusers.CogVideoXDDIMScheduler),
    "auraflow": ready_made("AuraFlowPipeline", "AuraFlowTransformer2DModel", **MASKED),
    "prx": ready_made("PRXPipeline", "PRXTransformer2DModel", use_resolution_binning=False, rows=1, **MASKED),
    "krea 2": ready_made("Krea2Pipeline", "Krea2Transformer2DModel", masks="prompt_embeds_mask", length=7),
    "sana video": ready_made("SanaVideoPipeline", "SanaVideoTransformer3DModel", frames=9, use_resolution_binning=False,
                             negative_prompt=None, **MASKED),
    "skyreels": ready_made("SkyReelsV2Pipeline", "SkyReelsV2Transformer3DModel", num_frames=9),
    "ovis": ready_made("OvisImagePipeline", "OvisImageTransformer2DModel", negative_prompt=None),
    "anyflow": ready_made("AnyFlowPipeline", "AnyFlowTransformer3DModel", num_frames=9, length=7),
    "qwen image 2.1": ready_made(
        "QwenImage21Pipeline", "QwenImage21Transformer2DModel", masks="prompt_embeds_mask", rows=1, more=chat_processor
    ),
    "cosmos 3": cosmos3,
    "glm image": ready_made(
        "GlmImagePipeline", "GlmImageTransformer2DModel", length=7, prior_token_ids=torch.arange(16).expand(2, -1),
        more=lambda: dict.fromkeys(("processor", "vision_language_encoder")),
    ),
    "lumina 2": ready_made("Lumina2Pipeline", "Lumina2Transformer2DModel", **MASKED),
    "skyreels from an image": wan_relative("SkyReelsV2ImageToVideoPipeline", "SkyReelsV2Transformer3DModel"),
    "skyreels forced": skyreels_forced("SkyReelsV2DiffusionForcingPipeline", rows=2),
    "skyreels forced from an image": skyreels_forced("SkyReelsV2DiffusionForcingImageToVideoPipeline", image=IMAGE),
    "chronoedit": wan_relative(
        "ChronoEditPipeline", "ChronoEditTransformer3DModel", enable_temporal_reasoning=True, num_temporal_reasoning_steps=2
    ),
    "anyflow from an image": anyflow_far,
    "hunyuan video 1.5": hunyuan_video15(False), "hunyuan video 1.5 from an image": hunyuan_video15(True),
    "framepack": framepack,
    "mochi": ready_made("MochiPipeline", "MochiTransformer3DModel", num_frames=7, **MASKED),
    "hunyuan image": hunyuan_image,
    "hunyuan dit": hunyuan_dit,
    "latte": ready_made("LattePipeline", "LatteTransformer3DModel", length=7, scheduler=diffusers.DDIMScheduler, video_length=2,
                        mask_feature=False, clean_caption=False, negative_prompt=None),
    "stable audio": stable_audio,
    "chroma": chroma, "z image": z_image, "hunyuan video": hunyuan_video, "ltx 2": ltx2,
    "wan from an image": wan_from_an_image, "flux fill": flux_fill,
}  # fmt: skip
for kind, name in (("qwen image 2.1", "QwenImage21Pipeline"), ("cosmos 3", "Cosmos3OmniPipeline"),
                   ("anyflow from an image", "AnyFlowFARPipeline")):  # fmt: skip
    if not hasattr(diffusers, name) or (kind == "cosmos 3" and FIRST_COSMOS3):  # an older library has fewer
        del FURTHER[kind]


FURTHER |= IMAGES


def with_embeds(kind):
    """Of those that test_guide.py has whole tests for."""
    pipe, call = ready_made_pipeline(kind)
    prompt, negative = ({"prompt_embeds": embeds(n, 2, n, TEXT)} for n in (9, 6))
    for text in (prompt, negative) if kind == "qwen" else ():
        text["prompt_embeds_mask"] = torch.ones(text["prompt_embeds"].shape[:2]).long()
    return pipe, call, prompt, negative


class Alone(Pipeline):
    """In the place of a pipeline that cannot be built here: it calls its model once, with ready-made text."""

    def set_progress_bar_config(self, **options):
        pass

    def __call__(self, prompt, **options):
        return (super().__call__(prompt),)


def alone(kind):
    def build():
        tiny, pipe = TINY[kind], Alone(kind)
        both = texts(tiny.rows, *tiny.lengths, TEXT, torch.float32)
        pipe.texts = {name: tiny.text(x, None) for name, x in zip(("positive", "negative"), both, strict=True)}
        return pipe, {}, {"prompt": pipe.prompt}, "negative"

    return build


ALONE = {"hidream": "HiDreamImageTransformer2DModel", "bria fibo": "BriaFiboTransformer2DModel",
         "bria fibo 2": "BriaFibo2Transformer2DModel", "longcat image": "LongCatImageTransformer2DModel",
         "ideogram 4": "Ideogram4Transformer2DModel", "omnigen": "OmniGenTransformer2DModel"}  # fmt: skip
# What the examples draw with --tiny.
DRAWN = FURTHER | {"flux 2": lambda: with_embeds("flux2"), "qwen image": lambda: with_embeds("qwen")}
DRAWN |= {name: alone(kind) for name, kind in ALONE.items() if kind in TINY}
