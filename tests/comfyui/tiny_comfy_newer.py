# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The tiny models of families that came after ComfyUI's core 0.3.75. They are tested where a core that has them is given."""

import dataclasses

import torch
from tiny_comfy import Site, TinyModel, clip_vision, config, image_features, pooled
from tiny_comfy_models import MODELS, VIDEO, WAN, WAN_SITE

LTX2 = config(
    image_model="ltxav", in_channels=16, cross_attention_dim=32, attention_head_dim=16, num_attention_heads=2,
    caption_channels=32, audio_cross_attention_dim=32, audio_attention_head_dim=16, audio_num_attention_heads=2, num_layers=2,
    connector_attention_head_dim=16, connector_num_attention_heads=2, connector_num_layers=1,
)  # fmt: skip


def ltx2_gate(attention, inputs):
    """One for each head."""
    return 2 * torch.sigmoid(attention.to_gate_logits(inputs[0])).repeat_interleave(attention.dim_head, dim=-1)


def krea2_gate(attention, inputs):
    return torch.sigmoid(attention.gate(inputs[0]))


LTX23 = config(
    caption_proj_before_connector=True, caption_projection_first_linear=False, cross_attention_adaln=True,
    apply_gated_attention=True, caption_channels=64,
)  # fmt: skip
ANIMA = config(image_model="anima", crossattn_emb_channels=1024)
KREA2 = config(
    image_model="krea2",
    features=64,
    tdim=16,
    txtdim=32,
    heads=2,
    kvheads=1,
    layers=2,
    txtlayers=2,
    txtheads=2,
    txtkvheads=2,
)
SOUND = (1, 8, 6, 16)
NEWER_MODELS = {
    "ltx2": TinyModel("LTXAV", LTX2, VIDEO, (Site(r".*attn2\.to_out"),), sound=SOUND, width=64),
    "ltx2_without_sound": TinyModel("LTXAV", LTX2, VIDEO, (Site(r".*\.attn2\.to_out"),), width=64),
    "ltx2.3": TinyModel(
        "LTXAV", LTX2 | LTX23, VIDEO, (Site(r".*attn2\.to_out", gate=ltx2_gate),), sound=SOUND, width=64
    ),
    "anima": TinyModel(
        "Anima", MODELS["cosmos_predict2"].unet | ANIMA, VIDEO, (Site(r".*cross_attn\.output_proj"),), width=1024
    ),
    "krea2": TinyModel(
        "Krea2", KREA2, (1, 16, 1, 8, 8), (Site(r"blocks\.\d+\.attn\.wo", "last", gate=krea2_gate),), width=64
    ),
    "krea2_edit": TinyModel(
        "Krea2",
        KREA2,
        (1, 16, 1, 8, 8),
        (Site(r"blocks\.\d+\.attn\.wo", "last", gate=krea2_gate),),
        width=64,
        image=32,
        common=lambda: {
            "reference_latents": [torch.randn(1, 16, 1, 8, 8)],
            "reference_latents_method": "index_timestep_zero",
        },
    ),
    "wan_scail": TinyModel(
        "WAN21_SCAIL",
        WAN | {"model_type": "scail", "in_dim": 20},
        VIDEO,
        (Site(WAN_SITE.layer, beside=image_features),),
        common=lambda: clip_vision(1280)() | {"pose_video_latent": torch.randn(1, 16, 2, 8, 8)},
    ),
    "wan_scail2": TinyModel(
        "WAN21_SCAIL2",
        WAN | {"model_type": "scail2", "in_dim": 20},
        VIDEO,
        (Site(WAN_SITE.layer, beside=image_features),),
        common=clip_vision(1280),
    ),
    "z_image_pixel": dataclasses.replace(
        MODELS["z_image"],
        config="ZImagePixelSpace",
        unet=MODELS["z_image"].unet | {"image_model": "zimage_pixel", "in_channels": 3, "patch_size": 4},
        noise=(1, 3, 16, 16),
    ),
    "joy_image": TinyModel(
        "JoyImage",
        config(
            image_model="joyimage",
            in_channels=16,
            hidden_size=256,
            num_attention_heads=2,
            text_dim=32,
            num_layers=2,
            patch_size=[1, 2, 2],
        ),
        (1, 16, 1, 8, 8),
        (Site(r".*attn\.img_attn_proj"),),
        image=32,
        common=lambda: {"reference_latents": [torch.randn(1, 16, 1, 8, 8)]},
    ),
    "boogu": dataclasses.replace(
        MODELS["omnigen2"],
        config="Boogu",
        unet={k: x for k, x in MODELS["omnigen2"].unet.items() if k != "text_feat_dim"}
        | {"image_model": "boogu", "num_double_stream_layers": 1, "num_layers": 1, "instruction_feat_dim": 32},
        sites=(
            Site(r"double_stream_layers\.\d+\.img_instruct_attn\.processor\.img_out"),
            Site(r"single_stream_layers\.\d+\.attn\.to_out\.0", "last"),
        ),
    ),
    "kandinsky5": TinyModel(
        "Kandinsky5",
        config(
            image_model="kandinsky5",
            in_visual_dim=16,
            out_visual_dim=16,
            in_text_dim=32,
            in_text_dim2=24,
            time_dim=16,
            model_dim=32,
            ff_dim=64,
            visual_embed_dim=132,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(4, 6, 6),
        ),
        VIDEO,
        (Site(r".*cross_attention\.out_layer"),),
        common=pooled(24),
    ),
}
