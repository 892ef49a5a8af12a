# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""More tiny random models as in `tiny_families`: of video pipelines."""

import functools
import threading

import diffusers
import torch
from tiny_family import SEEN, UNSEEN, WHOLE, Tiny, masked_text, times, videos
from tiny_models import POOLED, TEXT, noise


def unet_motion(**config):
    config = {"num_attention_heads": 4, "cross_attention_dim": TEXT, **config}
    return diffusers.UNetMotionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, motion_num_attention_heads=2,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), **config,
    )  # fmt: skip


def unet_motion_xl(**config):
    return unet_motion(
        transformer_layers_per_block=(2, 1), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=POOLED + 6 * 8, **config,
    )  # fmt: skip


def _frames(rows, dtype):
    return {"sample": noise(rows, 4, 2, 8, 8, seed=3, dtype=dtype), "timestep": times(rows)}


def _frames_xl(rows, dtype):
    added = {"text_embeds": noise(rows, POOLED, seed=4, dtype=dtype), "time_ids": noise(rows, 6, seed=5, dtype=dtype)}
    return _frames(rows, dtype) | {"added_cond_kwargs": added}


def _text_of_each_frame(x, mask):
    return {"encoder_hidden_states": torch.stack([x, x.flip(-1)], dim=1).flatten(0, 1)}


def wan_like(name, **config):
    config = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": TEXT,
              "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32, **config}  # fmt: skip
    config = {name: x for name, x in config.items() if x is not None}
    return lambda: getattr(diffusers, name)(**config)


def attention_to_first_frame(stack, site):
    caught = threading.local()

    def keep(layer, inputs, out, name):
        setattr(caught, name, out)

    for name in ("norm_q", "norm_added_k", "add_v_proj"):
        layer = getattr(site, name)
        stack.callback(layer.register_forward_hook(functools.partial(keep, name=name)).remove)

    def attention():
        query, key, value = (
            x.unflatten(-1, (site.heads, -1)).transpose(1, 2)
            for x in (caught.norm_q, caught.norm_added_k, caught.add_v_proj)
        )
        weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        return (weights @ value).transpose(1, 2).flatten(2)

    return attention


def wan_animate():
    sizes = {"4": 8, "8": 8, "16": 8}
    return wan_like(
        "WanAnimateTransformer3DModel", in_channels=36, latent_channels=16, out_channels=16, image_dim=8, added_kv_proj_dim=24,
        motion_encoder_channel_sizes=sizes, motion_encoder_size=16, motion_style_dim=8, motion_dim=4, motion_encoder_dim=8,
        face_encoder_hidden_dim=8, face_encoder_num_heads=2, inject_face_latents_blocks=2,
    )()  # fmt: skip


def _wan_animate_arguments(rows, dtype):
    """The image's frame and two more, with a pose and a face, whose attention sees no text."""
    shapes = {"hidden_states": (36, 3, 4, 8), "pose_hidden_states": (16, 2, 4, 8), "face_pixel_values": (3, 5, 16, 16)}
    given = {name: noise(rows, *shape, seed=3 + i, dtype=dtype) for i, (name, shape) in enumerate(shapes.items())}
    return given | {"timestep": times(rows), "encoder_hidden_states_image": noise(rows, 6, 8, seed=6, dtype=dtype)}


def motif_video(**config):
    """With a block at its end that sees no text."""
    config = {"in_channels": 4, "out_channels": 4, "enable_text_cross_attention_dual": True,
              "enable_text_cross_attention_single": True, "image_embed_dim": 8, **config}  # fmt: skip
    model = diffusers.MotifVideoTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, num_layers=1, num_single_layers=2, num_decoder_layers=1, patch_size=2,
        text_embed_dim=TEXT, rope_axes_dim=(4, 4, 4), **config,
    )  # fmt: skip
    # Else it knows no float64.
    model.time_text_embed.time_proj.register_forward_hook(lambda layer, inputs, time: time.to(model.proj_out.weight))
    return model


def _motif_video_plain():
    return motif_video(enable_text_cross_attention_dual=False, enable_text_cross_attention_single=False)


def _from_an_image(rows, dtype):
    return videos(rows, dtype) | {"image_embeds": noise(rows, 6, 8, seed=4, dtype=dtype)}


COGVIDEOX = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
    "text_embed_dim": TEXT, "num_layers": 2, "sample_width": 4, "sample_height": 8, "sample_frames": 9, "patch_size": 2,
    "temporal_compression_ratio": 4, "max_text_seq_length": 6,
}  # fmt: skip


def cogvideox(rotary=True, **config):
    return diffusers.CogVideoXTransformer3DModel(**COGVIDEOX | {"use_rotary_positional_embeddings": rotary, **config})


def cogvideox_arguments(rotary):
    def arguments(rows, dtype):
        video = {"hidden_states": noise(rows, 3, 4, 8, 4, seed=3, dtype=dtype), "timestep": times(rows)}
        angles = noise(24, 8, seed=5).repeat_interleave(2, dim=1).float()
        return video | ({"image_rotary_emb": (angles.cos(), angles.sin())} if rotary else {})

    return arguments


def consisid(**config):
    config = COGVIDEOX | {"num_attention_heads": 3, "use_rotary_positional_embeddings": True, **config}
    face = {"id_dim": 8, "vit_dim": 8, "depth": 2, "dim_head": 4, "num_heads": 2, "num_id_token": 2, "num_querie": 3,
            "output_dim": 32, "ff_mult": 1, "num_scale": 2}  # fmt: skip
    return diffusers.ConsisIDTransformer3DModel(
        **config, is_train_face=True, cross_attn_dim_head=8, cross_attn_num_heads=2,
        **{f"LFE_{name}": x for name, x in face.items()},
    )  # fmt: skip


def face(rows, dtype):
    """Whose layers see no text."""
    layers = [noise(rows, 4, 8, seed=6 + i, dtype=dtype) for i in range(2)]
    return {"id_cond": noise(rows, 8, seed=8, dtype=dtype), "id_vit_hidden": layers}


def _consisid_arguments(rows, dtype):
    return cogvideox_arguments(True)(rows, dtype) | face(rows, dtype)


def easyanimate(**config):
    """Its last block has one stream."""
    return diffusers.EasyAnimateTransformer3DModel(**{
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "patch_size": 2, "num_layers": 2,
        "mmdit_layers": 1, "time_embed_dim": 8, "text_embed_dim": TEXT, "text_embed_dim_t5": TEXT, **config,
    })  # fmt: skip


def _two_texts(x, mask):
    return {"encoder_hidden_states": x, "encoder_hidden_states_t5": x[:, 1:].flip(-1)}


def sana_wm():
    return diffusers.SanaWMTransformer3DModel(
        in_channels=4, num_layers=2, hidden_size=48, num_attention_heads=2, softmax_every_n=2, linear_head_dim=24,
        caption_channels=TEXT, mlp_ratio=1.0,
    )  # fmt: skip


def _sana_wm_arguments(rows, dtype):
    """The first frame is given; cameras look straight on."""
    frames, height, width = 3, 2, 4
    camera = torch.cat([torch.eye(4).flatten(), torch.tensor([4.0, 4.0, 2.0, 1.0])]).to(dtype)
    return {"hidden_states": noise(rows, 4, frames, height, width, seed=3, dtype=dtype),
            "timestep": torch.tensor([0.0, 300.0, 300.0]).expand(rows, 1, -1),
            "camera_conditions": camera.expand(rows, frames, -1),
            "chunk_plucker": noise(rows, 48, frames, height, width, seed=4, dtype=dtype)}  # fmt: skip


def _sana_wm_text(x, mask):
    mask = torch.ones(x.shape[:2], dtype=torch.long) if mask is None else mask.long()
    return {"encoder_hidden_states": x[:, None], "mask": mask}


UNET3D = {
    "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 4, "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "cross_attention_dim": TEXT,
}  # fmt: skip


def unet3d():
    return diffusers.UNet3DConditionModel(**UNET3D)


def i2vgen_xl():
    return diffusers.I2VGenXLUNet(**UNET3D)


def _i2vgen_xl_arguments(rows, dtype):
    return _frames(rows, dtype) | {"fps": torch.full((rows,), 8), "image_latents": noise(rows, 4, 2, 8, 8, seed=4, dtype=dtype),
                                   "image_embeddings": noise(rows, 1, TEXT, seed=5, dtype=dtype)}  # fmt: skip


def kandinsky6():
    """It numbers the tokens of a text, and has no more numbers than the longer text needs."""
    model = diffusers.Kandinsky6Transformer3DModel(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=TEXT, in_text_dim2=8, time_dim=16, model_dim=32, ff_dim=32,
        num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 4, 8), in_audio_dim=4, out_audio_dim=4, model_dim_a=48,
        ca_rope=True, cross_gates=True, fix_modulation=True, visual_token_type_num_embeddings=2,
    )  # fmt: skip
    for rope in (model.video_text_rope_embeddings, model.audio_text_rope_embeddings):
        rope.angles = rope.angles[:7]
    return model


def _kandinsky6_arguments(rows, dtype):
    return {"hidden_states": noise(rows, 2, 4, 8, 9, seed=3, dtype=dtype), "timestep": times(rows).float(),
            "pooled_projections": noise(rows, 8, seed=4, dtype=dtype),
            "audio_hidden_states": noise(rows, 5, 4, seed=5, dtype=dtype)}  # fmt: skip


def _bool_masked_text(x, mask):
    return {"encoder_hidden_states": x, "encoder_attention_mask": mask}


VIDEOS = {
    "UNetMotionModel": Tiny(unet_motion, _frames, WHOLE, _text_of_each_frame, tau=4.0),
    "UNetMotionModel xl": Tiny(unet_motion_xl, _frames_xl, WHOLE, _text_of_each_frame, tau=4.0),
    "WanAnimateTransformer3DModel": Tiny(
        wan_animate, _wan_animate_arguments, WHOLE, lengths=(512, 512), beside=attention_to_first_frame
    ),
    "MotifVideoTransformer3DModel": Tiny(motif_video, videos, 16, masked_text, text_first=False, seen=UNSEEN),
    "MotifVideoTransformer3DModel plain": Tiny(
        _motif_video_plain, videos, 16, masked_text, text_first=False, seen=UNSEEN
    ),
    "MotifVideoTransformer3DModel from an image": Tiny(
        motif_video, _from_an_image, 16, masked_text, text_first=False, seen=UNSEEN
    ),
    "ConsisIDTransformer3DModel": Tiny(consisid, _consisid_arguments, 24),
    "EasyAnimateTransformer3DModel": Tiny(easyanimate, videos, 16),
    "EasyAnimateTransformer3DModel of two texts": Tiny(easyanimate, videos, 16, _two_texts),
    "SanaWMTransformer3DModel": Tiny(
        sana_wm,
        _sana_wm_arguments,
        WHOLE,
        _sana_wm_text,
        layer=lambda site: site.proj,
        seen=SEEN,
        double=False,
    ),
    "UNet3DConditionModel": Tiny(unet3d, _frames, WHOLE, tau=4.0),
    "I2VGenXLUNet": Tiny(i2vgen_xl, _i2vgen_xl_arguments, WHOLE, tau=2.0),
    "Kandinsky6Transformer3DModel": Tiny(
        kandinsky6,
        _kandinsky6_arguments,
        WHOLE,
        _bool_masked_text,
        layer=lambda site: site.out_layer,
        seen=UNSEEN,
        tau=4.0,
        double=False,
    ),
}
