# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of further families that draw images or sounds."""

import functools

import diffusers
import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from tiny_family import SAME, SEEN, UNSEEN, WHOLE, Tiny, images, masked_text, timed_images, times
from tiny_models import POOLED, TEXT, model_arguments, noise, unet_sdxl


def _ernie():
    return diffusers.ErnieImageTransformer2DModel(
        hidden_size=32, num_attention_heads=2, num_layers=2, ffn_hidden_size=32, in_channels=4, out_channels=4, patch_size=2,
        text_in_dim=TEXT + 1, rope_axes_dim=(8, 4, 4),
    )  # fmt: skip


def _ernie_text(x, mask):
    """Texts of as many tokens as are seen; the image's positions say how many these are."""
    mask = SAME[: len(x), : x.shape[1]] if mask is None else mask
    return {"text_bth": torch.nn.functional.pad(x, (0, 1), value=0.5), "text_lens": mask.sum(dim=1)}


def _ernie_in_one_place():
    """Its image where it is, whatever the text: of texts of other lengths the oracle's two runs would have other images."""
    model = _ernie()
    positions = model.pos_embed.forward
    model.pos_embed.forward = lambda ids: positions(torch.cat([ids[:, :16].clamp(max=3), ids[:, 16:]], dim=1))
    return model


def _nucleus():
    model = diffusers.NucleusMoEImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=4, attention_head_dim=16, num_attention_heads=4, num_key_value_heads=2,
        joint_attention_dim=TEXT, axes_dims_rope=(4, 6, 6), dense_moe_strategy="leave_first_block_dense", num_experts=2,
        moe_intermediate_dim=16, capacity_factors=1.0,
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if "experts" in name:
            torch.nn.init.normal_(parameter, std=0.2)  # of which it leaves what was in memory
    return model


def _nucleus_arguments(rows, dtype):
    return {"hidden_states": noise(rows, 16, 16, seed=3, dtype=dtype), "timestep": times(rows, dtype),
            "img_shapes": [(1, 4, 4)] * rows}  # fmt: skip


def _text_with_its_mask(x, mask):
    return {"encoder_hidden_states": x, "encoder_hidden_states_mask": mask}


def _joy(name, **config):
    return lambda: getattr(diffusers, name)(
        in_channels=4,
        hidden_size=32,
        num_attention_heads=2,
        text_dim=TEXT,
        num_layers=2,
        rope_dim_list=[4, 6, 6],
        **config,
    )


def _joy_layer(site):
    return site.img_attn_proj


def _joy_arguments(rows, dtype):
    """The image to be drawn after one that is given."""
    return {"hidden_states": noise(rows, 2, 4, 1, 8, 8, seed=3, dtype=dtype), "timestep": times(rows)}


def _joy_plus_arguments(rows, dtype):
    """In patches: the image to be drawn and one that is given."""
    image = noise(rows, 22, 4, 1, 2, 2, seed=3, dtype=dtype)
    return {"hidden_states": image, "timestep": times(rows), "shape_list": [[(1, 4, 4), (1, 2, 3)]] * rows}


def dreamlite():
    return diffusers.DreamLiteUNetModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=4,
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"), cross_attention_dim=24, ff_mult=2,
        encoder_hid_dim=TEXT, encoder_hid_dim_type="text_proj_rms", num_kv_heads=2, addition_embed_type="time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=16, use_linear_projection=True,
    )  # fmt: skip


def _dreamlite_arguments(rows, dtype):
    sizes = {"time_ids": torch.full((rows, 2), 8.0, dtype=dtype)}
    return model_arguments("sd15", rows, dtype) | {"added_cond_kwargs": sizes}


def lumina_next():
    model = diffusers.LuminaNextDiT2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=32, num_layers=2, num_attention_heads=4, num_kv_heads=2,
        multiple_of=8, cross_attention_dim=TEXT,
    )  # fmt: skip
    torch.nn.init.zeros_(model.pad_token)  # of which it leaves what was in memory
    return model


class _Pooled(torch.nn.Module):
    def forward(self, x):
        return torch.linspace(-1, 1, 32).to(x).expand(len(x), -1)


def _lumina_next_pooled_alike():
    """The oracle's run with the negative would have the pooled negative in its time."""
    model = lumina_next()
    model.time_caption_embed.caption_embedder = _Pooled()
    return model


def _lumina_next_arguments(rows, dtype):
    turns = get_2d_rotary_pos_embed_lumina(8, 8, 8)
    return timed_images(rows, dtype) | {"image_rotary_emb": turns, "cross_attention_kwargs": {}}


def _lumina_next_text(x, mask):
    mask = torch.ones(x.shape[:2], dtype=torch.long) if mask is None else mask.long()
    return {"encoder_hidden_states": x, "encoder_mask": mask}


def kandinsky3():
    return diffusers.Kandinsky3UNet(
        time_embedding_dim=16, groups=1, attention_head_dim=8, layers_per_block=2, block_out_channels=(16, 16, 16, 32),
        cross_attention_dim=24, encoder_hid_dim=TEXT,
    )  # fmt: skip


def _kandinsky3_pooled_alike():
    """As above."""
    model = kandinsky3()
    model.add_time_condition.forward = lambda time, *_: time
    return model


def audioldm2():
    """In each block attention to itself, to a first and to a second text."""
    return diffusers.AudioLDM2UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=2, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=((None, TEXT, TEXT), (None, TEXT, TEXT)),
    )  # fmt: skip


def _two_texts(x, mask):
    """The second has other lengths; its mask begins where that of the first ends."""
    mask = None if mask is None else mask[:, : x.shape[1] - 2].long()
    return {"encoder_hidden_states": x, "encoder_hidden_states_1": x[:, 2:].flip(-1), "encoder_attention_mask_1": mask}


def _stable_audio3():
    return diffusers.StableAudio3DiTModel(
        io_channels=4, embed_dim=32, depth=2, num_heads=2, cond_token_dim=TEXT, global_cond_dim=TEXT, local_add_cond_dim=5,
        timestep_features_dim=16, ff_mult=2.0, num_memory_tokens=3,
    )  # fmt: skip


def _stable_audio3_arguments(rows, dtype):
    return {"hidden_states": noise(rows, 4, 16, seed=3, dtype=dtype), "timestep": times(rows, dtype),
            "global_hidden_states": noise(rows, TEXT, seed=4, dtype=dtype)}  # fmt: skip


def _ace_step():
    return diffusers.AceStepTransformer1DModel(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        in_channels=12, audio_acoustic_hidden_dim=4, sliding_window=2, encoder_hidden_size=TEXT,
    )  # fmt: skip


def _ace_step_arguments(rows, dtype):
    time = {"timestep": times(rows, dtype), "timestep_r": times(rows, dtype) / 2}
    given = {"context_latents": noise(rows, 15, 8, seed=4, dtype=dtype)}
    return {"hidden_states": noise(rows, 15, 4, seed=3, dtype=dtype)} | time | given


def longcat_audio(**config):
    return diffusers.LongCatAudioDiTTransformer(
        dit_dim=32, dit_depth=2, dit_heads=2, dit_text_dim=TEXT, latent_dim=4, ff_mult=2.0, **config
    )


def _longcat_audio_unpooled():
    """The oracle's run with the negative would have a mean of it in its time."""
    return longcat_audio(adaln_use_text_cond=False)


def _longcat_audio_arguments(rows, dtype):
    seen = torch.ones(rows, 15, dtype=torch.bool)  # as in its pipeline
    return {"hidden_states": noise(rows, 15, 4, seed=3, dtype=dtype), "timestep": times(rows, dtype),
            "latent_cond": noise(rows, 15, 4, seed=4, dtype=dtype), "attention_mask": seen}  # fmt: skip


def amused():
    return diffusers.UVit2DModel(
        hidden_size=32, cond_embed_dim=POOLED, micro_cond_encode_dim=8, micro_cond_embed_dim=40, encoder_hidden_size=TEXT,
        vocab_size=36, codebook_size=32, in_channels=16, block_out_channels=16, num_res_blocks=1, block_num_heads=2,
        num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, sample_size=8,
    )  # fmt: skip


def _amused_arguments(rows, dtype):
    return {"input_ids": (noise(rows, 8, 8, seed=3) * 99).long() % 33, "micro_conds": noise(rows, 5, seed=4, dtype=dtype),
            "pooled_text_emb": noise(rows, POOLED, seed=5, dtype=dtype)}  # fmt: skip


def controlnet_xs():
    return diffusers.UNetControlNetXSModel(
        sample_size=8, block_out_channels=(16, 32), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), norm_num_groups=2, cross_attention_dim=TEXT,
        transformer_layers_per_block=(2, 1), num_attention_heads=4, ctrl_conditioning_embedding_out_channels=(4, 4),
        ctrl_block_out_channels=(4, 8), ctrl_num_attention_heads=2, ctrl_max_norm_num_groups=2,
    )  # fmt: skip


class _Nothing(torch.nn.Module):
    def forward(self, hidden_states, *_, **__):
        return torch.zeros_like(hidden_states)


def _controlnet_xs_blind():
    """The oracle's run with the negative would have another control."""
    model = controlnet_xs()
    for name, block in list(model.named_modules()):
        if ".ctrl_" in name and hasattr(block, "attn2"):
            block.attn2 = _Nothing()
    return model


def _controlnet_xs_arguments(rows, dtype):
    control = {"controlnet_cond": noise(rows, 3, 16, 16, seed=6, dtype=dtype), "conditioning_scale": 0.7}
    return model_arguments("sd15", rows, dtype) | control


def kolors():
    """A UNet like SDXL's, whose text is projected before it reaches attention."""
    return unet_sdxl(encoder_hid_dim_type="text_proj", encoder_hid_dim=TEXT)


IMAGES = {
    "ErnieImageTransformer2DModel": Tiny(
        _ernie, images, 16, _ernie_text, text_first=False, seen=((4, 3, 5), (4, 3, 5)), tau=2.0
    ),
    "ErnieImageTransformer2DModel in one place": Tiny(
        _ernie_in_one_place, images, 16, _ernie_text, text_first=False, seen=((7, 3, 5), (5, 4, 3)), tau=2.0
    ),
    "NucleusMoEImageTransformer2DModel": Tiny(_nucleus, _nucleus_arguments, 16, _text_with_its_mask, seen=UNSEEN),
    "JoyImageEditTransformer3DModel": Tiny(
        _joy("JoyImageEditTransformer3DModel", rope_type="mrope"),
        _joy_arguments,
        32,
        text_first=False,
        layer=_joy_layer,
    ),
    "JoyImageEditTransformer3DModel unnumbered": Tiny(
        _joy("JoyImageEditTransformer3DModel"), _joy_arguments, 32, text_first=False, layer=_joy_layer
    ),
    "JoyImageEditPlusTransformer3DModel": Tiny(
        _joy("JoyImageEditPlusTransformer3DModel"),
        _joy_plus_arguments,
        22,
        _text_with_its_mask,
        text_first=False,
        layer=_joy_layer,
        seen=UNSEEN,
    ),
    "DreamLiteUNetModel": Tiny(dreamlite, _dreamlite_arguments, WHOLE, masked_text, seen=SEEN),
    "LuminaNextDiT2DModel": Tiny(
        _lumina_next_pooled_alike,
        _lumina_next_arguments,
        WHOLE,
        _lumina_next_text,
        layer=lambda site: None,
        seen=SEEN,
        tau=4.0,
    ),
    "Kandinsky3UNet": Tiny(
        _kandinsky3_pooled_alike, functools.partial(model_arguments, "sd15"), WHOLE, masked_text, seen=SEEN, tau=2.0
    ),
    "AudioLDM2UNet2DConditionModel": Tiny(
        audioldm2, functools.partial(model_arguments, "sd15"), WHOLE, _two_texts, seen=((5, 3, 4), (3, 2, 1)), tau=3.0
    ),
    "AudioLDM2UNet2DConditionModel of one text": Tiny(
        audioldm2, functools.partial(model_arguments, "sd15"), WHOLE, masked_text, seen=SEEN, tau=3.0
    ),
    "StableAudio3DiTModel": Tiny(
        _stable_audio3, _stable_audio3_arguments, WHOLE, masked_text, seen=UNSEEN, tau=2.0, double=False
    ),
    "AceStepTransformer1DModel": Tiny(_ace_step, _ace_step_arguments, WHOLE),
    "LongCatAudioDiTTransformer": Tiny(
        _longcat_audio_unpooled, _longcat_audio_arguments, WHOLE, masked_text, seen=SEEN, tau=2.0
    ),
    "LongCatAudioDiTTransformer local": Tiny(
        lambda: longcat_audio(adaln_use_text_cond=False, adaln_type="local", text_conv=False),
        _longcat_audio_arguments,
        WHOLE,
        masked_text,
        seen=SEEN,
        tau=2.0,
    ),
    "UVit2DModel": Tiny(amused, _amused_arguments, WHOLE, tau=2.0),
    "UNetControlNetXSModel": Tiny(_controlnet_xs_blind, _controlnet_xs_arguments, WHOLE, tau=3.0),
    "UNet2DConditionModel of Kolors": Tiny(kolors, functools.partial(model_arguments, "sdxl"), WHOLE, tau=3.0),
}
