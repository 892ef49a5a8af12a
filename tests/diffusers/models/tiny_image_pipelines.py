# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Pipelines over tiny random models of further families that draw images or sounds, as in `tiny_pipelines`."""

import inspect
import sys
import types
import unittest.mock

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from tiny_image_families import audioldm2 as tiny_audioldm2
from tiny_image_families import controlnet_xs as tiny_controlnet_xs
from tiny_image_families import dreamlite as tiny_dreamlite
from tiny_image_families import kandinsky3 as tiny_kandinsky3
from tiny_image_families import kolors as tiny_kolors
from tiny_image_families import longcat_audio as tiny_longcat_audio
from tiny_models import POOLED, TEXT, Tokenizer, pipeline, seeded
from tiny_pipeline import IMAGE, NEGATIVE, denoiser, embeds, ready_made, t5, wan_vae, with_text
from transformers import BatchEncoding, LlamaConfig, LlamaModel

PICTURE = Image.fromarray((IMAGE[0] * 255).byte().permute(1, 2, 0).numpy())


def ernie_image():
    """Each row's text has its own length."""
    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipe = diffusers.ErnieImagePipeline(
        denoiser("ErnieImageTransformer2DModel"), scheduler=FlowMatchEulerDiscreteScheduler(), **parts
    )
    texts = [{"prompt_embeds": [embeds(n + i, n - 2 * i, TEXT + 1) for i in range(2)]} for n in (7, 5, 6)]
    return pipe, *with_text(texts, height=128, width=128)


def kolors():
    """Of its module: the library has it only beside sentencepiece, which ready-made text does not need."""
    with unittest.mock.patch.dict(sys.modules, sentencepiece=unittest.mock.Mock()):
        from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline

    parts = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipe = KolorsPipeline(unet=seeded(tiny_kolors), scheduler=diffusers.EulerDiscreteScheduler(), **parts)
    texts = [{"prompt_embeds": embeds(n, 2, 7, TEXT), "pooled_prompt_embeds": embeds(n, 2, POOLED)} for n in (7, 5, 6)]
    return pipe, *with_text(texts, height=64, width=64)


def joy_image_edit():
    """From an image; the pipeline would draw one of a megapixel."""
    pipe = diffusers.JoyImageEditPipeline(
        FlowMatchEulerDiscreteScheduler(), wan_vae(4), None, None, denoiser("JoyImageEditTransformer3DModel"), None
    )
    pipe.vae_image_processor.get_default_height_width = lambda image, height, width: (height, width)
    texts = [{"prompt_embeds": embeds(n, 2, n, TEXT), "prompt_embeds_mask": torch.ones(2, n)} for n in (7, 5, 6)]
    return pipe, *with_text(texts, image=PICTURE, height=32, width=32)


def joy_image_edit_plus():
    """From two images. It takes no ready-made text, so its encoder is a stand-in."""
    pipe = diffusers.JoyImageEditPlusPipeline(
        FlowMatchEulerDiscreteScheduler(), wan_vae(4), None, None, denoiser("JoyImageEditPlusTransformer3DModel"), None
    )
    pipe.image_processor.get_default_height_width = lambda *image: (32, 16)

    def encode(prompt, **_):
        n = max(map(len, prompt)) // 8
        return embeds(n, len(prompt), n, TEXT), torch.arange(n) < torch.tensor([[n], [n - 2]])

    pipe.encode_prompt_multiple_images = encode
    call = {"images": [[PICTURE, PICTURE]] * 2, "height": 32, "width": 32, "negative_prompt": [""] * 2}
    return pipe, call, {"prompt": ["a small red cat"] * 2}, NEGATIVE


def llama():
    config = LlamaConfig(
        vocab_size=64, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    return seeded(lambda: LlamaModel(config), seed=2)


class EncodedTokenizer(Tokenizer):
    """Whose answer is a mapping, too."""

    def __call__(self, *args, **kwargs):
        return BatchEncoding(vars(super().__call__(*args, **kwargs)))


def dreamlite(name, **call):
    """It draws one image a call, always with classifier-free guidance or, distilled, never."""

    def build():
        parts = {"unet": seeded(tiny_dreamlite), "vae": seeded(lambda: diffusers.AutoencoderTiny(latent_channels=4))}
        parts |= {"text_encoder": llama(), "tokenizer": EncodedTokenizer(16), "processor": EncodedTokenizer(32)}
        pipe = getattr(diffusers, name)(scheduler=FlowMatchEulerDiscreteScheduler(), **parts)
        for task in ("generate", "edit"):
            setattr(pipe, f"prompt_template_encode_{task}", "{}")
            setattr(pipe, f"prompt_template_encode_{task}_start_idx", 0)
        return pipe, {"height": 64, "width": 64, **call}, {"prompt": "a small red cat"}, NEGATIVE

    return build


def kandinsky3():
    """With a text encoder; texts are cut to the longest of the call."""
    pipe = diffusers.Kandinsky3Pipeline(
        t5()["tokenizer"], t5()["text_encoder"], seeded(tiny_kandinsky3), diffusers.DDPMScheduler(), None
    )
    return pipe, {"height": 64, "width": 64, "negative_prompt": "blue"}, {"prompt": "a small red cat"}, NEGATIVE


def kandinsky3_ready_made():
    pipe, call, *_ = kandinsky3()
    texts = []
    for n in (7, 5, 6):
        text = {
            "prompt_embeds": embeds(n, 2, 7, TEXT),
            "attention_mask": torch.arange(7) < torch.tensor([[n], [n - 2]]),
        }
        texts.append(text)
    return pipe, *with_text(texts, **call | {"negative_prompt": None})


def audioldm2():
    """Two texts, one with a mask."""
    parts = dict.fromkeys(inspect.signature(diffusers.AudioLDM2Pipeline.__init__).parameters)
    del parts["self"]
    pipe = diffusers.AudioLDM2Pipeline(
        **parts | {"unet": seeded(tiny_audioldm2), "scheduler": diffusers.DDIMScheduler()}
    )
    shape = {"upsample_rates": [2, 2], "sampling_rate": 16, "model_in_dim": 64, "model_type": "t5"}
    config = types.SimpleNamespace(**shape)
    pipe.vocoder = pipe.text_encoder_2 = pipe.language_model = types.SimpleNamespace(config=config, dtype=torch.float32)
    texts = []
    for n in (7, 5, 6):
        text = {"prompt_embeds": embeds(n, 2, 7, TEXT), "generated_prompt_embeds": embeds(n + 9, 2, 4, TEXT)}
        texts.append(text | {"attention_mask": (torch.arange(7) < torch.tensor([[n], [n - 2]])).long()})
    return pipe, *with_text(texts)


def stable_audio3():
    lengths = seeded(lambda: diffusers.StableAudio3DurationEmbedder(output_dim=TEXT, fourier_dim=8))
    pipe = diffusers.StableAudio3Pipeline(
        None, None, None, lengths, denoiser("StableAudio3DiTModel"), FlowMatchEulerDiscreteScheduler()
    )
    config = types.SimpleNamespace(sampling_rate=4, latent_dim=4)
    pipe.vae = types.SimpleNamespace(config=config, downsampling_ratio=2)
    texts = []
    for n in (7, 5, 6):
        seen = (torch.arange(7) < torch.tensor([[n], [n - 2]])).long()
        texts.append({"prompt_embeds": embeds(n, 2, 7, TEXT), "encoder_attention_mask": seen})
    return pipe, *with_text(texts, duration=8.0)


def ace_step():
    """Its text is packed with lyrics and a voice, which the negative has too."""
    encoder = seeded(lambda: diffusers.AceStepConditionEncoder(
        hidden_size=TEXT, intermediate_size=32, text_hidden_dim=TEXT, timbre_hidden_dim=4, num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
    ))  # fmt: skip
    with torch.no_grad():
        for x in (encoder.silence_latent, encoder.null_condition_emb):
            x.normal_(generator=torch.Generator().manual_seed(3))
    pipe = diffusers.AceStepPipeline(
        None, llama(), Tokenizer(64), denoiser("AceStepTransformer1DModel"), encoder,
        FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )  # fmt: skip
    call = {"audio_duration": 0.6, "lyrics": ["la la la", "la"]}
    return pipe, call, {"prompt": ["a small red cat", "two small cats of grey wool"]}, NEGATIVE


def longcat_audio():
    config = types.SimpleNamespace(sample_rate=16, downsampling_ratio=2)
    pipe = diffusers.LongCatAudioDiTPipeline(
        unittest.mock.Mock(config=config), **t5(), transformer=seeded(tiny_longcat_audio), scheduler=None
    )
    return pipe, {"audio_duration_s": 2.0}, {"prompt": ["a small red cat", "two small cats of grey wool"]}, NEGATIVE


def amused():
    """It draws numbers of a codebook."""
    parts = pipeline("sdxl").components
    pipe = diffusers.AmusedPipeline(
        None, parts["tokenizer_2"], parts["text_encoder_2"], denoiser("UVit2DModel"),
        diffusers.AmusedScheduler(mask_token_id=33),
    )  # fmt: skip
    return pipe, {"height": 64, "width": 64, "negative_prompt": ""}, {"prompt": "a small red cat"}, NEGATIVE


def controlnet_xs():
    """The control is a part of the denoiser."""
    parts = {k: v for k, v in pipeline("sd15").components.items() if k != "image_encoder"}
    parts |= {"unet": seeded(tiny_controlnet_xs), "controlnet": None, "requires_safety_checker": False}
    pipe = diffusers.StableDiffusionControlNetXSPipeline(**parts)
    pipe.vae_scale_factor = 2  # by which this control makes its image smaller
    call = {"image": IMAGE[..., :16, :16], "control_guidance_end": 0.7, "negative_prompt": ""}
    return pipe, call, {"prompt": "a small red cat"}, NEGATIVE


IMAGES = {
    "ernie image": ernie_image,
    "kolors": kolors,
    "nucleus": ready_made(
        "NucleusMoEImagePipeline",
        "NucleusMoEImageTransformer2DModel",
        masks="prompt_embeds_mask",
        length=7,
        more=lambda: {"processor": None},
    ),
    "dreamlite": dreamlite("DreamLitePipeline"),
    "dreamlite from an image": dreamlite("DreamLitePipeline", image=PICTURE),
    "dreamlite mobile": dreamlite("DreamLiteMobilePipeline"),
    "lumina next": ready_made(
        "LuminaPipeline",
        "LuminaNextDiT2DModel",
        masks="prompt_attention_mask",
        length=7,
        clean_caption=False,
    ),
    "kandinsky 3": kandinsky3,
    "kandinsky 3 ready made": kandinsky3_ready_made,
    "audioldm 2": audioldm2,
    "stable audio 3": stable_audio3,
    "ace step": ace_step,
    "longcat audio": longcat_audio,
    "amused": amused,
    "controlnet xs": controlnet_xs,
    "joy image edit": joy_image_edit,
    "joy image edit plus": joy_image_edit_plus,
}
for kind, name in (("stable audio 3", "StableAudio3Pipeline"), ("joy image edit plus", "JoyImageEditPlusPipeline")):
    if not hasattr(diffusers, name):  # an older library has fewer
        del IMAGES[kind]
