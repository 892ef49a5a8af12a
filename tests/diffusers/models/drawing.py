# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Drawing with tiny pipelines that have text encoders, and the same with an oracle in the place of guidance."""

import inspect

import torch
import torch.nn.functional as F
from diffusers import (
    FluxPipeline,
    LTXPipeline,
    PixArtAlphaPipeline,
    SanaPipeline,
    SanaSprintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    WanPipeline,
)
from oracles import doubled_batch_oracle, vsf_oracle
from pipeline_parts import NEGATIVE

from nag_kernels.diffusers.models.registry import guided_layers


def compile_transformer(pipe, how, backend):
    """Without graph breaks; how: as a whole by "torch.compile", or by "blocks"."""
    if how == "torch.compile":
        pipe.transformer = torch.compile(pipe.transformer, backend=backend, fullgraph=True)
        return
    for block in pipe.transformer.transformer_blocks:
        block.compile(backend=backend, fullgraph=True)


def call_of(pipe, prompt="a small red cat", **options):
    """The arguments of a call with four steps, the same noise each time."""
    call = {"prompt": prompt, "num_inference_steps": 4, "guidance_scale": 1.0, "height": 8, "width": 8,
            "output_type": "latent", "generator": torch.Generator().manual_seed(7)}  # fmt: skip
    sana_like = isinstance(pipe, (SanaPipeline, SanaSprintPipeline))
    if not isinstance(pipe, (StableDiffusionPipeline, StableDiffusionXLPipeline)):
        call["max_sequence_length"] = 12
    if sana_like or isinstance(pipe, PixArtAlphaPipeline):
        call |= {"use_resolution_binning": False, "clean_caption": False}
    if sana_like:
        call |= {"height": 32, "width": 32, "complex_human_instruction": ["say more of this:"]}
    if isinstance(pipe, SanaSprintPipeline):
        call["intermediate_timesteps"] = None  # a number goes with two steps alone
    if isinstance(pipe, FluxPipeline):
        call["negative_prompt"] = "a house"
    call |= options
    if isinstance(pipe, FluxPipeline):  # there guidance_scale is a number that the model is given
        call["true_cfg_scale"] = call.pop("guidance_scale")
        if isinstance(call["prompt"], list):
            call["negative_prompt"] = [call["negative_prompt"]] * len(call["prompt"])
    if isinstance(pipe, (LTXPipeline, WanPipeline)):
        size = 128 if isinstance(pipe, LTXPipeline) else 32
        call |= {"height": size, "width": size, "num_frames": 5}
        call["num_videos_per_prompt"] = call.pop("num_images_per_prompt", 1)
    return call


def draw(pipe, prompt="a small red cat", by=None, **options):
    """Latents of four steps, the same noise each time; by: what is called in the pipeline's place, `guided(pipe, ...)` say."""
    made = (by or pipe)(**call_of(pipe, prompt, **options))
    return made.frames if isinstance(pipe, (LTXPipeline, WanPipeline)) else made.images


def few_steps(kind):
    """In Wan's first two the clip fires on all tokens, in the later ones on a part."""
    return 4 if kind.startswith("wan") else 2


def denoiser(pipe):
    return pipe.transformer if hasattr(pipe, "transformer") else pipe.unet


def denoisers(pipe):
    named = (getattr(pipe, name, None) for name in ("transformer", "transformer_2", "transformer_ref", "unet"))
    return [x for x in named if x is not None]


def _rows(x, where, rows):
    if isinstance(x, dict):
        return {k: _rows(v, where, rows) for k, v in x.items()}
    return x[where] if isinstance(x, torch.Tensor) and x.ndim and x.shape[0] == rows else x


def denoiser_texts(pipe, **options):
    """The arguments of the first denoiser call of a pipeline's run."""
    calls = []
    forward = type(denoiser(pipe)).forward

    def watch(module, args, kwargs):
        calls.append(inspect.signature(forward).bind(module, *args, **kwargs).arguments)

    hook = denoiser(pipe).register_forward_pre_hook(watch, with_kwargs=True)
    draw(pipe, **options)
    hook.remove()
    return calls[0]


def draw_with_oracle(pipe, images, negative, scale, tau, alpha, rule="nag", steps=range(99), unsteered=(), **options):
    """A pipeline's latents if its denoiser ran the prompt's rows in a doubled batch, guided by hooks (rule "vsf": with
    packed text, under `vsf_oracle`, of which tau is the bias).

    images: rows of the conditional half. negative: as `denoiser_texts` gives it. scale: a list has one for each step.
    unsteered: the layers that are not guided.
    Returns (latents, shares of tokens that the clip changed).
    """
    shares, seen = [], []
    in_two_calls, latest = isinstance(pipe, (FluxPipeline, WanPipeline)), None  # classifier-free guidance, prompt first

    def steered(model, plain, args, kwargs):
        nonlocal latest
        arguments = dict(inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments)
        del arguments["self"]
        out = plain(**arguments)[0]
        step = arguments["timestep"].flatten()[0].item()
        if in_two_calls and step == latest:
            return (out,)
        latest = step
        seen.extend([step] if step not in seen else [])
        if seen.index(step) not in steps:
            return (out,)
        now = scale[seen.index(step)] if isinstance(scale, list) else scale
        rows = arguments["encoder_hidden_states"].shape[0]
        pair = _rows(arguments, list(range(rows - images, rows)) * 2, rows)
        texts = [x["encoder_hidden_states"][-images:] for x in (arguments, negative)]
        length = max(x.shape[1] for x in texts)
        masks = [x.get("encoder_attention_mask") for x in (arguments, negative)]
        masks = [
            torch.ones(images, x.shape[1]) if m is None else m[-images:] for m, x in zip(masks, texts, strict=True)
        ]
        if rule == "vsf":
            one = _rows(arguments, list(range(rows - images, rows)), rows)
            one["encoder_hidden_states"] = torch.cat(texts, dim=1)
            if arguments.get("encoder_attention_mask") is not None:
                one["encoder_attention_mask"] = torch.cat(masks, dim=1)
            if "txt_ids" in one:
                one["txt_ids"] = one["txt_ids"].repeat(2, 1)  # all zero
            flux = isinstance(pipe, FluxPipeline)
            lengths = [x.shape[1] for x in texts]
            with vsf_oracle(guided_layers(model), *lengths, now, tau, flux, unsteered) as taken:
                conditional = plain(**one)[0]
            assert len(taken) == len(guided_layers(model))
            return (torch.cat([out[: rows - images], conditional]),)
        pair["encoder_hidden_states"] = torch.cat([F.pad(x, (0, 0, 0, length - x.shape[1])) for x in texts])
        if "encoder_attention_mask" in inspect.signature(type(model).forward).parameters:
            pair["encoder_attention_mask"] = torch.cat([F.pad(m, (0, length - m.shape[1])) for m in masks])
        with doubled_batch_oracle(guided_layers(model), length, now, tau, alpha, rule, unsteered) as clipped:
            conditional = plain(**pair)[0][:images]
        shares.extend(clipped)
        return (torch.cat([out[: rows - images], conditional]),)

    models = denoisers(pipe)
    before = [model.__dict__.get("forward") for model in models]  # where hooks (offloading, ...) have set one
    for model in models:
        model.forward = lambda *args, model=model, plain=model.forward, **kwargs: steered(model, plain, args, kwargs)
    try:
        return draw(pipe, **options), shares
    finally:
        for model, forward in zip(models, before, strict=True):
            del model.forward
            if forward is not None:
                model.forward = forward


# SANA puts an instruction to enhance it before a prompt, and nothing before a negative.
ENCODED_AS_NEGATIVES = {name: {"complex_human_instruction": None} for name in ("SanaPipeline", "SanaSprintPipeline")}


def negative_of(pipe, text=NEGATIVE, **options):
    return denoiser_texts(pipe, **options | {"prompt": text} | ENCODED_AS_NEGATIVES.get(type(pipe).__name__, {}))
