# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of the families that are tested without a pipeline of their own, and a stand-in for one."""

import inspect

import diffusers
import torch
from tiny_family import (
    SAME,
    SEEN,
    UNSEEN,
    WHOLE,
    Tiny,
    images,
    masked_text,
    output,
    timed_images,
    times,
    token_ids,
    videos,
)
from tiny_image_families import IMAGES
from tiny_models import TEXT, noise, seeded
from tiny_video_families import VIDEOS, attention_to_first_frame, cogvideox, cogvideox_arguments, wan_like


def _flux_text(x, mask):
    return {"encoder_hidden_states": x, "txt_ids": torch.zeros(x.shape[1], 3)}


def _chroma():
    return diffusers.ChromaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT, axes_dims_rope=(4, 4, 8), approximator_num_channels=8, approximator_hidden_dim=16,
        approximator_layers=1,
    )  # fmt: skip


def _chroma_text(x, mask):
    mask = None if mask is None else torch.cat([mask, torch.ones(len(mask), 16, dtype=torch.bool)], dim=1)
    return _flux_text(x, None) | {"attention_mask": mask}


def _chroma_text_with_numbers(x, mask):
    text = _chroma_text(x, mask)
    return text if mask is None else text | {"attention_mask": text["attention_mask"].to(x)}


def _flux_arguments(rows, dtype):
    return {"hidden_states": noise(rows, 16, 16, seed=3, dtype=dtype), "timestep": times(rows, dtype),
            "img_ids": token_ids(1, 4, 4)}  # fmt: skip


def _z_image():
    return diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=TEXT,
        axes_dims=[8, 4, 4], axes_lens=[256, 32, 32],
    )  # fmt: skip


def _z_image_arguments(rows, dtype):
    return {"x": list(noise(rows, 4, 1, 8, 8, seed=3, dtype=dtype)), "t": times(rows, dtype)}


def _z_image_text(x, mask):
    lengths = [x.shape[1]] * len(x) if mask is None else mask.sum(1).tolist()
    return {"cap_feats": [row[:length] for row, length in zip(x, lengths, strict=True)]}


def hunyuan_video(**config):
    config = {"in_channels": 4, **config}
    return diffusers.HunyuanVideoTransformer3DModel(
        out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=2, patch_size_t=1, text_embed_dim=TEXT, pooled_projection_dim=8,
        rope_axes_dim=(4, 4, 4), **config,
    )  # fmt: skip


def _video_of_squares(rows, dtype):
    return videos(rows, dtype) | {"hidden_states": noise(rows, 4, 2, 8, 8, seed=3, dtype=dtype)}


def _hunyuan_video_arguments(rows, dtype):
    pooled = noise(rows, 8, seed=4, dtype=dtype)
    return videos(rows, dtype) | {"pooled_projections": pooled, "guidance": times(rows)}


def _flux_like(name, **config):
    config = {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
              "num_attention_heads": 2, "joint_attention_dim": TEXT, "axes_dims_rope": (4, 4, 8), **config}  # fmt: skip
    return Tiny(lambda: getattr(diffusers, name)(**config), _flux_arguments, 16, _flux_text)


def _cogview4():
    return diffusers.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        text_embed_dim=TEXT, time_embed_dim=8, condition_dim=4, rope_axes_dim=(8, 8), sample_size=8,
    )  # fmt: skip


def _cogview4_arguments(rows, dtype):
    sizes = {"original_size": 8.0, "target_size": 8.0, "crop_coords": 0.0}
    return images(rows, dtype) | {name: torch.full((rows, 2), x, dtype=dtype) for name, x in sizes.items()}


def _cogview3():
    return diffusers.CogView3PlusTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        text_embed_dim=TEXT, time_embed_dim=8, condition_dim=4, pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip


def _glm_image():
    return diffusers.GlmImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        text_embed_dim=TEXT, time_embed_dim=8, condition_dim=4, prior_vq_quantizer_codebook_size=16,
    )  # fmt: skip


def _glm_image_arguments(rows, dtype):
    sizes = {name: torch.full((rows, 2), 8.0, dtype=dtype) for name in ("target_size", "crop_coords")}
    prior = {
        "prior_token_id": torch.arange(16).expand(rows, -1),
        "prior_token_drop": torch.zeros(rows, 16, dtype=torch.bool),
    }
    return images(rows, dtype) | sizes | prior


def _helios_arguments(rows, dtype):
    """With frames drawn before, which do not see the text."""
    history = {"indices_hidden_states": torch.arange(1, 3), "indices_latents_history_short": torch.arange(1),
               "latents_history_short": noise(rows, 4, 1, 4, 8, seed=4, dtype=dtype)}  # fmt: skip
    return videos(rows, dtype) | {k: x if x.ndim > 1 else x.expand(rows, -1) for k, x in history.items()}


def _allegro():
    return diffusers.AllegroTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=48, sample_height=4, sample_width=8, sample_frames=2, caption_channels=TEXT,
    )  # fmt: skip


def _auraflow():
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=TEXT, pos_embed_max_size=16, out_channels=4,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("to_v.weight", "add_v_proj.weight")):
                parameter.mul_(40)  # it would hardly see its text
    return model


def krea2():
    return diffusers.Krea2Transformer2DModel(
        in_channels=16, num_layers=2, attention_head_dim=12, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, timestep_embed_dim=8, text_hidden_dim=TEXT, num_text_layers=2, text_num_attention_heads=2,
        text_num_key_value_heads=2, text_intermediate_size=16, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(4, 4, 4),
    )  # fmt: skip


def _krea2_open():
    """Its gates open, as the oracle guides after them."""
    model = krea2()
    for block in model.transformer_blocks:
        block.attn.to_gate = _Open()
    return model


class _Open(torch.nn.Module):
    def forward(self, x):
        return torch.full_like(x, 100.0)


def _krea2_arguments(rows, dtype):
    return {"hidden_states": noise(rows, 16, 16, seed=3, dtype=dtype), "timestep": times(rows, dtype)}


def _krea2_text(x, mask):
    layers = torch.stack([x, x.flip(-1)], dim=2)
    ids = torch.cat([torch.zeros(x.shape[1], 3), token_ids(1, 4, 4)])
    return {"encoder_hidden_states": layers, "position_ids": ids, "encoder_attention_mask": mask}


def _prx():
    return diffusers.PRXTransformer2DModel(
        in_channels=4, patch_size=2, context_in_dim=TEXT, hidden_size=32, num_heads=2, depth=2, axes_dim=[8, 8]
    )


def cosmos(**config):
    config = {"in_channels": 4, "concat_padding_mask": False, **config}
    return diffusers.CosmosTransformer3DModel(
        out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2, mlp_ratio=2, text_embed_dim=TEXT,
        adaln_lora_dim=4, max_size=(4, 8, 8), patch_size=(1, 2, 2), extra_pos_embed_type=None, **config,
    )  # fmt: skip


def _sana_video():
    return diffusers.SanaVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=TEXT,
        sample_size=8, patch_size=(1, 2, 2), rope_max_seq_len=32,
    )  # fmt: skip


def _from_an_image(name):
    """Wan and the like with a first frame, of which the model takes all tokens but the last 512."""
    config = {"image_dim": 8, "added_kv_proj_dim": 24}

    def arguments(rows, dtype):
        return videos(rows, dtype) | {"encoder_hidden_states_image": noise(rows, 6, 8, seed=4, dtype=dtype)}

    return Tiny(wan_like(name, **config), arguments, 16, lengths=(512, 512), beside=attention_to_first_frame)


def _forced(rows, dtype):
    """Frames with timesteps of their own."""
    time = torch.linspace(300, 700, 2 * rows).view(rows, 2).long()
    return videos(rows, dtype) | {"timestep": time, "enable_diffusion_forcing": True, "fps": [1] * rows}


def _anyflow_arguments(rows, dtype):
    time = times(rows).float()[:, None].expand(-1, 2)
    return {"hidden_states": noise(rows, 2, 4, 4, 8, seed=3, dtype=dtype), "timestep": time, "r_timestep": time / 2}


def _far(call):
    """Three parts of a video, of which the first is seen coarsely: drawn at once, the last of them by itself, or kept."""

    def arguments(rows, dtype):
        parts = [2, 1, 1]
        frames = {"at once": 4, "step": 1, "cache": 4}[call]
        time = times(rows).float()[:, None].expand(-1, frames)
        video = noise(rows, frames, 4, 4, 8, seed=3, dtype=dtype)
        given = {"hidden_states": video, "timestep": time, "r_timestep": time / 2, "chunk_partition": parts}
        if call == "at once":
            return given
        flag = {"num_cached_chunks": 2, "is_cache_step": call == "cache"}
        kept = {"full_cache": noise(2, rows, 2, 32, 12, seed=5, dtype=dtype),
                "compressed_cache": noise(2, rows, 2, 8, 12, seed=6, dtype=dtype)}  # fmt: skip
        return given | {"kv_cache": [kept, kept], "kv_cache_flag": flag}

    config = {"rope_max_seq_len": 32, "full_chunk_limit": 2, "chunk_partition": (2, 1, 1)}
    return Tiny(wan_like("AnyFlowFARTransformer3DModel", **config), arguments, WHOLE)


def ltx2(**config):
    config = {"cross_attention_dim": 32, "audio_cross_attention_dim": 16, "audio_attention_head_dim": 8,
              "audio_in_channels": 4, "audio_out_channels": 4, **config}  # fmt: skip
    return lambda: diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        audio_num_attention_heads=2, caption_channels=TEXT, pos_embed_max_pos=8, base_height=32,
        base_width=32, audio_pos_embed_max_pos=8, **config,
    )  # fmt: skip


def _ltx2_arguments(rows, dtype):
    shape = {"num_frames": 2, "height": 2, "width": 4, "audio_num_frames": 6}
    return {"hidden_states": noise(rows, 16, 4, seed=3, dtype=dtype), "timestep": times(rows), "sigma": times(rows),
            "audio_hidden_states": noise(rows, 6, 4, seed=4, dtype=dtype), **shape}  # fmt: skip


def _ltx2_text(x, mask):
    mask = None if mask is None else mask.long()
    return {"encoder_hidden_states": x, "encoder_attention_mask": mask, "audio_encoder_hidden_states": x.flip(-1),
            "audio_encoder_attention_mask": mask}  # fmt: skip


def _fibo():
    return diffusers.BriaFiboTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=TEXT, axes_dims_rope=(4, 4, 8), text_encoder_dim=TEXT,
    )  # fmt: skip


def _fibo_text(x, mask):
    if mask is not None:
        mask = torch.cat([mask, torch.ones(len(mask), 16, dtype=torch.bool)], dim=1)[:, None, None]
        mask = {"attention_mask": mask}
    return _flux_text(x, None) | {"text_encoder_layers": [x.flip(-1), -x], "joint_attention_kwargs": mask}


def _hidream():
    model = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, caption_channels=[TEXT, TEXT], text_emb_dim=8, num_routed_experts=2, num_activated_experts=1,
        axes_dims_rope=(8, 4, 4), max_resolution=(8, 8), llama_layers=[0, 1],
    )  # fmt: skip
    return model


def _hidream_arguments(rows, dtype):
    image = images(rows, dtype)
    return {"hidden_states": image["hidden_states"], "timesteps": image["timestep"],
            "pooled_embeds": noise(rows, 8, seed=4, dtype=dtype)}  # fmt: skip


def _hidream_text(x, mask):
    return {"encoder_hidden_states_t5": x[:, :-1], "encoder_hidden_states_llama3": torch.stack([x.flip(-1), -x])}


def _hunyuan_image(second):
    return diffusers.HunyuanImageTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=(2, 2), text_embed_dim=TEXT, text_embed_2_dim=TEXT if second else None,
        rope_axes_dim=(8, 8),
    )  # fmt: skip


def hunyuan_video15(**config):
    config = {"in_channels": 4, "task_type": "t2v", **config}
    return diffusers.HunyuanVideo15Transformer3DModel(
        out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=2, num_refiner_layers=1,
        patch_size=2, patch_size_t=1, text_embed_dim=TEXT, text_embed_2_dim=TEXT, image_embed_dim=8,
        rope_axes_dim=(4, 4, 4), **config,
    )  # fmt: skip


def _hunyuan_video15_arguments(rows, dtype):
    image = torch.zeros(rows, 6, 8, dtype=dtype)
    return videos(rows, dtype) | {"timestep": times(rows, dtype), "image_embeds": image}


def _hunyuan_video15_from_an_image(rows, dtype):
    return _hunyuan_video15_arguments(rows, dtype) | {"image_embeds": noise(rows, 6, 8, seed=4, dtype=dtype)}


def _framepack():
    return diffusers.HunyuanVideoFramepackTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=2, patch_size_t=1, text_embed_dim=TEXT, pooled_projection_dim=8,
        rope_axes_dim=(4, 4, 4), has_image_proj=True, image_proj_dim=8, has_clean_x_embedder=True,
    )  # fmt: skip


def _framepack_arguments(rows, dtype):
    """With frames drawn before, at three sizes, which see the text too."""
    frames = {"latents_clean": 2, "latents_history_2x": 2, "latents_history_4x": 4}
    history = {name: noise(rows, 4, n, 4, 8, seed=5 + n, dtype=dtype) for name, n in frames.items()}
    indices = {f"indices_{name}": torch.arange(n) for name, n in frames.items()}
    image = {"image_embeds": noise(rows, 6, 8, seed=4, dtype=dtype), "indices_latents": torch.arange(2)}
    return _hunyuan_video_arguments(rows, dtype) | image | history | indices


def mochi():
    return diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=12, num_layers=2, pooled_projection_dim=16, in_channels=4,
        out_channels=4, text_embed_dim=TEXT, time_embed_dim=8, max_sequence_length=16,
    )  # fmt: skip


def _mochi_pooled_alike():
    """The oracle's run with the negative would have the mean of the negative in its time."""
    model = mochi()
    model.time_embed.pooler = _Nothing()
    return model


class _Nothing(torch.nn.Module):
    def forward(self, x, mask):
        return x.new_zeros(len(x), 24)


def _left_padded_text(x, mask):
    """HunyuanVideo then counts what is seen, and sees as many tokens from the first."""
    return masked_text(x, None if mask is None else mask.flip(1))


def _two_masked_texts(x, mask):
    first = masked_text(x, mask)
    seen = first["encoder_attention_mask"][:, 1:]
    return first | {"encoder_hidden_states_2": x[:, 1:].flip(-1), "encoder_attention_mask_2": seen}


def _lumina2():
    return diffusers.Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
        num_attention_heads=2, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 4, 4), axes_lens=(32, 8, 8),
        cap_feat_dim=TEXT,
    )  # fmt: skip


def _lumina2_text(x, mask):
    return masked_text(x, SAME[: len(x), : x.shape[1]] if mask is None else mask)


def _qwen21():
    return diffusers.QwenImage21Transformer2DModel(
        in_channels=16, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, context_in_dim=TEXT,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


def _qwen21_arguments(rows, dtype):
    shapes = [[(1, 4, 4)]] * rows
    # One time for all rows: the model adds a single row of time 0.
    return {"hidden_states": noise(rows, 16, 16, seed=3, dtype=dtype), "timestep": torch.tensor([0.5], dtype=dtype),
            "img_shapes": shapes}  # fmt: skip


def _qwen21_text(x, mask):
    slots = torch.arange(x.shape[1] + 4) >= x.shape[1]  # after the text: each stands for four tokens of the image
    return {"encoder_hidden_states": x, "encoder_hidden_states_mask": mask, "img_mask": slots.expand(len(x), -1)}


def _ideogram4():
    return diffusers.Ideogram4Transformer2DModel(
        in_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2, intermediate_size=32, adaln_dim=8,
        llm_features_dim=TEXT, mrope_section=(4, 2, 2),
    )  # fmt: skip


def _ideogram4_arguments(rows, dtype):
    image = noise(rows, 16, 16, seed=3, dtype=dtype)
    return {"hidden_states": torch.nn.functional.pad(image, (0, 0, 7, 0)), "timestep": times(rows, dtype)}


def _ideogram4_text(x, mask):
    """Padded to seven tokens, which are not seen, before those of the image."""
    rows, length = x.shape[:2]
    seen = torch.ones(rows, length, dtype=torch.bool) if mask is None else mask
    seen = torch.nn.functional.pad(seen, (0, 7 - length))
    one = torch.ones(rows, 16, dtype=torch.long)
    return {"encoder_hidden_states": torch.nn.functional.pad(x, (0, 0, 0, 23 - length)),
            "position_ids": torch.arange(23)[None, :, None].expand(rows, -1, 3),
            "segment_ids": torch.cat([seen.long() - (~seen).long(), one], dim=1),
            "indicator": torch.cat([3 * seen.long() - (~seen).long(), 2 * one], dim=1)}  # fmt: skip


def _omnigen():
    return diffusers.OmniGenTransformer2DModel(
        in_channels=4, patch_size=2, hidden_size=32, num_attention_heads=2, num_key_value_heads=1, intermediate_size=32,
        num_layers=2, pad_token_id=0, vocab_size=64, time_step_dim=4, pos_embed_max_size=8, max_position_embeddings=64,
        original_max_position_embeddings=32, rope_scaling={"long_factor": list(range(1, 9)), "short_factor": [1] * 8},
    )  # fmt: skip


def _omnigen_arguments(rows, dtype):
    return images(rows, dtype) | {"timestep": times(rows, dtype), "input_img_latents": []}


def _omnigen_text(x, mask):
    rows, length = x.shape[:2]
    whole = length + 1 + 16  # the time comes before the image
    seen = torch.ones(rows, length, dtype=torch.bool) if mask is None else mask
    seen = torch.nn.functional.pad(seen, (0, 17), value=True)
    mask = seen[:, None].expand(-1, whole, -1).to(x)
    positions = torch.arange(whole).repeat(rows, 1)
    ids = (x.sum(-1) * 99).long() % 60 + 3
    return {"input_ids": ids, "input_image_sizes": {}, "attention_mask": mask, "position_ids": positions}


def _fibo2():
    return diffusers.BriaFibo2Transformer2DModel(
        in_channels=4, patch_size=2, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, cap_feat_dim=TEXT,
        injection_layer_ids=(1,), perceiver_num_layers=1, min_num_gist_tokens=2, max_num_gist_tokens=5, gist_step=1,
        gist_min_text_len=1, gist_max_text_len=7, axes_dims=(8, 4, 4), axes_lens=(32, 16, 16),
    )  # fmt: skip


def _fibo2_text(x, mask):
    return {"encoder_hidden_states": torch.stack([x, x.flip(-1)], dim=1), "encoder_attention_mask": mask}


def cosmos3():
    return diffusers.Cosmos3OmniTransformer(
        head_dim=12, hidden_size=24, intermediate_size=32, latent_channel=4, latent_patch_size=2, num_attention_heads=2,
        num_hidden_layers=2, num_key_value_heads=1, patch_latent_dim=16, sound_dim=4, sound_gen=True, vocab_size=64,
        rope_scaling={"mrope_section": [2, 2, 2]},
    )  # fmt: skip


def _cosmos3_arguments(rows, dtype):
    """Two frames, of which the first is given, and sound. It knows no batch."""
    return {"vision_tokens": [noise(1, 4, 2, 4, 8, seed=3, dtype=dtype)], "vision_token_shapes": [(2, 2, 4)],
            "vision_timesteps": torch.full((8,), 300.0, dtype=dtype), "vision_noisy_frame_indexes": [torch.tensor([1])],
            "sound_tokens": [noise(4, 6, seed=4, dtype=dtype)], "sound_token_shapes": [(6, 1, 1)],
            "sound_timesteps": torch.full((6,), 300.0, dtype=dtype), "sound_noisy_frame_indexes": [torch.arange(6)]}  # fmt: skip


def _cosmos3_text(x, mask):
    text = x.shape[1]
    places = torch.arange(text + 16 + 6)
    image, sound = places[text : text + 16], places[text + 16 :]
    return {"input_ids": (x[0].sum(-1) * 99).long() % 64, "text_indexes": places[:text], "und_len": text,
            "position_ids": places.expand(3, -1), "sequence_length": len(places), "vision_sequence_indexes": image,
            "vision_mse_loss_indexes": image[8:], "sound_sequence_indexes": sound, "sound_mse_loss_indexes": sound}  # fmt: skip


def kandinsky5(**config):
    config = {"in_visual_dim": 4, **config}
    return diffusers.Kandinsky5Transformer3DModel(
        in_text_dim=TEXT, in_text_dim2=8, time_dim=16, out_visual_dim=4, patch_size=(1, 2, 2),
        model_dim=32, ff_dim=32, num_text_blocks=1, num_visual_blocks=2, axes_dims=(4, 4, 8), **config,
    )  # fmt: skip


def _kandinsky_arguments(rows, dtype):
    return {"hidden_states": noise(rows, 2, 4, 8, 4, seed=3, dtype=dtype), "timestep": times(rows).float(),
            "pooled_projections": noise(rows, 8, seed=4, dtype=dtype),
            "visual_rope_pos": [torch.arange(n) for n in (2, 2, 4)]}  # fmt: skip


def hunyuan_dit():
    """Its texts have one length, and it sees all of them: what a mask hides is filled up with embeddings of the model."""
    return diffusers.HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, patch_size=2, sample_size=8, hidden_size=32,
        num_layers=4, cross_attention_dim=TEXT, cross_attention_dim_t5=TEXT, pooled_projection_dim=8, text_len=7,
        text_len_t5=6,
    )  # fmt: skip


def _hunyuan_dit_pooled_alike():
    """The oracle's run with the negative would have the pooled negative in its time."""
    model = hunyuan_dit()
    model.time_extra_emb.pooler = _Pooled()
    return model


class _Pooled(torch.nn.Module):
    def forward(self, x):
        return torch.linspace(-1, 1, 8).to(x).expand(len(x), -1)


def _hunyuan_dit_arguments(rows, dtype):
    angles = noise(16, 8, seed=5).repeat_interleave(2, dim=1).float()
    sizes = {"image_meta_size": torch.full((rows, 6), 8.0, dtype=dtype), "style": torch.zeros(rows, dtype=torch.long)}
    turns = {"image_rotary_emb": (angles.cos(), angles.sin())}
    return images(rows, dtype) | {"timestep": times(rows).to(dtype)} | sizes | turns


def _hunyuan_dit_text(x, mask):
    mask = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    return {"encoder_hidden_states": x, "text_embedding_mask": mask.long(), "encoder_hidden_states_t5": x[:, 1:].flip(-1),
            "text_embedding_mask_t5": mask[:, :-1].long()}  # fmt: skip


def _latte():
    return diffusers.LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=32,
        sample_size=8, patch_size=2, norm_type="ada_norm_single", norm_elementwise_affine=False, caption_channels=TEXT,
        video_length=2, attention_bias=True, num_embeds_ada_norm=1000, activation_fn="gelu-approximate",
    )  # fmt: skip


def stable_audio():
    return diffusers.StableAudioDiTModel(
        sample_size=16, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        num_key_value_attention_heads=2, out_channels=4, cross_attention_dim=16, cross_attention_input_dim=TEXT,
        time_proj_dim=16, global_states_input_dim=2 * TEXT,
    )  # fmt: skip


def _stable_audio_arguments(rows, dtype):
    angles = noise(17, 2, seed=5).repeat(1, 2).float()
    return {"hidden_states": noise(rows, 4, 16, seed=3, dtype=dtype), "timestep": times(rows, dtype),
            "global_hidden_states": noise(rows, 1, 2 * TEXT, seed=4, dtype=dtype),
            "rotary_embedding": (angles.cos(), angles.sin())}  # fmt: skip


TINY = VIDEOS | {
    "ChromaTransformer2DModel": Tiny(_chroma, _flux_arguments, 16, _chroma_text, seen=UNSEEN),
    "ChromaTransformer2DModel numbers": Tiny(_chroma, _flux_arguments, 16, _chroma_text_with_numbers, seen=UNSEEN),
    # Padded to multiples of 32, which for the oracle must be the same in a row: the image's positions begin after them.
    "ZImageTransformer2DModel": Tiny(
        _z_image,
        _z_image_arguments,
        32,
        _z_image_text,
        text_first=False,
        lengths=(40, 36),
        seen=((40, 3, 5), (36, 4, 1)),
    ),
    "HunyuanVideoTransformer3DModel": Tiny(
        hunyuan_video, _hunyuan_video_arguments, 16, masked_text, text_first=False, seen=SEEN
    ),
    "LTX2VideoTransformer3DModel": Tiny(ltx2(), _ltx2_arguments, WHOLE, _ltx2_text, seen=SEEN),
    "LTX2VideoTransformer3DModel 2.3": Tiny(
        ltx2(
            perturbed_attn=True,
            cross_attn_mod=True,
            audio_cross_attn_mod=True,
            use_prompt_embeddings=False,
            cross_attention_dim=TEXT,
            audio_cross_attention_dim=TEXT,
            audio_attention_head_dim=16,
        ),
        _ltx2_arguments,
        WHOLE,
        _ltx2_text,
        seen=SEEN,
    ),
    "HunyuanVideoTransformer3DModel left": Tiny(
        hunyuan_video, _hunyuan_video_arguments, 16, _left_padded_text, text_first=False, seen=SEEN
    ),
    "CogView4Transformer2DModel": Tiny(_cogview4, _cogview4_arguments, 16),
    "GlmImageTransformer2DModel": Tiny(_glm_image, _glm_image_arguments, 16),
    "CogView3PlusTransformer2DModel": Tiny(_cogview3, _cogview4_arguments, 16),
    "AllegroTransformer3DModel": Tiny(_allegro, videos, WHOLE, masked_text, seen=SEEN, tau=4.0),
    "AllegroTransformer3DModel by its pipeline": Tiny(
        _allegro,
        videos,
        WHOLE,
        lambda x, mask: masked_text(x, mask) | {"encoder_hidden_states": x[:, None]},
        seen=SEEN,
        tau=4.0,
    ),
    "CogVideoXTransformer3DModel": Tiny(cogvideox, cogvideox_arguments(True), 24),
    "CogVideoXTransformer3DModel 2b": Tiny(lambda: cogvideox(False), cogvideox_arguments(False), 24, lengths=(6, 6)),
    "AuraFlowTransformer2DModel": Tiny(_auraflow, images, 16),
    "BriaTransformer2DModel": _flux_like("BriaTransformer2DModel"),
    "LongCatImageTransformer2DModel": _flux_like("LongCatImageTransformer2DModel"),
    "OvisImageTransformer2DModel": _flux_like("OvisImageTransformer2DModel", out_channels=16),
    "BriaFiboTransformer2DModel": Tiny(_fibo, _flux_arguments, 16, _fibo_text, seen=SEEN),
    "HiDreamImageTransformer2DModel": Tiny(_hidream, _hidream_arguments, 16, _hidream_text, text_first=False),
    "HunyuanImageTransformer2DModel": Tiny(
        lambda: _hunyuan_image(False), timed_images, 16, masked_text, text_first=False, seen=SEEN
    ),
    "HunyuanImageTransformer2DModel of two texts": Tiny(
        lambda: _hunyuan_image(True), timed_images, 16, _two_masked_texts, text_first=False, seen=((7, 3, 5), (5, 4, 1))
    ),
    "HunyuanVideo15Transformer3DModel": Tiny(
        hunyuan_video15,
        _hunyuan_video15_arguments,
        16,
        _two_masked_texts,
        text_first=False,
        seen=((7, 3, 5), (5, 4, 1)),
    ),
    "HunyuanVideo15Transformer3DModel from an image": Tiny(
        hunyuan_video15,
        _hunyuan_video15_from_an_image,
        16,
        _two_masked_texts,
        text_first=False,
        seen=((7, 3, 5), (5, 4, 1)),
    ),
    "HunyuanVideoFramepackTransformer3DModel": Tiny(
        _framepack, _framepack_arguments, WHOLE, masked_text, text_first=False, seen=SEEN
    ),
    "HunyuanVideoFramepackTransformer3DModel left": Tiny(
        _framepack, _framepack_arguments, WHOLE, _left_padded_text, text_first=False, seen=SEEN
    ),
    "HunyuanVideoFramepackTransformer3DModel one": Tiny(
        _framepack, _framepack_arguments, WHOLE, _left_padded_text, text_first=False, seen=((4,), (3,)), rows=1
    ),
    "MochiTransformer3DModel": Tiny(_mochi_pooled_alike, videos, 16, masked_text, text_first=False, seen=SEEN),
    # As many tokens seen of both texts, for the oracle: the image's positions begin after them.
    "Lumina2Transformer2DModel": Tiny(_lumina2, images, 16, _lumina2_text, seen=((4, 3, 5), (4, 3, 5)), alone=True),
    "Krea2Transformer2DModel": Tiny(_krea2_open, _krea2_arguments, 16, _krea2_text, seen=SEEN),
    "PRXTransformer2DModel": Tiny(
        _prx, images, 16, lambda x, mask: {"encoder_hidden_states": x, "attention_mask": mask}, seen=SEEN
    ),
    "CosmosTransformer3DModel": Tiny(cosmos, videos, 16),
    "SanaVideoTransformer3DModel": Tiny(_sana_video, videos, 16, masked_text, seen=SEEN),
    "WanTransformer3DModel from an image": _from_an_image("WanTransformer3DModel"),
    "ChronoEditTransformer3DModel from an image": _from_an_image("ChronoEditTransformer3DModel"),
    "SkyReelsV2Transformer3DModel from an image": _from_an_image("SkyReelsV2Transformer3DModel"),
    "SkyReelsV2Transformer3DModel": Tiny(wan_like("SkyReelsV2Transformer3DModel"), videos, 16),
    "SkyReelsV2Transformer3DModel forced": Tiny(
        wan_like("SkyReelsV2Transformer3DModel", inject_sample_info=True, num_frame_per_block=2), _forced, 16, rows=1
    ),
    "HeliosTransformer3DModel": Tiny(
        wan_like("HeliosTransformer3DModel", rope_max_seq_len=None, rope_dim=(4, 4, 4)), _helios_arguments, 16
    ),
    "AnyFlowTransformer3DModel": Tiny(wan_like("AnyFlowTransformer3DModel"), _anyflow_arguments, 16),
    "AnyFlowFARTransformer3DModel": _far("at once"),
    "AnyFlowFARTransformer3DModel step": _far("step"),
    "AnyFlowFARTransformer3DModel cache": _far("cache"),
    "HunyuanDiT2DModel": Tiny(
        _hunyuan_dit_pooled_alike,
        _hunyuan_dit_arguments,
        16,
        _hunyuan_dit_text,
        lengths=(7, 7),
        seen=((7, 3, 5), (5, 0, 1)),
    ),
    "LatteTransformer3DModel": Tiny(_latte, _video_of_squares, 16, tau=4.0),
    "StableAudioDiTModel": Tiny(stable_audio, _stable_audio_arguments, 17, tau=4.0),
    "QwenImage21Transformer2DModel": Tiny(_qwen21, _qwen21_arguments, 16, _qwen21_text, seen=SEEN),
    "Ideogram4Transformer2DModel": Tiny(_ideogram4, _ideogram4_arguments, 16, _ideogram4_text, seen=SEEN),
    "OmniGenTransformer2DModel": Tiny(_omnigen, _omnigen_arguments, 16, _omnigen_text, seen=SEEN),
    "BriaFibo2Transformer2DModel": Tiny(_fibo2, timed_images, 16, _fibo2_text, seen=SEEN, alone=True),
    "Cosmos3OmniTransformer": Tiny(
        cosmos3, _cosmos3_arguments, WHOLE, _cosmos3_text, layer=lambda site: site.to_add_out, rows=1
    ),
    "Kandinsky5Transformer3DModel": Tiny(
        kandinsky5,
        _kandinsky_arguments,
        16,
        lambda x, mask: {"encoder_hidden_states": x, "text_rope_pos": torch.arange(x.shape[1])},
        layer=lambda site: site.out_layer,
        tau=4.0,
        double=False,
    ),
}

TINY |= IMAGES
TINY = {kind: tiny for kind, tiny in TINY.items() if hasattr(diffusers, kind.split()[0])}  # an older library has fewer
FIRST_COSMOS3 = (
    "Cosmos3OmniTransformer" in TINY
    and "return_dict" not in inspect.signature(diffusers.Cosmos3OmniTransformer.forward).parameters
)  # which is refused
if FIRST_COSMOS3:
    del TINY["Cosmos3OmniTransformer"]


class Pipeline:
    """As `guide` sees one: a denoiser, and a call with a prompt. Each prompt is the name of ready-made text."""

    def __init__(self, kind, dtype=torch.float32, build=None):
        rows = TINY[kind].rows
        self.transformer = seeded(build or TINY[kind].build, dtype)
        self.arguments, self.texts = TINY[kind].arguments(rows, dtype), {}
        self.prompt = ["positive"] * rows

    def __call__(self, prompt):
        return output(self.transformer, self.arguments | self.texts[prompt[0]])
