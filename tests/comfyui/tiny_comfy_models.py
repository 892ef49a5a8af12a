# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The tiny models by name, one or more for each family of ComfyUI's core 0.3.75."""

import dataclasses
from types import SimpleNamespace

import torch
from tiny_comfy import (
    Site,
    TinyModel,
    clip_vision,
    config,
    image_beside,
    image_features,
    mask,
    omnigen2_image_beside,
    pooled,
    quoted,
    seconds,
)  # fmt: skip

UNET = config(
    image_size=32, in_channels=4, out_channels=4, model_channels=32, num_res_blocks=[1, 1], channel_mult=[1, 2],
    transformer_depth=[1, 1], transformer_depth_middle=1, transformer_depth_output=[1, 1, 1, 1], context_dim=32,
    use_spatial_transformer=True, legacy=False, use_temporal_attention=False, num_head_channels=16, num_heads=-1,
)  # fmt: skip
FLUX = config(
    image_model="flux", in_channels=16, out_channels=16, vec_in_dim=24, context_in_dim=32, hidden_size=32, mlp_ratio=2.0,
    num_heads=2, depth=2, depth_single_blocks=2, axes_dim=[4, 6, 6], theta=10000, patch_size=2, qkv_bias=True,
    guidance_embed=True,
)  # fmt: skip
FLUX_SITES = (Site(r"double_blocks\.\d+\.img_attn\.proj"), Site(r"single_blocks\.\d+\.linear2", "last", 32))
HUNYUAN_SITES = (FLUX_SITES[0], Site(r"single_blocks\.\d+\.linear2", "newer last", 32))
NEXT_DIT = config(
    image_model="lumina2", patch_size=2, in_channels=16, dim=32, cap_feat_dim=32, n_layers=2, n_refiner_layers=1, qk_norm=True,
    n_heads=2, n_kv_heads=1, axes_dims=[4, 6, 6], axes_lens=[300, 512, 512], multiple_of=32, ffn_dim_multiplier=1.0,
)  # fmt: skip
WAN = config(
    image_model="wan2.1", model_type="t2v", dim=32, ffn_dim=64, freq_dim=16, text_dim=32, num_heads=2, num_layers=2,
    in_dim=16, out_dim=16,
)  # fmt: skip
WAN_SITE = Site(r"(vace_)?blocks\.\d+\.cross_attn\.o")
HUNYUAN = config(
    image_model="hunyuan_video", in_channels=16, out_channels=16, vec_in_dim=24, context_in_dim=32, hidden_size=32,
    mlp_ratio=2.0, num_heads=2, depth=2, depth_single_blocks=1, axes_dim=[4, 6, 6], theta=256, patch_size=[1, 2, 2],
    qkv_bias=True, guidance_embed=False, byt5=False, meanflow=False, use_cond_type_embedding=False, vision_in_dim=None,
)  # fmt: skip


QWEN = config(
    image_model="qwen_image", in_channels=64, num_layers=2, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
    axes_dims_rope=[4, 6, 6],
)  # fmt: skip
CHROMA = {k: v for k, v in FLUX.items() if k not in ("vec_in_dim", "guidance_embed")}
CHROMA |= config(
    image_model="chroma", in_channels=64, out_channels=64, in_dim=64, out_dim=32, hidden_dim=16, n_layers=1
)
VIDEO = (1, 16, 2, 8, 8)
MODELS = {
    "sd15": TinyModel("SD15", UNET, (1, 4, 8, 8), (Site(r".*attn2\.to_out"),)),
    "sdxl": TinyModel(
        "SDXL",
        UNET
        | {
            "use_linear_in_transformer": True,
            "model_channels": 64,
            "num_classes": "sequential",
            "adm_in_channels": 24 + 6 * 256,
        },
        (1, 4, 8, 8),
        (Site(r".*attn2\.to_out"),),
        common=pooled(24),
    ),
    "sd3": TinyModel(
        "SD3",
        config(
            input_size=None,
            patch_size=2,
            in_channels=16,
            depth=2,
            adm_in_channels=24,
            pos_embed_max_size=8,
            num_patches=64,
            qk_norm="rms",
            x_block_self_attn_layers=[0],
            out_channels=16,
            pos_embed_scaling_factor=None,
            context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}},
        ),
        (1, 16, 8, 8),
        (Site(r"joint_blocks\.\d+\.x_block\.attn\.proj"),),
        common=pooled(24),
    ),
    "flux": TinyModel("Flux", FLUX, (1, 16, 8, 8), FLUX_SITES, common=pooled(24)),
    "flux2": TinyModel(
        "Flux2",
        FLUX
        | {
            "image_model": "flux2",
            "axes_dim": [4, 4, 4, 4],
            "vec_in_dim": None,
            "global_modulation": True,
            "mlp_silu_act": True,
            "qkv_bias": False,
            "ops_bias": False,
            "in_channels": 128,
            "out_channels": 128,
            "patch_size": 1,
            "theta": 2000,
        },
        (1, 128, 4, 4),
        FLUX_SITES,
        newer=config(txt_ids_dims=[3]),
        common=pooled(24),
    ),
    "chroma": TinyModel("Chroma", CHROMA, (1, 16, 8, 8), FLUX_SITES, common=pooled(24)),
    "qwen": TinyModel("QwenImage", QWEN, (1, 16, 1, 8, 8), (Site(r".*attn\.to_out\.0"),)),
    "lumina2": TinyModel(
        "Lumina2",
        NEXT_DIT,
        (1, 16, 8, 8),
        (Site(r"layers\.\d+\.attention\.out", "last"),),
        beside_prompt=image_beside(1),
    ),
    "z_image": TinyModel(
        "ZImage",
        NEXT_DIT
        | {
            "z_image_modulation": True,
            "time_scale": 1000.0,
            "pad_tokens_multiple": 32,
            "dim": 256,
            "n_heads": 4,
            "n_kv_heads": 4,
            "axes_dims": [16, 24, 24],
        },
        (1, 16, 8, 8),
        (Site(r"layers\.\d+\.attention\.out", "last"),),
        image=32,
        beside_prompt=image_beside(32),
    ),
    "wan": TinyModel("WAN21_T2V", WAN, VIDEO, (WAN_SITE,)),
    "wan_vace": TinyModel(
        "WAN21_Vace", WAN | {"model_type": "vace", "vace_layers": 1, "vace_in_dim": 96}, VIDEO, (WAN_SITE,)
    ),
    "wan_i2v": TinyModel(
        "WAN21_I2V",
        WAN | {"model_type": "i2v", "in_dim": 36},
        VIDEO,
        (Site(WAN_SITE.layer, beside=image_features),),
        common=clip_vision(1280),
    ),
    "ltxv": TinyModel(
        "LTXV",
        config(
            image_model="ltxv",
            in_channels=16,
            cross_attention_dim=32,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=32,
            num_layers=2,
        ),
        VIDEO,
        (Site(r".*attn2\.to_out"),),
        text=mask,
    ),
    "hunyuan_video": TinyModel("HunyuanVideo", HUNYUAN, VIDEO, HUNYUAN_SITES, image=32, common=pooled(24)),
    "hunyuan_image": TinyModel(
        "HunyuanImage21",
        HUNYUAN
        | {
            "in_channels": 64,
            "out_channels": 64,
            "patch_size": [1, 1],
            "byt5": True,
            "vec_in_dim": None,
            "axes_dim": [8, 8],
        },
        (1, 64, 4, 4),
        HUNYUAN_SITES,
        image=16,
        text=quoted,
    ),
    "hunyuan_video15": TinyModel(
        "HunyuanVideo15",
        HUNYUAN
        | {
            "in_channels": 32 + 33,
            "out_channels": 32,
            "patch_size": [1, 1, 1],
            "byt5": True,
            "vec_in_dim": None,
            "use_cond_type_embedding": True,
            "vision_in_dim": 20,
        },
        (1, 32, 2, 4, 4),
        HUNYUAN_SITES,
        image=32,
        text=quoted,
        common=lambda: {
            "pooled_output": torch.randn(1, 24),
            "clip_vision_output": SimpleNamespace(last_hidden_state=torch.randn(1, 6, 20)),
        },
    ),
    "hidream": TinyModel(
        "HiDream",
        config(
            image_model="hidream",
            attention_head_dim=16,
            axes_dims_rope=[4, 6, 6],
            caption_channels=[32, 20],
            in_channels=16,
            llama_layers=[0, 1, 1],
            max_resolution=[128, 128],
            num_attention_heads=2,
            num_layers=2,
            num_single_layers=1,
            out_channels=16,
            patch_size=2,
            text_emb_dim=24,
            num_routed_experts=2,
            num_activated_experts=1,
        ),
        (1, 16, 8, 8),
        (Site(r"double_stream_blocks.*attn1\.to_out"), Site(r"single_stream_blocks.*attn1\.to_out", "first")),
        text=lambda n: {"conditioning_llama3": torch.randn(1, 2, n + 3, 20)},
        common=pooled(24),
    ),
    "cosmos": TinyModel(
        "CosmosT2V",
        config(
            image_model="cosmos",
            max_img_h=240,
            max_img_w=240,
            max_frames=128,
            in_channels=16,
            out_channels=16,
            patch_spatial=2,
            patch_temporal=1,
            model_channels=48,
            block_config="FA-CA-MLP",
            num_blocks=2,
            num_heads=2,
            concat_padding_mask=True,
            pos_emb_cls="rope3d",
            block_x_format="THWBD",
            affline_emb_norm=True,
            use_adaln_lora=True,
            adaln_lora_dim=8,
            crossattn_emb_channels=32,
            extra_per_block_abs_pos_emb=True,
            extra_per_block_abs_pos_emb_type="learnable",
        ),
        VIDEO,
        (Site(r".*blocks\.1\.block\.attn\.to_out"),),
    ),
    "cosmos_predict2": TinyModel(
        "CosmosT2IPredict2",
        config(
            image_model="cosmos_predict2",
            max_img_h=240,
            max_img_w=240,
            max_frames=128,
            in_channels=16,
            out_channels=16,
            patch_spatial=2,
            patch_temporal=1,
            model_channels=48,
            num_blocks=2,
            num_heads=2,
            concat_padding_mask=True,
            pos_emb_cls="rope3d",
            use_adaln_lora=True,
            adaln_lora_dim=8,
            crossattn_emb_channels=32,
            extra_per_block_abs_pos_emb=False,
            rope_enable_fps_modulation=False,
        ),
        VIDEO,
        (Site(r".*cross_attn\.output_proj"),),
    ),
    "aura_flow": TinyModel(
        "AuraFlow",
        config(
            cond_seq_dim=32,
            dim=64,
            n_heads=2,
            n_double_layers=1,
            n_layers=2,
            max_seq=64,
            in_channels=4,
            out_channels=4,
            patch_size=2,
        ),
        (1, 4, 8, 8),
        (Site(r".*attn\.w2o"), Site(r"single_layers.*attn\.w1o", "last")),
    ),
    "flux_kontext": TinyModel(
        "Flux",
        FLUX,
        (1, 16, 8, 8),
        FLUX_SITES,
        image=32,
        common=lambda: {"pooled_output": torch.randn(1, 24), "reference_latents": [torch.randn(1, 16, 8, 8)]},
    ),
    "qwen_edit": TinyModel(
        "QwenImage",
        QWEN,
        (1, 16, 1, 8, 8),
        (Site(r".*attn\.to_out\.0"),),
        image=32,
        common=lambda: {"reference_latents": [torch.randn(1, 16, 1, 8, 8)]},
    ),
    "chroma_radiance": TinyModel(
        "ChromaRadiance",
        CHROMA
        | {
            "image_model": "chroma_radiance",
            "in_channels": 3,
            "out_channels": 3,
            "patch_size": 4,
            "nerf_hidden_size": 8,
            "nerf_mlp_ratio": 1,
            "nerf_depth": 1,
            "nerf_max_freqs": 4,
            "nerf_tile_size": 0,
            "nerf_final_head_type": "linear",
            "nerf_embedder_dtype": None,
        },
        (1, 3, 16, 16),
        FLUX_SITES,
        common=pooled(24),
    ),
    "omnigen2": TinyModel(
        "Omnigen2",
        config(
            image_model="omnigen2",
            patch_size=2,
            in_channels=16,
            hidden_size=48,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=[8, 8, 8],
            axes_lens=[300, 512, 512],
            text_feat_dim=32,
            timestep_scale=1000.0,
        ),
        (1, 16, 8, 8),
        (Site(r"layers\.\d+\.attn\.to_out\.0", "last"),),
        image=32,
        text=lambda n: {"attention_mask": torch.ones(1, n, dtype=torch.long)},
        common=lambda: {"reference_latents": [torch.randn(1, 16, 8, 8)]},
        beside_prompt=omnigen2_image_beside,
    ),
    "wan_i2v_without_image": TinyModel(
        "WAN21_I2V", WAN | {"model_type": "i2v", "in_dim": 36}, VIDEO, (Site(WAN_SITE.layer, beside=image_features),)
    ),
    "wan_camera": TinyModel(
        "WAN21_Camera",
        WAN | {"model_type": "camera", "in_dim": 32},
        VIDEO,
        (Site(WAN_SITE.layer, beside=image_features),),
        common=clip_vision(1280),
    ),
    "wan_humo": TinyModel("WAN21_HuMo", WAN | {"model_type": "humo"}, VIDEO, (WAN_SITE,), without=("audio_proj",)),
    "wan_animate": TinyModel(
        "WAN22_Animate",
        WAN | {"model_type": "animate", "in_dim": 36},
        VIDEO,
        (Site(WAN_SITE.layer, beside=image_features),),
        common=clip_vision(1280),
        without=("motion_encoder", "face_encoder"),
    ),
    "wan_s2v": TinyModel(
        "WAN22_S2V", WAN | {"model_type": "s2v", "audio_inject_layers": [0], "audio_dim": 16}, VIDEO, (WAN_SITE,)
    ),
    "stable_audio": TinyModel(
        "StableAudio",
        config(
            audio_model="dit1.0",
            io_channels=64,
            embed_dim=64,
            depth=2,
            num_heads=2,
            project_cond_tokens=True,
            global_cond_dim=1536,
        ),
        (1, 64, 24),
        (Site(r".*cross_attn\.to_out"),),
        width=768,
        weights=seconds,
    ),
}
MODELS["hunyuan_video_masked"] = dataclasses.replace(MODELS["hunyuan_video"], text=mask)
