# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny modular pipelines, made of the parts of the tiny ordinary ones."""

import functools
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass, field

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam
from every_model import EXAMPLES, PIPELINES, pipeline
from pipeline_parts import FRAMES, NEGATIVE, PICTURE, embeds, image_encoder, wan_vae, with_text
from test_cosmos import cosmos
from test_flux3 import flux3
from test_helios import helios
from test_ideogram import TINY as IDEOGRAM
from test_ltx import ltx_with
from test_minimax_h3 import minimax_h3
from test_wan import wan, wan_vace_of_videos, wan_with
from test_wan_animate_2 import wan_animate_2
from tiny import TEXT, seeded

STEPS = 2
PROMPT, UNCONDITIONAL = "the prompt", "the unconditional text"


def _other(x):
    if isinstance(x, list):
        return [_other(y) for y in x]
    return x + 1 if x.is_floating_point() else x


class Words(ModularPipelineBlocks):
    """In the place of a block that has a large language model: known texts have tensors that were made before.

    texts: of PROMPT, NEGATIVE and UNCONDITIONAL. beside: what else the block gives.
    """

    model_name = "words"

    def __init__(self, texts, beside):
        self.texts, self.beside = texts, beside
        super().__init__()

    @property
    def inputs(self):
        return [InputParam("prompt"), InputParam("negative_prompt", default=UNCONDITIONAL)]

    @property
    def intermediate_outputs(self):
        names = [*self.texts[PROMPT], *(f"negative_{name}" for name in self.texts[PROMPT]), *self.beside]
        return [OutputParam(name, kwargs_type="denoiser_input_fields") for name in names]

    def _of(self, text):
        text = text[0] if isinstance(text, list) else text
        if text not in self.texts:  # one that is made of the negative, to see what changes with it
            known = self._of(text.removeprefix("not "))
            return {name: _other(x) for name, x in known.items()}
        return self.texts[text]

    def __call__(self, components, state):
        for name, x in self._of(state.get("prompt")).items():
            state.set(name, x, "denoiser_input_fields")
        for name, x in self._of(state.get("negative_prompt")).items():
            state.set(f"negative_{name}", x, "denoiser_input_fields")
        for name, x in self.beside.items():
            state.set(name, x, "denoiser_input_fields")
        return components, state


@dataclass(frozen=True)
class TinyModular:
    """How a tiny modular pipeline is made, and the ordinary one that draws the same.

    ordinary: () -> (pipeline, arguments of its call, the prompt's arguments, the negative), as in `TinyPipeline`.
    words: the block that encodes the prompt, in the place of which `Words` comes, or "" where the pipeline keeps its own.
    beside: what else that block gives.
    without: blocks that are left out.
    parts: components and configuration of its own.
    call: arguments of its own call; None leaves one out.
    scale: the argument with the scale of classifier-free guidance, or "" where a guider has it.
    unguided: arguments that turn classifier-free guidance off in the ordinary one, or None where no pipeline draws the same.
    more: what a text has in it beside what the ordinary pipeline takes.
    """

    ordinary: Callable
    words: str = "text_encoder"
    beside: dict = field(default_factory=dict)
    without: tuple[str, ...] = ()
    parts: Callable = dict
    call: dict = field(default_factory=dict)
    scale: str = ""
    unguided: dict | None = field(default_factory=lambda: {"guidance_scale": 1.0})
    more: Callable = lambda text: {}


def full(kind, **call):
    """With text encoders."""

    def build():
        return pipeline(kind), {"height": 8, "width": 8} | call, {"prompt": "a small red cat"}, NEGATIVE

    return build


def built(kind):
    """Looked up when it is called: an older diffusers has fewer."""
    return lambda: PIPELINES[kind].build()


def example(kind, **call):
    def build():
        pipe, own, prompt, negative = EXAMPLES[kind]()
        unconditional = {f"negative_{name}": x.flip(0) for name, x in prompt.items()}
        return pipe, own | unconditional | call, prompt, negative

    return build


def with_a_picture(build):
    """A picture where the ordinary pipeline takes a tensor as well."""

    def built():
        pipe, call, prompt, negative = build()
        return pipe, call | {"image": PICTURE}, prompt, negative

    return built


class Stub(types.SimpleNamespace):
    """A component of which only numbers are asked; modular pipelines ask which module its class is of."""


def ltx2_parts():
    sound = Stub(scaling_factor=1.0, mel_bins=64, latent_channels=8, sample_rate=16000, mel_hop_length=160)
    audio_vae = Stub(
        latents_mean=torch.zeros(1), latents_std=torch.ones(1), config=sound, dtype=torch.float32,
        mel_compression_ratio=4, temporal_compression_ratio=4,
    )  # fmt: skip
    return {"tokenizer": Stub(padding_side="left"), "vae": None, "audio_vae": audio_vae}


def wan22_parts():
    return {"transformer_2": seeded(wide_wan, seed=5), "boundary_ratio": 0.7}


def wide_wan():
    return wan(in_channels=16, out_channels=16)


def wan_from_noise():
    pipe, *call = wan_with("WanPipeline", wide_wan, length=7, rows=1, num_frames=5)()
    return pipe.__class__(**pipe.components | {"vae": wan_vae()}), *call


def wan22_from_an_image():
    """Its denoisers see no first frame beside the text."""
    pipe, call, prompt, negative = wan_from_an_image()()
    transformer = seeded(lambda: wan(in_channels=36, out_channels=16))
    return types.SimpleNamespace(components=pipe.components | {"transformer": transformer}), call, prompt, negative


def ltx_from_noise():
    pipe, call, _, _ = ltx_with("LTXPipeline")()
    texts = [{"prompt_embeds": embeds(n, 2, 7, TEXT), "prompt_attention_mask": torch.arange(7) < torch.tensor([[n], [n - 2]])}
             for n in (7, 5, 6)]  # fmt: skip
    return pipe, *with_text(texts, **call)


def wan_from_an_image(**parts):
    def build():
        pipe, call, prompt, negative = with_a_picture(built("wan from an image"))()
        for name, part in parts.items():
            setattr(pipe, name, part)
        return pipe, call, prompt, negative

    return build


def anima():
    """Its text passes through a model of its own; there is no ordinary pipeline."""
    texts = {}
    for n in (7, 5, 6):
        texts[n] = {"qwen_prompt_embeds": embeds(n, 1, n, TEXT), "qwen_attention_mask": torch.ones(1, n).long(),
                    "t5_input_ids": torch.arange(n)[None] + n, "t5_attention_mask": torch.ones(1, n).long()}  # fmt: skip
    pipe = types.SimpleNamespace(components={
        "transformer": seeded(lambda: cosmos(in_channels=16, out_channels=16)),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "text_conditioner": seeded(lambda: diffusers.AnimaTextConditioner(
            source_dim=TEXT, target_dim=TEXT, model_dim=TEXT, num_layers=1, num_attention_heads=2, target_vocab_size=64
        )),
    })  # fmt: skip
    unconditional = {f"negative_{name}": x for name, x in texts[6].items()}
    return pipe, unconditional | {"height": 64, "width": 64}, texts[7], texts[5]


def ideogram4():
    tiny = IDEOGRAM["Ideogram4Transformer2DModel"]
    texts = [{"text_features": embeds(n, 1, 7, TEXT), "text_lengths": torch.tensor([n])} for n in (7, 5)]
    pipe = types.SimpleNamespace(components={
        "transformer": seeded(tiny.build), "unconditional_transformer": seeded(tiny.build, seed=5),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    })  # fmt: skip
    return pipe, {"height": 64, "width": 64}, *texts


def no_image_in(text):
    return {"image_pad_mask": torch.zeros_like(text["prompt_embeds_mask"])}


LTX2 = {"batch_size": 2, "dtype": torch.float32}


def flux3_pipeline(**config):
    def build():
        parts = {"transformer": seeded(lambda: flux3(**config)), "scheduler": FlowMatchEulerDiscreteScheduler()}
        texts = [{"prompt_embeds": embeds(n, 1, n, TEXT)} for n in (7, 5, 6)]
        return types.SimpleNamespace(components=parts), *with_text(texts, height=64, width=64)

    return build


def minimax_h3_from_noise(transformer="transformer"):
    """Its text says of each token whether it is one of a picture."""

    def build():
        parts = {
            transformer: seeded(lambda: minimax_h3(in_channels=24, audio_in_channels=32)),
            "scheduler": diffusers.MiniMaxH3Scheduler(),
            "audio_scheduler": diffusers.MiniMaxH3Scheduler(shift=3.0),
        }
        texts = [
            {"prompt_embeds": embeds(n, 1, n, TEXT), "text_token_tags": torch.arange(n).clamp(max=1)} for n in (7, 5)
        ]
        return types.SimpleNamespace(components=parts), {"height": 32, "width": 32}, *texts

    return build


def wan_animated_2():
    """In two segments, before each of which the denoiser reads the frames whose movements are to be taken."""
    parts = {"transformer": seeded(lambda: wan_animate_2(2, 4)), "scheduler": FlowMatchEulerDiscreteScheduler(),
             "vae": wan_vae(4), "image_encoder": image_encoder(1280, 224, 4)["image_encoder"]}  # fmt: skip
    texts = [{"prompt_embeds": embeds(n, 1, n, TEXT)} for n in (7, 5, 6)]
    call = {"image": PICTURE, "driving_video": [x.resize((32, 32)) for x in FRAMES * 3], "segment_frame_length": 5}
    return types.SimpleNamespace(components=parts), *with_text(texts, **call, height=32, width=32)


REFERENCE = {"prompt_ref_embeds": embeds(4, 1, 6, TEXT)}
MINIMAX_STEPS = {"num_inference_steps": STEPS + 1}  # the last one calls no denoiser
CFG = {"true_cfg_scale": 1.0}
EDITED = embeds(8, 1, 4, 1, 8, 8)
QWEN_FROM_AN_IMAGE = {"unguided": None, "without": ("vae_encoder",), "call": {"image_latents": EDITED}}
MODULAR: dict[str, TinyModular] = {
    "StableDiffusionXLModularPipeline": TinyModular(full("sdxl"), words=""),
    "StableDiffusion3ModularPipeline": TinyModular(full("sd3", max_sequence_length=12), words=""),
    "FluxModularPipeline": TinyModular(full("flux", max_sequence_length=12), words="", unguided={}),
    "FluxKontextModularPipeline": TinyModular(full("flux", max_sequence_length=12), words="", unguided={}),
    "Flux2ModularPipeline": TinyModular(example("flux 2")),
    "Flux2KleinModularPipeline": TinyModular(example("flux 2")),
    "Flux2KleinBaseModularPipeline": TinyModular(example("flux 2")),
    "Flux3ModularPipeline": TinyModular(flux3_pipeline(), without=("prompt_upsampler",), unguided=None),
    "Flux3DistilledModularPipeline": TinyModular(
        flux3_pipeline(flow_map=True), without=("prompt_upsampler",), unguided=None
    ),
    "WanModularPipeline": TinyModular(wan_from_noise),
    "Wan22ModularPipeline": TinyModular(wan_from_noise, parts=wan22_parts, unguided=None),
    "WanImage2VideoModularPipeline": TinyModular(wan_from_an_image()),
    "Wan22Image2VideoModularPipeline": TinyModular(
        wan22_from_an_image,
        parts=lambda: {"transformer_2": seeded(lambda: wan(in_channels=36, out_channels=16), seed=5)},
        unguided=None,
    ),
    "Wan22VaceModularPipeline": TinyModular(
        wan_with("WanVACEPipeline", wan_vace_of_videos, length=7, rows=1, num_frames=5),
        parts=lambda: {"transformer_2": seeded(wan_vace_of_videos, seed=5)},
        unguided=None,
    ),
    "LTXModularPipeline": TinyModular(ltx_from_noise),
    "LTX2ModularPipeline": TinyModular(
        lambda: built("ltx 2")(),
        words="text_encoder/text_encoder",
        beside=LTX2,
        parts=ltx2_parts,
        unguided=None,
    ),
    "LTX25ModularPipeline": TinyModular(
        lambda: built("ltx 2")(),
        words="text_encoder/text_encoder",
        beside=LTX2,
        parts=ltx2_parts,
        unguided=None,
    ),
    "Krea2ModularPipeline": TinyModular(built("krea 2"), unguided={"guidance_scale": 0.0}),
    "Krea2TurboModularPipeline": TinyModular(built("krea 2"), unguided={"guidance_scale": 0.0}),
    "QwenImageModularPipeline": TinyModular(example("qwen image"), unguided=CFG),
    "QwenImageEditModularPipeline": TinyModular(example("qwen image"), **QWEN_FROM_AN_IMAGE),
    "QwenImageEditPlusModularPipeline": TinyModular(
        example("qwen image"), **QWEN_FROM_AN_IMAGE | {"call": {"image_latents": [EDITED]}}
    ),
    "QwenImageLayeredModularPipeline": TinyModular(
        example("qwen image"), **QWEN_FROM_AN_IMAGE | {"call": {"image_latents": EDITED.transpose(1, 2)}}
    ),
    "QwenImage21ModularPipeline": TinyModular(built("qwen image 2.1"), unguided=CFG, more=no_image_in),
    "QwenImage21TurboModularPipeline": TinyModular(built("qwen image 2.1"), unguided=CFG, more=no_image_in),
    "AnimaModularPipeline": TinyModular(anima, unguided=None),
    "ZImageModularPipeline": TinyModular(built("z image"), unguided={"guidance_scale": 0.0}),
    "Cosmos3OmniModularPipeline": TinyModular(
        built("cosmos 3"), words="", parts=lambda: {"enable_safety_checker": False}, scale="guidance_scale"
    ),
    "Cosmos3DistilledModularPipeline": TinyModular(
        built("cosmos 3"),
        words="",
        unguided=None,
        parts=lambda: {"enable_safety_checker": False, "distilled_sigmas": [1.0, 0.5]},
    ),
    "HeliosModularPipeline": TinyModular(helios("HeliosPipeline", 1, length=7), unguided=None),
    "HeliosPyramidModularPipeline": TinyModular(
        helios("HeliosPyramidPipeline", 3, pyramid_num_inference_steps_list=[1, 1, 1], height=128, width=128, length=7)
    ),
    "HeliosPyramidDistilledModularPipeline": TinyModular(
        helios("HeliosPyramidPipeline", 3, pyramid_num_inference_steps_list=[1, 1, 1], height=128, width=128, length=7),
        unguided=None,
        parts=lambda: {"scheduler": diffusers.HeliosDMDScheduler(stages=3, gamma=0.3)},
    ),
    "HunyuanVideo15ModularPipeline": TinyModular(built("hunyuan video 1.5"), unguided=None),
    "EchoModularPipeline": TinyModular(built("ltx 2"), words="text_encoder/encode", parts=ltx2_parts, unguided=None),
    "ErnieImageModularPipeline": TinyModular(built("ernie image"), without=("prompt_enhancer",)),
    "WanAnimate2ModularPipeline": TinyModular(wan_animated_2, beside=REFERENCE, unguided=None),
    "WanAnimate2DistilledModularPipeline": TinyModular(wan_animated_2, beside=REFERENCE, unguided=None),
    "MiniMaxH3ModularPipeline": TinyModular(minimax_h3_from_noise(), unguided=None, call=MINIMAX_STEPS),
    "Ideogram4ModularPipeline": TinyModular(
        ideogram4, without=("prompt_upsample",), unguided=None, call={"guidance_schedule": [7.0] * STEPS}
    ),
}


def modular(name, scale=1.0):
    """A modular pipeline with a guider of this scale, arguments of its call, and the negative."""
    tiny = MODULAR[name]
    ordinary, call, prompt, negative = tiny.ordinary()
    default = getattr(diffusers, name)()
    blocks = default.blocks
    for unused in ("decode", *tiny.without):
        blocks.sub_blocks.pop(unused)
    if tiny.words:
        unconditional = {text: call.pop(f"negative_{text}", prompt[text]) for text in prompt}
        *path, last = tiny.words.split("/")
        around = functools.reduce(lambda block, inside: block.sub_blocks[inside], path, blocks)
        known = {PROMPT: prompt, NEGATIVE: negative, UNCONDITIONAL: unconditional}
        texts = {name: text | tiny.more(text) for name, text in known.items()}
        around.sub_blocks[last] = Words(texts, tiny.beside)
        rows = len(next(iter(prompt.values())))
        prompt, negative = {"prompt": [PROMPT] * rows, "negative_prompt": [UNCONDITIONAL] * rows}, NEGATIVE
    pipe = getattr(diffusers, name)(blocks)
    parts = ordinary.components | tiny.parts()
    known = {**pipe._component_specs, **pipe._config_specs}
    wanted = {part: x for part, x in parts.items() if x is not None and part in known}
    stubs = {part: Stub(**vars(x)) for part, x in wanted.items() if type(x) is types.SimpleNamespace}
    pipe.update_components(**wanted | stubs)
    for guider in ("guider", "guider_2", "audio_guider"):
        if guider in pipe._component_specs:
            pipe.update_components(**{guider: type(getattr(default, guider))(guidance_scale=scale)})
    call = call | prompt | {"num_inference_steps": STEPS, tiny.scale: scale} | tiny.call
    known = pipe._blocks.input_names
    return pipe, {x: value for x, value in call.items() if x in known and value is not None}, negative


def ordinary(name):
    """The ordinary pipeline that draws the same without classifier-free guidance, arguments of its call, and the negative."""
    tiny = MODULAR[name]
    pipe, call, prompt, negative = tiny.ordinary()
    pipe.set_progress_bar_config(disable=True)
    call = {x: value for x, value in (call | prompt).items() if not x.startswith("negative_")} | tiny.unguided
    call |= {"output_type": "latent", "return_dict": False, "num_inference_steps": STEPS}
    known = inspect.signature(type(pipe).__call__).parameters
    return pipe, {x: value for x, value in call.items() if x in known}, negative


for _name in [name for name in MODULAR if not hasattr(diffusers, name)]:  # an older library has fewer
    del MODULAR[_name]
