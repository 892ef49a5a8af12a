# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny random diffusers models and pipelines, made on the spot, and an oracle that shares no code with ours."""

import contextlib
import inspect
import types

import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

TEXT = 32  # width of all text embeddings
POOLED = 24


@pytest.fixture(autouse=True)
def one_thread():
    """To be imported: tiny models are slower on more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def error(got, wanted):
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


def seeded(build, dtype=torch.float32, seed=0):
    """A model from `build`, in eval mode: no weight is zero, and attention is far from a plain mean."""
    torch.manual_seed(seed)
    model = build().eval().to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.abs().max() == 0:
                parameter.normal_(std=0.1)
            if name.endswith(("to_q.weight", "add_q_proj.weight", "norm_q.weight", "norm_added_q.weight")):
                parameter.mul_(5)
    return model


def unet_sd15():
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT,
    )  # fmt: skip


def unet_sdxl():
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), cross_attention_dim=2 * TEXT, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=POOLED + 6 * 8,
    )  # fmt: skip


def pixart():
    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=32, sample_size=8, patch_size=2, caption_channels=TEXT,
        use_additional_conditions=False,
    )  # fmt: skip


def sd3(dual_attention_layers=(), qk_norm=None):
    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=2 * TEXT, caption_projection_dim=32,
        pooled_projection_dim=2 * POOLED, pos_embed_max_size=8,
        dual_attention_layers=dual_attention_layers, qk_norm=qk_norm,
    )  # fmt: skip


def sd35():
    return sd3(dual_attention_layers=(0, 1), qk_norm="rms_norm")


MODELS = {"sd15": unet_sd15, "sdxl": unet_sdxl, "pixart": pixart, "sd3": sd3, "sd35": sd35}


def noise(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def texts(rows, positive, negative, width, dtype):
    """text+ and text-, alike in the first row and not in the others: so the clip fires on a part of the tokens."""
    far, plus = noise(rows, negative, width, seed=1), noise(rows, positive, width, seed=2)
    share = torch.linspace(0.02, 0.9, rows).double()[:, None, None]
    longest = F.pad(plus, (0, 0, 0, max(0, negative - positive)))[:, :negative]
    return plus.to(dtype), ((1 - share) * longest + share * far).to(dtype)


def model_arguments(kind, rows, dtype):
    """All arguments but the text; every row its own."""
    image, time = noise(rows, 4, 8, 8, seed=3, dtype=dtype), torch.linspace(300, 700, rows).long()
    if kind == "sd15":
        return {"sample": image, "timestep": time}
    if kind == "sdxl":
        pooled, sizes = noise(rows, POOLED, seed=4, dtype=dtype), noise(rows, 6, seed=5, dtype=dtype)
        added = {"text_embeds": pooled, "time_ids": sizes}
        return {"sample": image, "timestep": time, "added_cond_kwargs": added}
    if kind == "pixart":
        none = {"resolution": None, "aspect_ratio": None}
        return {"hidden_states": image, "timestep": time, "added_cond_kwargs": none}
    pooled = noise(rows, 2 * POOLED, seed=4, dtype=dtype)
    return {"hidden_states": image, "timestep": time, "pooled_projections": pooled}


def text_width(kind):
    return TEXT if kind in ("sd15", "pixart") else 2 * TEXT


def guided(positive, negative, scale, tau, alpha, rule="nag"):
    """The formula, per token over all heads, in float64: [B, S, C] -> (out, share of tokens that the clip changes)."""
    p, n = positive.double(), negative.double()
    if rule == "nasa":
        return (p - scale * n).to(positive.dtype), 0.0
    g = scale * p - (scale - 1) * n
    ratio = g.abs().sum(-1, keepdim=True) / p.abs().sum(-1, keepdim=True)
    clipped = torch.where(ratio > tau, tau / ratio, torch.ones_like(ratio)) * g
    return (alpha * clipped + (1 - alpha) * p).to(positive.dtype), (ratio > tau).double().mean().item()


@contextlib.contextmanager
def doubled_batch_oracle(sites, scale, tau, alpha, rule="nag"):
    """While open, a batch [positive rows; negative rows] through the untouched model is guided in both halves alike.

    It replaces the input of the layer after attention, so it never meets an attention function. Yields the list
    of the shares of tokens that the clip changed, one for each layer met.
    """
    clipped = []

    def steer(layer, inputs):
        half = inputs[0].shape[0] // 2
        out, share = guided(inputs[0][:half], inputs[0][half:], scale, tau, alpha, rule)
        clipped.append(share)
        return (torch.cat([out, out]),)

    hooks = [site.to_out[0].register_forward_pre_hook(steer) for site in sites]
    try:
        yield clipped
    finally:
        for hook in hooks:
            hook.remove()


class Tokenizer:
    """Words to numbers, as CLIP's and T5's tokenizers are called by the pipelines."""

    def __init__(self, length, first=None, last=1, pad=0):
        self.model_max_length, self.first, self.last, self.pad = length, first, last, pad
        self.added_tokens_encoder = {}  # looked up for textual inversion

    def __call__(self, text, padding=False, max_length=None, truncation=False, **_):
        length = max_length or self.model_max_length
        texts = [text] if isinstance(text, str) else text
        rows = []
        for one in texts:
            words = [3 + sum(ord(c) * (i + 7) for i, c in enumerate(w)) % 60 for w in one.split()]
            rows.append(([] if self.first is None else [self.first]) + words)
        rows = [(row[: length - 1] if truncation else row) + [self.last] for row in rows]
        width = length if padding == "max_length" else max(map(len, rows))
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in rows])
        return types.SimpleNamespace(input_ids=ids, attention_mask=mask)

    def tokenize(self, text):
        return text.split()

    def batch_decode(self, ids):
        return [str(row.tolist()) for row in ids]


def _clip(cls, **config):
    return seeded(lambda: cls(CLIPTextConfig(
        vocab_size=64, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, projection_dim=POOLED, bos_token_id=1, eos_token_id=2, pad_token_id=2, **config,
    )), seed=1)  # fmt: skip


def _t5(width=TEXT):
    config = T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    return seeded(lambda: T5EncoderModel(config), seed=2)


def _clip_tokenizer():
    return Tokenizer(16, first=1, last=2, pad=2)


def _vae():
    config = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4, "layers_per_block": 1}
    return seeded(lambda: AutoencoderKL(**config, shift_factor=0.0), seed=3)


def _ddim():
    return DDIMScheduler(steps_offset=1, clip_sample=False)


def sd15_pipeline():
    return StableDiffusionPipeline(
        vae=_vae(), text_encoder=_clip(CLIPTextModel), tokenizer=_clip_tokenizer(), unet=seeded(unet_sd15),
        scheduler=_ddim(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl_pipeline():
    return StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=_clip(CLIPTextModel), text_encoder_2=_clip(CLIPTextModelWithProjection),
        tokenizer=_clip_tokenizer(), tokenizer_2=_clip_tokenizer(), unet=seeded(unet_sdxl), scheduler=_ddim(),
        add_watermarker=False,
    )  # fmt: skip


def pixart_pipeline():
    return PixArtAlphaPipeline(
        tokenizer=Tokenizer(16), text_encoder=_t5(), vae=_vae(), transformer=seeded(pixart), scheduler=_ddim()
    )


def sd3_pipeline(build=sd3):
    clips = [_clip(CLIPTextModelWithProjection) for _ in range(2)]
    return StableDiffusion3Pipeline(
        transformer=seeded(build), scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(),
        text_encoder=clips[0], tokenizer=_clip_tokenizer(), text_encoder_2=clips[1], tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5(2 * TEXT), tokenizer_3=Tokenizer(16),
    )  # fmt: skip


PIPELINES = {"sd15": sd15_pipeline, "sdxl": sdxl_pipeline, "pixart": pixart_pipeline, "sd3": sd3_pipeline,
             "sd35": lambda: sd3_pipeline(sd35)}  # fmt: skip


def pipeline(kind):
    pipe = PIPELINES[kind]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompt="a small red cat", **options):
    """Latents of four steps, the same noise each time."""
    call = {"prompt": prompt, "num_inference_steps": 4, "guidance_scale": 1.0, "height": 8, "width": 8,
            "output_type": "latent", "generator": torch.Generator().manual_seed(7)}  # fmt: skip
    if isinstance(pipe, (PixArtAlphaPipeline, StableDiffusion3Pipeline)):
        call["max_sequence_length"] = 12
    if isinstance(pipe, PixArtAlphaPipeline):
        call |= {"use_resolution_binning": False, "clean_caption": False}
    return pipe(**call | options).images


def denoiser(pipe):
    return pipe.transformer if hasattr(pipe, "transformer") else pipe.unet


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


def draw_with_oracle(pipe, sites, images, negative, scale, tau, alpha, rule="nag", steps=range(99), **options):
    """A pipeline's latents if its denoiser ran the prompt's rows in a doubled batch, guided by hooks.

    images: rows of the conditional half. negative: as `denoiser_texts` gives it.
    Returns (latents, shares of tokens that the clip changed).
    """
    model, shares, seen = denoiser(pipe), [], []
    plain = model.forward

    def forward(*args, **kwargs):
        arguments = dict(inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments)
        del arguments["self"]
        out = plain(**arguments)[0]
        step = arguments["timestep"].flatten()[0].item()
        seen.extend([step] if step not in seen else [])
        if seen.index(step) not in steps:
            return (out,)
        rows = arguments["encoder_hidden_states"].shape[0]
        pair = _rows(arguments, list(range(rows - images, rows)) * 2, rows)
        texts = [x["encoder_hidden_states"][-images:] for x in (arguments, negative)]
        length = max(x.shape[1] for x in texts)
        masks = [x.get("encoder_attention_mask") for x in (arguments, negative)]
        masks = [
            torch.ones(images, x.shape[1]) if m is None else m[-images:] for m, x in zip(masks, texts, strict=True)
        ]
        pair["encoder_hidden_states"] = torch.cat([F.pad(x, (0, 0, 0, length - x.shape[1])) for x in texts])
        if "encoder_attention_mask" in inspect.signature(type(model).forward).parameters:
            pair["encoder_attention_mask"] = torch.cat([F.pad(m, (0, length - m.shape[1])) for m in masks])
        with doubled_batch_oracle(sites, scale, tau, alpha, rule) as clipped:
            steered = plain(**pair)[0][:images]
        shares.extend(clipped)
        return (torch.cat([out[: rows - images], steered]),)

    model.forward = forward
    try:
        return draw(pipe, **options), shares
    finally:
        del model.forward
