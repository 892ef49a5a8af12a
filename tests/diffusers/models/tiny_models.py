# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny random diffusers models and pipelines, made on the spot, and an oracle that shares no code with ours."""

import contextlib
import inspect
import types

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLWan,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from nag_kernels.diffusers.models.registry import guided_layers

TEXT = 32  # width of all text embeddings
POOLED = 24


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
                parameter.mul_(40 if "Sana" in type(model).__name__ else 5)  # whose text has features alike
    return model


def unet_sd15():
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT,
    )  # fmt: skip


def unet_sdxl(**config):
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2), cross_attention_dim=2 * TEXT, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=POOLED + 6 * 8, **config,
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


def sana(**config):
    return SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=TEXT,
        sample_size=8, patch_size=1, **config,
    )  # fmt: skip


def sana_sprint():
    return sana(guidance_embeds=True, guidance_embeds_scale=0.1, qk_norm="rms_norm_across_heads", timestep_scale=1000.0)


def flux(**config):
    config = {"in_channels": 16, "num_attention_heads": 2, **config}
    return FluxTransformer2DModel(
        patch_size=1, num_layers=2, num_single_layers=2, attention_head_dim=16,
        joint_attention_dim=TEXT, pooled_projection_dim=TEXT, axes_dims_rope=(4, 4, 8), **config,
    )  # fmt: skip


WAN = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": TEXT,
       "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32}  # fmt: skip


def flux2():
    return Flux2Transformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip


def qwen():
    return QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def ltx():
    return LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, cross_attention_dim=32, num_layers=2,
        caption_channels=TEXT,
    )  # fmt: skip


def wan(**config):
    return WanTransformer3DModel(**WAN | config)


def wan_vace():
    return WanVACETransformer3DModel(**WAN, vace_layers=[0], vace_in_channels=6)


MODELS = {
    "sd15": unet_sd15, "sdxl": unet_sdxl, "pixart": pixart, "sd3": sd3, "sd35": sd35, "sana": sana,
    "sana sprint": sana_sprint, "flux": flux, "flux2": flux2, "qwen": qwen, "ltx": ltx, "wan": wan, "wan vace": wan_vace,
}  # fmt: skip


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
    if kind.startswith("sana"):
        guidance = {"guidance": torch.linspace(0.3, 0.6, rows, dtype=dtype)} if kind == "sana sprint" else {}
        return {"hidden_states": image, "timestep": time, **guidance}
    if kind in ("flux2", "qwen", "ltx"):
        packed = noise(rows, 16, 4 if kind == "ltx" else 16, seed=3, dtype=dtype)
        shape = {"flux2": {"img_ids": torch.cartesian_prod(*map(torch.arange, (1, 4, 4, 1))).float()[None]},
                 "qwen": {"img_shapes": [[(1, 4, 4)]] * rows},
                 "ltx": {"num_frames": 1, "height": 4, "width": 4}}[kind]  # fmt: skip
        return {"hidden_states": packed, "timestep": time if kind == "ltx" else (time / 1000).to(dtype), **shape}
    if kind == "flux":
        ids = torch.stack([torch.zeros(16), torch.arange(16.0) // 4, torch.arange(16.0) % 4], dim=1)
        packed, pooled = noise(rows, 16, 16, seed=3, dtype=dtype), noise(rows, TEXT, seed=4, dtype=dtype)
        return {
            "hidden_states": packed,
            "timestep": (time / 1000).to(dtype),
            "pooled_projections": pooled,
            "img_ids": ids,
        }
    if kind.startswith("wan"):
        video = {"hidden_states": noise(rows, 4, 2, 8, 8, seed=3, dtype=dtype), "timestep": time}
        if kind == "wan vace":
            video["control_hidden_states"] = noise(rows, 6, 2, 8, 8, seed=4, dtype=dtype)
        return video
    pooled = noise(rows, 2 * POOLED, seed=4, dtype=dtype)
    return {"hidden_states": image, "timestep": time, "pooled_projections": pooled}


def text_width(kind):
    return 2 * TEXT if kind in ("sdxl", "sd3", "sd35") else TEXT


def twice(x):
    """The arguments for a doubled batch."""
    if isinstance(x, dict):
        return {k: v if k == "img_ids" else twice(v) for k, v in x.items()}
    if isinstance(x, list):
        return x * 2
    return torch.cat([x, x]) if isinstance(x, torch.Tensor) else x


def run(model, arguments, text, **masks):
    """The output of a model for one text per row."""
    if "img_ids" in arguments:
        ids = arguments["img_ids"]
        arguments = arguments | {"txt_ids": ids.new_zeros(*ids.shape[:-2], text.shape[1], ids.shape[-1])}
    known = inspect.signature((getattr(model, "_orig_mod", model)).forward).parameters
    masks = {name: None for name in ("encoder_attention_mask",) if name in known} | masks
    return model(**arguments, encoder_hidden_states=text, **masks).sample


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
def doubled_batch_oracle(sites, text_length, scale, tau, alpha, rule="nag"):
    """While open, a batch [positive rows; negative rows] through the untouched model is guided in both halves alike.

    It replaces the input of the layer after attention, so it never meets an attention function. In the single-stream
    blocks of FLUX.1 (no such layer) and FLUX.2 (one for attention and feed-forward together) text and image are one
    sequence, of which the image is replaced. Yields the list of the shares of tokens that the clip changed, one for
    each layer met.
    """
    clipped = []

    def steered(x):
        half = x.shape[0] // 2
        out, share = guided(x[:half], x[half:], scale, tau, alpha, rule)
        clipped.append(share)
        return torch.cat([out, out])

    def steer(layer, inputs):
        return (steered(inputs[0]),)

    def with_image_steered(x):
        return torch.cat([x[:, :text_length], steered(x[:, text_length:])], dim=1)

    def hook(site):
        if not hasattr(site, "to_out"):
            return site.register_forward_hook(lambda layer, inputs, output: with_image_steered(output))
        if isinstance(site.to_out, torch.nn.Linear):  # of attention and feed-forward together
            widths = (site.inner_dim, site.to_out.in_features - site.inner_dim)

            def steer_attention(layer, inputs):
                attention, feed_forward = inputs[0].split(widths, dim=-1)
                return (torch.cat([with_image_steered(attention), feed_forward], dim=-1),)

            return site.to_out.register_forward_pre_hook(steer_attention)
        return site.to_out[0].register_forward_pre_hook(steer)

    hooks = [hook(site) for site in sites]
    try:
        yield clipped
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def vsf_oracle(sites, positive, negative, scale, bias=0.0, text_first=False):
    """While open, the untouched model, run on packed texts [text+ ; text-] of these lengths, does value sign flip.

    In the guided layers it takes the place of scaled_dot_product_attention, in float64: the image sees both texts, and the
    values of text- times -scale; in joint attention text+ does not see text-, and text- sees itself as it is, not text+.
    Yields the list of the calls that it took.
    """
    plain, inside, taken = F.scaled_dot_product_attention, [], []

    def attend(query, key, value, attn_mask=None, **options):
        if not inside:
            return plain(query, key, value, attn_mask, **options)
        assert options.get("scale") is None
        taken.append(key.shape)
        image = key.shape[2] - positive - negative
        pictures, texts = ["image"] * image, ["text+"] * positive + ["text-"] * negative
        kinds = texts + pictures if text_first else pictures + texts
        asking = kinds if image else ["image"] * query.shape[2]
        unseen = {("text+", "text-"), ("text-", "text+")}
        seen = torch.tensor([[(q, k) not in unseen for k in kinds] for q in asking])
        flipped = torch.tensor([[(q, k) == ("image", "text-") for k in kinds] for q in asking])
        logits = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5 + bias * flipped.double()
        if attn_mask is not None:
            logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
        weights = logits.masked_fill(~seen, -torch.inf).softmax(-1) * torch.where(
            flipped, -scale, torch.ones(1).double()
        )
        return (weights @ value.double()).to(value.dtype)

    hooks = [site.register_forward_pre_hook(lambda *_: inside.append(True)) for site in sites]
    hooks += [site.register_forward_hook(lambda *_: inside.clear()) for site in sites]
    F.scaled_dot_product_attention = attend
    try:
        yield taken
    finally:
        F.scaled_dot_product_attention = plain
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

    def encode(self, text):
        return self(text).input_ids[0].tolist()

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


def _sana_parts():
    vae = seeded(lambda: AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
        encoder_block_out_channels=(4, 4, 8), decoder_block_out_channels=(4, 4, 8), encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1), encoder_qkv_multiscales=((), (), ()), decoder_qkv_multiscales=((), (), ()),
    ), seed=3)  # fmt: skip
    config = Gemma2Config(
        vocab_size=64, hidden_size=TEXT, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=128,
    )  # fmt: skip
    return {"tokenizer": Tokenizer(16), "text_encoder": seeded(lambda: Gemma2Model(config), seed=2), "vae": vae}


def sana_pipeline():
    return SanaPipeline(
        transformer=seeded(sana), scheduler=FlowMatchEulerDiscreteScheduler(), **_sana_parts()
    )  # fmt: skip


def sana_sprint_pipeline():
    return SanaSprintPipeline(transformer=seeded(sana_sprint), scheduler=SCMScheduler(), **_sana_parts())


def flux_pipeline():
    return FluxPipeline(
        transformer=seeded(flux), scheduler=FlowMatchEulerDiscreteScheduler(), vae=_vae(),
        text_encoder=_clip(CLIPTextModel), tokenizer=_clip_tokenizer(), text_encoder_2=_t5(), tokenizer_2=Tokenizer(16),
    )  # fmt: skip


def wan_pipeline(**denoisers):
    vae = seeded(lambda: AutoencoderKLWan(
        base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
    ), seed=3)  # fmt: skip
    config = UMT5Config(vocab_size=64, d_model=TEXT, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    return WanPipeline(
        tokenizer=Tokenizer(16), text_encoder=seeded(lambda: UMT5EncoderModel(config), seed=2), vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(), transformer=seeded(wan), **denoisers,
    )  # fmt: skip


def wan22_pipeline():
    """One denoiser for the first steps, another for the others."""
    return wan_pipeline(transformer_2=seeded(wan, seed=5), boundary_ratio=0.7)


def ltx_pipeline():
    return LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=None, text_encoder=_t5(), tokenizer=Tokenizer(16),
        transformer=seeded(ltx),
    )  # fmt: skip


def ready_made_pipeline(kind):
    """A pipeline without text encoders (large language models) and the arguments of a call of four steps."""
    parts = {"scheduler": FlowMatchEulerDiscreteScheduler(), "text_encoder": None, "tokenizer": None}
    if kind == "flux2":
        vae = AutoencoderKLFlux2(
            block_out_channels=(4,), layers_per_block=1, latent_channels=4, norm_num_groups=1,
            down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        )  # fmt: skip
        pipe, call = Flux2KleinPipeline(**parts, vae=vae, transformer=seeded(flux2)), {"guidance_scale": 1.0}
    else:
        pipe, call = QwenImagePipeline(**parts, vae=None, transformer=seeded(qwen)), {"true_cfg_scale": 1.0}
    size = 4 * 2 * pipe.vae_scale_factor
    pipe.set_progress_bar_config(disable=True)
    return pipe, call | {"num_inference_steps": 4, "height": size, "width": size, "output_type": "latent"}


PIPELINES = {"sd15": sd15_pipeline, "sdxl": sdxl_pipeline, "pixart": pixart_pipeline, "sd3": sd3_pipeline,
             "sd35": lambda: sd3_pipeline(sd35), "sana": sana_pipeline, "sana sprint": sana_sprint_pipeline,
             "flux": flux_pipeline, "ltx": ltx_pipeline, "wan": wan_pipeline, "wan 2.2": wan22_pipeline}  # fmt: skip


def pipeline(kind):
    pipe = PIPELINES[kind]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompt="a small red cat", **options):
    """Latents of four steps, the same noise each time."""
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
        return pipe(**call).frames
    return pipe(**call).images


def denoiser(pipe):
    return pipe.transformer if hasattr(pipe, "transformer") else pipe.unet


def denoisers(pipe):
    second = getattr(pipe, "transformer_2", None)
    return [denoiser(pipe)] + ([] if second is None else [second])


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


def draw_with_oracle(pipe, images, negative, scale, tau, alpha, rule="nag", steps=range(99), **options):
    """A pipeline's latents if its denoiser ran the prompt's rows in a doubled batch, guided by hooks (rule "vsf": with
    packed text, under `vsf_oracle`, of which tau is the bias).

    images: rows of the conditional half. negative: as `denoiser_texts` gives it.
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
            with vsf_oracle(guided_layers(model), *lengths, scale, bias=tau, text_first=flux) as taken:
                conditional = plain(**one)[0]
            assert len(taken) == len(guided_layers(model))
            return (torch.cat([out[: rows - images], conditional]),)
        pair["encoder_hidden_states"] = torch.cat([F.pad(x, (0, 0, 0, length - x.shape[1])) for x in texts])
        if "encoder_attention_mask" in inspect.signature(type(model).forward).parameters:
            pair["encoder_attention_mask"] = torch.cat([F.pad(m, (0, length - m.shape[1])) for m in masks])
        with doubled_batch_oracle(guided_layers(model), length, scale, tau, alpha, rule) as clipped:
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
