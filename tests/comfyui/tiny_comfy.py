# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""A tiny model with random weights for each denoiser of ComfyUI's core 0.3.75 that the node guides."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch


@dataclass(frozen=True)
class Site:
    """Where attention has ended: the input of a layer.

    layer: a pattern for its name.  tokens: "all" where it is image alone, "last" or "first" where the image's tokens are.
    width: of the channels that attention has written; None for all.
    beside: what else is in the input and is not guided, given the module above and its inputs.
    """

    layer: str
    tokens: str = "all"
    width: int | None = None
    beside: Callable[..., Any] | None = None


@dataclass(frozen=True)
class TinyModel:
    """config: the name in `comfy.supported_models`. sites: in any order. image: tokens of the image, where they are needed.
    text: what a conditioning with n tokens is besides the embeddings. common: what all conditionings have.
    beside_prompt: makes a model that runs with n tokens of the negative place the image as beside the n of the prompt."""

    config: str
    unet: dict[str, Any]
    noise: tuple[int, ...]
    sites: tuple[Site, ...]
    width: int = 32
    image: int = 16
    text: Callable[[int], dict[str, Any]] = lambda n: {}
    common: Callable[[], dict[str, Any]] = dict
    beside_prompt: Callable[[Any, int, int], None] = lambda model, positive, negative: None

    def model(self):
        """A BaseModel with weights of a fixed seed."""
        torch.manual_seed(1)
        supported = importlib.import_module("comfy.supported_models")
        config = getattr(supported, self.config)(dict(self.unet))
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model(_Weights(), "", device="cpu")
        for name, x in model.named_parameters():
            if name.startswith("diffusion_model."):
                wide = torch.randn(x.shape) * (0.5 if x.ndim == 1 else 1.3 * (x.shape[0] / max(x.numel(), 1)) ** 0.5)
                x.data = 1 + 0.1 * wide if name.endswith(("norm.weight", "scale")) else wide
                x.requires_grad = False
        for name, x in model.diffusion_model.named_buffers():
            if "pos_embed" in name:
                x.copy_(torch.randn(x.shape) * 0.3)
        return model.eval()

    def patcher(self, model=None):
        patcher = importlib.import_module("comfy.model_patcher")
        return patcher.ModelPatcher(self.model() if model is None else model, torch.device("cpu"), torch.device("cpu"))

    def conditioning(self, seed, length, common=True):
        """As a text encode node gives it: [[embeddings, dictionary]]."""
        generator = torch.Generator().manual_seed(seed)
        state = torch.get_rng_state()
        torch.manual_seed(seed + 1000)
        described = self.text(length)
        torch.manual_seed(7)
        described |= self.common()
        torch.set_rng_state(state)
        return [[torch.randn(1, length, self.width, generator=generator), described]]

    def start(self, rows=1):
        return torch.randn(rows, *self.noise[1:], generator=torch.Generator().manual_seed(5))


class _Weights(dict):
    """Stands for a state dict in which whatever is asked for is not there."""


def _image_features(site, inputs):
    """Wan's attention to the image beside that to the text, in float64: the model adds both."""
    layer = site
    x, context = inputs
    q = layer.norm_q(layer.q(x))
    image = context[:, : layer.image_tokens]
    k, v = layer.norm_k_img(layer.k_img(image)), layer.v_img(image)
    q, k, v = (y.double().unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for y in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2).float()


def mask(n):
    seen = torch.ones(1, n, dtype=torch.long)
    seen[:, n - 2 :] = 0
    return seen


def image_beside(multiple):
    """Lumina 2 and Z-Image place the image behind the text, whose length is a multiple of a number of tokens."""

    def change(model, positive, negative):
        places = [-(-n // multiple) * multiple + 1 for n in (positive, negative)]

        def move(embedder, inputs):
            ids = inputs[0].clone()
            ids[:, places[1] - 1 :, 0][ids[:, places[1] - 1 :, 0] == places[1]] = places[0]
            return (ids,)

        model.diffusion_model.rope_embedder.register_forward_pre_hook(move)

    return change


UNET = dict(
    image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[1, 1], channel_mult=[1, 2],
    transformer_depth=[1, 1], transformer_depth_middle=1, transformer_depth_output=[1, 1, 1, 1], context_dim=32,
    use_spatial_transformer=True, legacy=False, use_temporal_attention=False, num_head_channels=16, num_heads=-1,
)  # fmt: skip
FLUX = dict(
    image_model="flux", in_channels=16, out_channels=16, vec_in_dim=24, context_in_dim=32, hidden_size=32, mlp_ratio=2.0,
    num_heads=2, depth=2, depth_single_blocks=2, axes_dim=[4, 6, 6], theta=10000, patch_size=2, qkv_bias=True,
    guidance_embed=True,
)  # fmt: skip
FLUX_SITES = (Site(r"double_blocks\.\d+\.img_attn\.proj"), Site(r"single_blocks\.\d+\.linear2", "last", 32))
HUNYUAN_SITES = (FLUX_SITES[0], Site(r"single_blocks\.\d+\.linear2", "first", 32))
NEXT_DIT = dict(
    image_model="lumina2", patch_size=2, in_channels=16, dim=32, cap_feat_dim=32, n_layers=2, n_refiner_layers=1, qk_norm=True,
    n_heads=2, n_kv_heads=1, axes_dims=[4, 6, 6], axes_lens=[300, 512, 512], multiple_of=32, ffn_dim_multiplier=1.0,
)  # fmt: skip
WAN = dict(
    image_model="wan2.1", model_type="t2v", dim=32, ffn_dim=64, freq_dim=16, text_dim=32, num_heads=2, num_layers=2,
    in_dim=16, out_dim=16,
)  # fmt: skip
WAN_SITE = Site(r"(vace_)?blocks\.\d+\.cross_attn\.o")
HUNYUAN = dict(
    image_model="hunyuan_video", in_channels=16, out_channels=16, vec_in_dim=24, context_in_dim=32, hidden_size=32,
    mlp_ratio=2.0, num_heads=2, depth=2, depth_single_blocks=1, axes_dim=[4, 6, 6], theta=256, patch_size=[1, 2, 2],
    qkv_bias=True, guidance_embed=False, byt5=False, meanflow=False, use_cond_type_embedding=False, vision_in_dim=None,
)  # fmt: skip


def pooled(width):
    return lambda: {"pooled_output": torch.randn(1, width)}


VIDEO = (1, 16, 2, 8, 8)
MODELS = {
    "sd15": TinyModel("SD15", UNET, (1, 4, 8, 8), (Site(r".*attn2\.to_out"),)),
    "sdxl": TinyModel("SDXL", UNET | {"use_linear_in_transformer": True, "model_channels": 64, "num_classes": "sequential", "adm_in_channels": 24 + 6 * 256},
                      (1, 4, 8, 8), (Site(r".*attn2\.to_out"),), common=pooled(24)),
    "sd3": TinyModel("SD3", dict(input_size=None, patch_size=2, in_channels=16, depth=2, adm_in_channels=24, pos_embed_max_size=8,
                                 num_patches=64, qk_norm="rms", x_block_self_attn_layers=[0], out_channels=16, pos_embed_scaling_factor=None,
                                 context_embedder_config={"target": "torch.nn.Linear",
                                                          "params": {"in_features": 32, "out_features": 128}}),
                     (1, 16, 8, 8), (Site(r"joint_blocks\.\d+\.x_block\.attn\.proj"),), common=pooled(24)),
    "flux": TinyModel("Flux", FLUX, (1, 16, 8, 8), FLUX_SITES, common=pooled(24)),
    "flux2": TinyModel("Flux2", FLUX | {"image_model": "flux2", "axes_dim": [4, 4, 4, 4], "vec_in_dim": None, "global_modulation": True,
                                        "mlp_silu_act": True, "qkv_bias": False, "ops_bias": False, "in_channels": 128,
                                        "out_channels": 128, "patch_size": 1, "theta": 2000},
                       (1, 128, 4, 4), FLUX_SITES, common=pooled(24)),
    "chroma": TinyModel("Chroma", {k: v for k, v in FLUX.items() if k not in ("vec_in_dim", "guidance_embed")}
                        | {"image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 32,
                           "hidden_dim": 16, "n_layers": 1},
                        (1, 16, 8, 8), FLUX_SITES, common=pooled(24)),
    "qwen": TinyModel("QwenImage", dict(image_model="qwen_image", in_channels=64, num_layers=2, attention_head_dim=16,
                                        num_attention_heads=2, joint_attention_dim=32, axes_dims_rope=[4, 6, 6]),
                      (1, 16, 1, 8, 8), (Site(r".*attn\.to_out\.0"),)),
    "lumina2": TinyModel("Lumina2", NEXT_DIT, (1, 16, 8, 8), (Site(r"layers\.\d+\.attention\.out", "last"),),
                         beside_prompt=image_beside(1)),
    "z_image": TinyModel("ZImage", NEXT_DIT | {"z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
                                               "dim": 256, "n_heads": 4, "n_kv_heads": 4, "axes_dims": [16, 24, 24]},
                         (1, 16, 8, 8), (Site(r"layers\.\d+\.attention\.out", "last"),), image=32,
                         beside_prompt=image_beside(32)),
    "wan": TinyModel("WAN21_T2V", WAN, VIDEO, (WAN_SITE,)),
    "wan_vace": TinyModel("WAN21_Vace", WAN | {"model_type": "vace", "vace_layers": 1, "vace_in_dim": 96}, VIDEO, (WAN_SITE,)),
    "wan_i2v": TinyModel("WAN21_I2V", WAN | {"model_type": "i2v", "in_dim": 36}, VIDEO,
                         (Site(WAN_SITE.layer, beside=_image_features),),
                         common=lambda: {"clip_vision_output": SimpleNamespace(penultimate_hidden_states=torch.randn(1, 9, 1280))}),
    "ltxv": TinyModel("LTXV", dict(image_model="ltxv", in_channels=16, cross_attention_dim=32, attention_head_dim=16,
                                   num_attention_heads=2, caption_channels=32, num_layers=2),
                      VIDEO, (Site(r".*attn2\.to_out"),), text=lambda n: {"attention_mask": mask(n)}),
    "hunyuan_video": TinyModel("HunyuanVideo", HUNYUAN, VIDEO, HUNYUAN_SITES, image=32, common=pooled(24)),
    "hunyuan_video_masked": TinyModel("HunyuanVideo", HUNYUAN, VIDEO, HUNYUAN_SITES, image=32, common=pooled(24),
                                      text=lambda n: {"attention_mask": mask(n)}),
    "hunyuan_image": TinyModel("HunyuanImage21", HUNYUAN | {"in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "byt5": True,
                                                            "vec_in_dim": None, "axes_dim": [8, 8]},
                               (1, 64, 4, 4), HUNYUAN_SITES, image=16, text=lambda n: {"conditioning_byt5small": torch.randn(1, n // 2, 1472)}),
    "hunyuan_video15": TinyModel("HunyuanVideo15", HUNYUAN | {"in_channels": 32 + 33, "out_channels": 32, "patch_size": [1, 1, 1],
                                                              "byt5": True, "vec_in_dim": None, "use_cond_type_embedding": True,
                                                              "vision_in_dim": 20},
                                 (1, 32, 2, 4, 4), HUNYUAN_SITES, image=32,
                                 text=lambda n: {"conditioning_byt5small": torch.randn(1, n // 2, 1472)},
                                 common=lambda: {"pooled_output": torch.randn(1, 24),
                                                 "clip_vision_output": SimpleNamespace(last_hidden_state=torch.randn(1, 6, 20))}),
    "hidream": TinyModel("HiDream", dict(image_model="hidream", attention_head_dim=16, axes_dims_rope=[4, 6, 6], caption_channels=[32, 20],
                                         in_channels=16, llama_layers=[0, 1, 1], max_resolution=[128, 128], num_attention_heads=2,
                                         num_layers=2, num_single_layers=1, out_channels=16, patch_size=2, text_emb_dim=24,
                                         num_routed_experts=2, num_activated_experts=1),
                         (1, 16, 8, 8), (Site(r"double_stream_blocks.*attn1\.to_out"), Site(r"single_stream_blocks.*attn1\.to_out", "first")),
                         text=lambda n: {"conditioning_llama3": torch.randn(1, 2, n + 3, 20)}, common=pooled(24)),
    "cosmos": TinyModel("CosmosT2V", dict(image_model="cosmos", max_img_h=240, max_img_w=240, max_frames=128, in_channels=16,
                                          out_channels=16, patch_spatial=2, patch_temporal=1, model_channels=48, block_config="FA-CA-MLP",
                                          num_blocks=2, num_heads=2, concat_padding_mask=True, pos_emb_cls="rope3d",
                                          block_x_format="THWBD", affline_emb_norm=True, use_adaln_lora=True, adaln_lora_dim=8,
                                          crossattn_emb_channels=32, extra_per_block_abs_pos_emb=True,
                                          extra_per_block_abs_pos_emb_type="learnable"),
                        VIDEO, (Site(r".*blocks\.1\.block\.attn\.to_out"),)),
    "cosmos_predict2": TinyModel("CosmosT2IPredict2", dict(image_model="cosmos_predict2", max_img_h=240, max_img_w=240, max_frames=128,
                                                           in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1,
                                                           model_channels=48, num_blocks=2, num_heads=2, concat_padding_mask=True,
                                                           pos_emb_cls="rope3d", use_adaln_lora=True, adaln_lora_dim=8,
                                                           crossattn_emb_channels=32, extra_per_block_abs_pos_emb=False,
                                                           rope_enable_fps_modulation=False),
                                 VIDEO, (Site(r".*cross_attn\.output_proj"),)),
    "aura_flow": TinyModel("AuraFlow", dict(cond_seq_dim=32, dim=64, n_heads=2, n_double_layers=1, n_layers=2, max_seq=64,
                                            in_channels=4, out_channels=4, patch_size=2),
                           (1, 4, 8, 8), (Site(r".*attn\.w2o"), Site(r"single_layers.*attn\.w1o", "last"))),
}  # fmt: skip
