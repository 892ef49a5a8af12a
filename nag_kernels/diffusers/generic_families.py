# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The part of the table of families that goes the generic route, by the model's own processors, of which only the call of
attention is replaced (`rebound_processor`)."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.nn import Module

from .family import Family
from .rebound_processor import Layout
from .texts_apart import (
    auraflow,
    cogvideox,
    ernie_image,
    framepack,
    hunyuan_dit,
    hunyuan_image,
    joy_image_plus,
    kandinsky,
    kandinsky6,
    krea2,
    lumina2,
    lumina_next,
    mochi,
    numbered_anew,
)

FLUX_LIKE = {"encoder_hidden_states": 1, "txt_ids": -2}


def named(*names: str) -> Callable[[Module], Iterator[tuple[str, Module]]]:
    """Attention layers by the last part of their name, outside of whatever comes before the blocks of the model itself."""
    return lambda denoiser: (
        (name, module)
        for name, module in denoiser.named_modules()
        if hasattr(module, "processor")
        and name.split(".")[-1] in names
        and name.split(".")[0].endswith(("block", "blocks", "layers"))
    )


def blocks(*names: str) -> Callable[[Module], int]:
    return lambda denoiser: sum(getattr(denoiser.config, name) for name in names)


def _cogvideox() -> Family:
    return Family(
        text={"encoder_hidden_states": 1},
        sites=named("attn1"),
        site_count=blocks("num_layers"),
        layout=Layout("first", ("CogVideoXAttnProcessor2_0",)),
        apart=lambda transformer, text: [(transformer.patch_embed, "forward", cogvideox)],
    )


def _motif_video(denoiser: Module) -> Iterator[tuple[str, Module]]:
    """Attention to image and text and, after it, to the text alone; the last blocks see no text."""
    seeing = denoiser.config.num_single_layers - denoiser.config.num_decoder_layers
    for name, module in named("attn", "cross_attn")(denoiser):
        stream, block, *_ = name.split(".")
        if stream == "transformer_blocks" or int(block) < seeing:
            yield name, module


def _motif_video_count(denoiser: Module) -> int:
    config = denoiser.config
    single = config.num_single_layers - config.num_decoder_layers
    both = [
        (config.num_layers, config.enable_text_cross_attention_dual),
        (single, config.enable_text_cross_attention_single),
    ]
    return sum(layers * (2 if cross else 1) for layers, cross in both)


def _anyflow(**more: Any) -> Family:
    return Family(
        text={"encoder_hidden_states": 1},
        sites=named("attn2"),
        site_count=blocks("num_layers"),
        layout=Layout("cross", ("AnyFlowCrossAttnProcessor",)),
        unknown=("encoder_hidden_states_image",),  # no pipeline gives one: an image goes before the frames to be drawn
        **more,
    )


def _anyflow_fills_cache(arguments: Mapping[str, Any]) -> bool:
    return bool((arguments.get("kv_cache_flag") or {}).get("is_cache_step"))


GENERIC_FAMILIES: dict[str, Family] = {
    "CogView4Transformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=named("attn1"),
        site_count=blocks("num_layers"),
        layout=Layout("first", ("CogView4AttnProcessor",)),
        two_calls=True,
        unknown=("attention_mask",),
    ),
    "GlmImageTransformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=named("attn1"),
        site_count=blocks("num_layers"),
        layout=Layout("first", ("GlmImageAttnProcessor",)),
        two_calls=True,
        unknown=("attention_mask",),
    ),
    "CogView3PlusTransformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=named("attn1"),
        site_count=blocks("num_layers"),
        layout=Layout("first", ("CogVideoXAttnProcessor2_0",)),
    ),
    "AllegroTransformer3DModel": Family(
        text={"encoder_hidden_states": -2},  # [B, T, C], or [B, 1, T, C] by its pipeline
        masks=("encoder_attention_mask",),
        sites=named("attn2"),
        site_count=blocks("num_layers"),
        layout=Layout("cross", ("AllegroAttnProcessor2_0",), masks=True),
    ),
    "CogVideoXTransformer3DModel": _cogvideox(),
    "AuraFlowTransformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=named("attn"),
        site_count=blocks("num_mmdit_layers", "num_single_dit_layers"),
        layout=Layout("first", ("AuraFlowAttnProcessor2_0",), own_tokens=8),
        apart=lambda transformer, text: [(transformer.context_embedder, "forward", auraflow(transformer))],
    ),
    "BriaTransformer2DModel": Family(
        text=FLUX_LIKE,
        sites=named("attn"),
        site_count=blocks("num_layers", "num_single_layers"),
        layout=Layout("first", ("BriaAttnProcessor",)),
    ),
    "BriaFiboTransformer2DModel": Family(
        text=FLUX_LIKE | {"text_encoder_layers": 1},
        masks=("joint_attention_kwargs.attention_mask",),
        masks_for_image=True,
        hard_masks=True,
        sites=named("attn"),
        site_count=blocks("num_layers", "num_single_layers"),
        layout=Layout("first", ("BriaFiboAttnProcessor", "BriaAttnProcessor"), masks=True),
    ),
    "HiDreamImageTransformer2DModel": Family(
        text={"encoder_hidden_states_t5": 1, "encoder_hidden_states_llama3": 2},
        parts=(("encoder_hidden_states_t5", None), *(("encoder_hidden_states_llama3", None),) * 2),
        sites=named("attn1"),
        site_count=blocks("num_layers", "num_single_layers"),
        layout=Layout("last", ("HiDreamAttnProcessor",)),
        timestep="timesteps",
    ),
    "HunyuanImageTransformer2DModel": Family(
        text={"encoder_hidden_states": 1, "encoder_hidden_states_2": 1},
        parts=(
            ("encoder_hidden_states_2", "encoder_attention_mask_2"),
            ("encoder_hidden_states", "encoder_attention_mask"),
        ),
        hard_masks=True,
        sites=named("attn"),
        site_count=blocks("num_layers", "num_single_layers"),
        layout=Layout("last", ("HunyuanImageAttnProcessor",), masks=True),
        apart=lambda transformer, text: [(transformer.context_embedder, "forward", hunyuan_image)],
        two_calls=True,
    ),
    "HunyuanVideo15Transformer3DModel": Family(
        text={"encoder_hidden_states": 1, "encoder_hidden_states_2": 1},
        parts=(
            ("encoder_hidden_states_2", "encoder_attention_mask_2"),
            ("encoder_hidden_states", "encoder_attention_mask"),
            ("image_embeds", None),
        ),
        hides_zeros=True,
        hard_masks=True,
        sites=named("attn"),
        site_count=blocks("num_layers"),
        layout=Layout("last", ("HunyuanVideo15AttnProcessor2_0",), masks=True),
        apart=lambda transformer, text: [(transformer.context_embedder, "forward", hunyuan_image)],
        two_calls=True,
    ),
    "HunyuanVideoFramepackTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        parts=(("image_embeds", None), ("encoder_hidden_states", "encoder_attention_mask")),
        hard_masks=True,
        sites=named("attn"),
        site_count=blocks("num_layers", "num_single_layers"),
        layout=Layout("last", ("HunyuanVideoAttnProcessor2_0",), masks=True),
        apart=lambda transformer, text: [(transformer.context_embedder, "forward", framepack)],
        two_calls=True,
        by_timestep=True,
    ),
    "MochiTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        hard_masks=True,
        sites=named("attn1"),
        site_count=blocks("num_layers"),
        layout=Layout("last", ("MochiAttnProcessor2_0",), row_by_row=True),
        apart=lambda transformer, text: [(transformer.time_embed, "forward", mochi(transformer))],
    ),
    "Lumina2Transformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        hard_masks=True,
        sites=named("attn"),
        site_count=blocks("num_layers"),
        layout=Layout("first", ("Lumina2AttnProcessor2_0",)),
        apart=lambda transformer, text: lumina2(transformer),
        two_calls=True,
    ),
    "LongCatImageTransformer2DModel": Family(
        text=FLUX_LIKE,
        sites=named("attn"),
        site_count=blocks("num_layers", "num_single_layers"),
        layout=Layout("first", ("LongCatImageAttnProcessor",)),
        two_calls=True,
    ),
    "OvisImageTransformer2DModel": Family(
        text=FLUX_LIKE,
        sites=named("attn"),
        site_count=blocks("num_layers", "num_single_layers"),
        layout=Layout("first", ("OvisImageAttnProcessor",)),
        two_calls=True,
    ),
    "Krea2Transformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        hard_masks=True,
        sites=named("attn"),
        site_count=blocks("num_layers"),
        layout=Layout("first", ("Krea2AttnProcessor",), masks=True),
        exact="float64, float32; before the gate",
        apart=lambda transformer, text: krea2(transformer),
        two_calls=True,
    ),
    "PRXTransformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("attention_mask",),
        hard_masks=True,
        sites=named("attention"),
        site_count=blocks("depth"),
        layout=Layout("keys", ("PRXAttnProcessor2_0",), masks=True),
    ),
    "ErnieImageTransformer2DModel": Family(
        text={"text_bth": 1},
        masks=("text_lens",),
        hard_masks=True,
        sites=named("self_attention"),
        site_count=blocks("num_layers"),
        layout=Layout("last", ("ErnieImageSingleStreamAttnProcessor",), masks=True),
        apart=lambda transformer, text: [(transformer.pos_embed, "forward", ernie_image)],
        negative_call={"use_pe": False},  # a language model that enhances prompts
    ),
    "NucleusMoEImageTransformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_hidden_states_mask",),
        hard_masks=True,
        sites=named("attn"),
        site_count=blocks("num_layers"),
        layout=Layout("last keys", ("NucleusMoEAttnProcessor2_0",), masks=True),
        apart=lambda transformer, text: [(transformer.pos_embed, "forward", numbered_anew)],
        two_calls=True,
    ),
    "JoyImageEditTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=named("attn"),
        site_count=blocks("num_layers"),
        layout=Layout("last", ("JoyImageAttnProcessor",)),
        apart=lambda transformer, text: [(transformer, "get_rotary_pos_embed", numbered_anew)],
        two_calls=True,
    ),
    "JoyImageEditPlusTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_hidden_states_mask",),
        hard_masks=True,
        sites=named("attn"),
        site_count=blocks("num_layers"),
        layout=Layout("last", ("JoyImageEditPlusAttnProcessor",), masks=True),
        apart=lambda transformer, text: joy_image_plus(transformer),
    ),
    "LuminaNextDiT2DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_mask",),
        sites=named("attn2"),
        site_count=blocks("num_layers"),
        layout=Layout("cross", ("LuminaAttnProcessor2_0",), masks=True),
        exact="float64, float32; before the gate",
        apart=lambda transformer, text: [(transformer.time_caption_embed, "forward", lumina_next)],
        prompt_first=True,
    ),
    "CosmosTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=named("attn2"),
        site_count=blocks("num_layers"),
        layout=Layout("cross", ("CosmosAttnProcessor2_0",)),
        two_calls=True,
        unknown=("attention_mask",),
    ),
    "SanaVideoTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        sites=named("attn2"),
        site_count=blocks("num_layers"),
        layout=Layout("cross", ("SanaAttnProcessor2_0",), masks=True),
        negative_call={"complex_human_instruction": None},
    ),
    "SanaWMTransformer3DModel": Family(
        text={"encoder_hidden_states": -2},  # [B, 1, T, C]
        masks=("mask",),
        hard_masks=True,
        sites=named("cross_attn"),
        site_count=blocks("num_layers"),
        layout=Layout("cross", ("SanaWMCrossAttnProcessor",), masks=True),
        exact="float32 (no float64)",
        negative_call={"chi_prompt": [""]},  # as SANA's instruction to enhance prompts
        unknown=("encoder_attention_mask",),
    ),
    "HeliosTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=named("attn2"),
        site_count=blocks("num_layers"),
        layout=Layout("cross", ("HeliosAttnProcessor",)),
        two_calls=True,
        by_timestep=True,
    ),
    "ConsisIDTransformer3DModel": _cogvideox(),
    "EasyAnimateTransformer3DModel": Family(
        text={"encoder_hidden_states": 1, "encoder_hidden_states_t5": 1},
        parts=(("encoder_hidden_states", None), ("encoder_hidden_states_t5", None)),
        sites=named("attn1"),
        site_count=blocks("num_layers"),
        layout=Layout("first", ("EasyAnimateAttnProcessor2_0",)),
    ),
    "MotifVideoTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        parts=(("image_embeds", None), ("encoder_hidden_states", "encoder_attention_mask")),
        hard_masks=True,
        sites=_motif_video,
        site_count=_motif_video_count,
        layout=(
            Layout("last", ("MotifVideoAttnProcessor2_0",), masks=True),
            Layout("cross", ("MotifVideoCrossAttnProcessor2_0",), masks=True, last_part=True),
        ),
        exact="float32 (no float64)",
        two_calls=True,
    ),
    "Kandinsky6Transformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        hard_masks=True,
        sites=named("cross_attention"),
        site_count=lambda transformer: 2 * transformer.config.num_visual_blocks,
        idle={"audio_hidden_states": "audio_dec_block"},
        layout=Layout("cross", ("Kandinsky6AttnProcessor",), masks=True),
        exact="float32 (no float64)",
        apart=lambda transformer, text: kandinsky6(transformer),
        negative_call={"expand_prompts": False},  # a language model writes a story around a prompt
        two_calls=True,
    ),
    "AnyFlowTransformer3DModel": _anyflow(),
    "AnyFlowFARTransformer3DModel": _anyflow(by_timestep=True, fills_cache=_anyflow_fills_cache),
    "HunyuanDiT2DModel": Family(
        text={
            "encoder_hidden_states": 1,
            "text_embedding_mask": 1,  # of embeddings that stand in for padding: attention sees all of them
            "encoder_hidden_states_t5": 1,
            "text_embedding_mask_t5": 1,
        },
        parts=(("encoder_hidden_states", None), ("encoder_hidden_states_t5", None)),
        sites=named("attn2"),
        site_count=blocks("num_layers"),
        layout=Layout("cross", ("HunyuanAttnProcessor2_0", "FusedHunyuanAttnProcessor2_0")),
        apart=lambda transformer, text: hunyuan_dit(transformer),
    ),
    "LatteTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=named("attn2"),  # the blocks between frames have none
        site_count=blocks("num_layers"),
        layout=Layout("cross", ("AttnProcessor2_0",), by_frame=True),
        unknown=("encoder_attention_mask",),
    ),
    "Kandinsky5Transformer3DModel": Family(
        text={"encoder_hidden_states": 1, "text_rope_pos": -1},
        sites=named("cross_attention"),
        site_count=blocks("num_visual_blocks"),
        layout=Layout("cross", ("Kandinsky5AttnProcessor",)),
        exact="float32 (no float64)",
        apart=lambda transformer, text: [(x, "forward", kandinsky) for x in transformer.text_transformer_blocks],
        two_calls=True,
    ),
}
