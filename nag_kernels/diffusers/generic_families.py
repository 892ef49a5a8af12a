# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The part of the table of families that goes the generic route, by the model's own processors, of which only the call of
attention is replaced (`rebound_processor`), or the slow one (`two_runs`)."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.nn import Module

from .family import Family
from .rebound_processor import Layout
from .texts_apart import auraflow, cogvideox, framepack, hunyuan_dit, hunyuan_image, kandinsky, krea2, lumina2, mochi
from .two_runs import Beside

FLUX_LIKE = {"encoder_hidden_states": 1, "txt_ids": -2}


def _named(*names: str) -> Callable[[Module], Iterator[tuple[str, Module]]]:
    """Attention layers by the last part of their name, outside of whatever comes before the blocks of the model itself."""
    return lambda denoiser: (
        (name, module)
        for name, module in denoiser.named_modules()
        if hasattr(module, "processor")
        and name.split(".")[-1] in names
        and name.split(".")[0].endswith(("blocks", "layers"))
    )


def _blocks(*names: str) -> Callable[[Module], int]:
    return lambda denoiser: sum(getattr(denoiser.config, name) for name in names)


def _last_image(denoiser: Module, arguments: Mapping[str, Any], length: int) -> slice:
    return slice(length - math.prod(arguments["img_shapes"][0][-1]), length)


def _indicated_image(denoiser: Module, arguments: Mapping[str, Any], length: int) -> slice:
    shown = arguments["indicator"] == 2  # tokens of the image to be drawn, at the end of each row
    image = int(shown[0].sum())
    if not bool(shown[:, length - image :].all()) or bool(shown[:, : length - image].any()):
        raise ValueError("guide: indicator must show the image at the end of each row, equally long in all")
    return slice(length - image, length)


def _image_to_be_drawn(denoiser: Module, arguments: Mapping[str, Any], length: int) -> slice:
    height, width = arguments["hidden_states"].shape[-2:]
    return slice(length - height * width // denoiser.config.patch_size**2, length)


def _image_beside_gist(denoiser: Module, arguments: Mapping[str, Any], length: int) -> slice:
    """FIBO 2 makes of each text a number of tokens by its length; where these differ in a batch they come last."""
    from diffusers.models.transformers.transformer_bria_fibo2 import compute_gist_count  # younger than diffusers 0.41

    config, (rows, _, tokens, _) = denoiser.config, arguments["encoder_hidden_states"].shape
    mask = arguments.get("encoder_attention_mask")
    lengths = [tokens] * rows if mask is None else mask.sum(dim=1).tolist()
    counts = compute_gist_count(
        lengths, config.min_num_gist_tokens, config.max_num_gist_tokens, config.gist_step, config.gist_min_text_len,
        config.gist_max_text_len,
    )  # fmt: skip
    height, width = arguments["hidden_states"].shape[-2:]
    start = 0 if min(counts) < max(counts) else max(counts)
    return slice(start, start + height * width // config.patch_size**2)


def _anyflow(**more: Any) -> Family:
    return Family(
        text={"encoder_hidden_states": 1},
        sites=_named("attn2"),
        site_count=_blocks("num_layers"),
        layout=Layout("cross", ("AnyFlowCrossAttnProcessor",)),
        unknown=("encoder_hidden_states_image",),  # no pipeline gives one: an image goes before the frames to be drawn
        **more,
    )


def _anyflow_fills_cache(arguments: Mapping[str, Any]) -> bool:
    return bool((arguments.get("kv_cache_flag") or {}).get("is_cache_step"))


def _first_cosmos3(denoiser: Module) -> str | None:
    if "return_dict" not in inspect.signature(type(denoiser).forward).parameters:
        return "the first form of Cosmos 3 in diffusers (0.39) calls its model otherwise: take a newer diffusers"
    return None


_COSMOS3_PLACES = [f"{x}_{of}_indexes" for x in ("vision", "sound", "action") for of in ("sequence", "mse_loss")]

GENERIC_FAMILIES: dict[str, Family] = {
    "CogView4Transformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=_named("attn1"),
        site_count=_blocks("num_layers"),
        layout=Layout("first", ("CogView4AttnProcessor",)),
        two_calls=True,
        unknown=("attention_mask",),
    ),
    "GlmImageTransformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=_named("attn1"),
        site_count=_blocks("num_layers"),
        layout=Layout("first", ("GlmImageAttnProcessor",)),
        two_calls=True,
        unknown=("attention_mask",),
    ),
    "CogView3PlusTransformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=_named("attn1"),
        site_count=_blocks("num_layers"),
        layout=Layout("first", ("CogVideoXAttnProcessor2_0",)),
    ),
    "AllegroTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        sites=_named("attn2"),
        site_count=_blocks("num_layers"),
        layout=Layout("cross", ("AllegroAttnProcessor2_0",), masks=True),
    ),
    "CogVideoXTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=_named("attn1"),
        site_count=_blocks("num_layers"),
        layout=Layout("first", ("CogVideoXAttnProcessor2_0",)),
        apart=lambda transformer, text: [(transformer.patch_embed, "forward", cogvideox)],
    ),
    "AuraFlowTransformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=_named("attn"),
        site_count=_blocks("num_mmdit_layers", "num_single_dit_layers"),
        layout=Layout("first", ("AuraFlowAttnProcessor2_0",), own_tokens=8),
        apart=lambda transformer, text: [(transformer.context_embedder, "forward", auraflow(transformer))],
    ),
    "BriaTransformer2DModel": Family(
        text=FLUX_LIKE,
        sites=_named("attn"),
        site_count=_blocks("num_layers", "num_single_layers"),
        layout=Layout("first", ("BriaAttnProcessor",)),
    ),
    "BriaFiboTransformer2DModel": Family(
        text=FLUX_LIKE | {"text_encoder_layers": 1},
        masks=("joint_attention_kwargs.attention_mask",),
        masks_for_image=True,
        hard_masks=True,
        sites=_named("attn"),
        site_count=_blocks("num_layers", "num_single_layers"),
        layout=Layout("first", ("BriaFiboAttnProcessor", "BriaAttnProcessor"), masks=True),
    ),
    "HiDreamImageTransformer2DModel": Family(
        text={"encoder_hidden_states_t5": 1, "encoder_hidden_states_llama3": 2},
        parts=(("encoder_hidden_states_t5", None), *(("encoder_hidden_states_llama3", None),) * 2),
        sites=_named("attn1"),
        site_count=_blocks("num_layers", "num_single_layers"),
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
        sites=_named("attn"),
        site_count=_blocks("num_layers", "num_single_layers"),
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
        sites=_named("attn"),
        site_count=_blocks("num_layers"),
        layout=Layout("last", ("HunyuanVideo15AttnProcessor2_0",), masks=True),
        apart=lambda transformer, text: [(transformer.context_embedder, "forward", hunyuan_image)],
        two_calls=True,
    ),
    "HunyuanVideoFramepackTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        parts=(("image_embeds", None), ("encoder_hidden_states", "encoder_attention_mask")),
        hard_masks=True,
        sites=_named("attn"),
        site_count=_blocks("num_layers", "num_single_layers"),
        layout=Layout("last", ("HunyuanVideoAttnProcessor2_0",), masks=True),
        apart=lambda transformer, text: [(transformer.context_embedder, "forward", framepack)],
        two_calls=True,
        by_timestep=True,
    ),
    "MochiTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        hard_masks=True,
        sites=_named("attn1"),
        site_count=_blocks("num_layers"),
        layout=Layout("last", ("MochiAttnProcessor2_0",), row_by_row=True),
        apart=lambda transformer, text: [(transformer.time_embed, "forward", mochi(transformer))],
    ),
    "Lumina2Transformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        hard_masks=True,
        sites=_named("attn"),
        site_count=_blocks("num_layers"),
        layout=Layout("first", ("Lumina2AttnProcessor2_0",)),
        apart=lambda transformer, text: lumina2(transformer),
        two_calls=True,
    ),
    "LongCatImageTransformer2DModel": Family(
        text=FLUX_LIKE,
        sites=_named("attn"),
        site_count=_blocks("num_layers", "num_single_layers"),
        layout=Layout("first", ("LongCatImageAttnProcessor",)),
        two_calls=True,
    ),
    "OvisImageTransformer2DModel": Family(
        text=FLUX_LIKE,
        sites=_named("attn"),
        site_count=_blocks("num_layers", "num_single_layers"),
        layout=Layout("first", ("OvisImageAttnProcessor",)),
        two_calls=True,
    ),
    "Krea2Transformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        hard_masks=True,
        sites=_named("attn"),
        site_count=_blocks("num_layers"),
        layout=Layout("first", ("Krea2AttnProcessor",), masks=True),
        exact="float64, float32; before the gate",
        apart=lambda transformer, text: krea2(transformer),
        two_calls=True,
    ),
    "PRXTransformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("attention_mask",),
        hard_masks=True,
        sites=_named("attention"),
        site_count=_blocks("depth"),
        layout=Layout("keys", ("PRXAttnProcessor2_0",), masks=True),
    ),
    "CosmosTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=_named("attn2"),
        site_count=_blocks("num_layers"),
        layout=Layout("cross", ("CosmosAttnProcessor2_0",)),
        two_calls=True,
        unknown=("attention_mask",),
    ),
    "SanaVideoTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        sites=_named("attn2"),
        site_count=_blocks("num_layers"),
        layout=Layout("cross", ("SanaAttnProcessor2_0",), masks=True),
        negative_call={"complex_human_instruction": None},
    ),
    "HeliosTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=_named("attn2"),
        site_count=_blocks("num_layers"),
        layout=Layout("cross", ("HeliosAttnProcessor",)),
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
        sites=_named("attn2"),
        site_count=_blocks("num_layers"),
        layout=Layout("cross", ("HunyuanAttnProcessor2_0", "FusedHunyuanAttnProcessor2_0")),
        apart=lambda transformer, text: hunyuan_dit(transformer),
    ),
    "LatteTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=_named("attn2"),  # the blocks between frames have none
        site_count=_blocks("num_layers"),
        layout=Layout("cross", ("AttnProcessor2_0",), by_frame=True),
        unknown=("encoder_attention_mask",),
    ),
    "StableAudioDiTModel": Family(
        text={"encoder_hidden_states": 1},  # and the length of the sound after it
        sites=_named("attn2"),
        site_count=_blocks("num_layers"),
        layout=Layout("cross", ("StableAudioAttnProcessor2_0",)),
        unknown=("attention_mask", "encoder_attention_mask"),
    ),
    "QwenImage21Transformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=_named("attn"),
        site_count=_blocks("num_layers"),
        beside=Beside(
            text=("encoder_hidden_states", "encoder_hidden_states_mask", "img_mask"),
            image=_last_image,
            fixed={"kv_cache": None, "kv_cache_mode": None},  # what it would hold is the prompt's
        ),
        two_calls=True,
    ),
    "Cosmos3OmniTransformer": Family(
        text={"input_ids": 0},
        sites=_named("self_attn"),
        site_count=_blocks("num_hidden_layers"),
        beside=Beside(
            text=("input_ids", "text_indexes", "position_ids", "und_len", "sequence_length", *_COSMOS3_PLACES),
            image=lambda denoiser, arguments, length: slice(0, length),  # all that is drawn, without the text
            layer=lambda site: site.to_add_out,
        ),
        negative_call={"add_resolution_template": False, "add_duration_template": False},
        two_calls=True,
        timestep="vision_timesteps",
        refuse=_first_cosmos3,
    ),
    "BriaFibo2Transformer2DModel": Family(
        text={"encoder_hidden_states": 2},
        sites=_named("attention", "cross_attention"),
        site_count=lambda denoiser: denoiser.config.n_layers + len(denoiser.config.injection_layer_ids),
        beside=Beside(text=("encoder_hidden_states", "encoder_attention_mask"), image=_image_beside_gist),
        two_calls=True,
    ),
    "OmniGenTransformer2DModel": Family(
        text={"input_ids": 1},
        sites=_named("self_attn"),
        site_count=_blocks("num_layers"),
        beside=Beside(
            text=("input_ids", "input_image_sizes", "attention_mask", "position_ids"), image=_image_to_be_drawn
        ),
        prompt_first=True,
        cfg_above=-math.inf,  # it always has it
    ),
    "Ideogram4Transformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=_named("attention"),
        site_count=_blocks("num_layers"),
        beside=Beside(
            text=("encoder_hidden_states", "position_ids", "segment_ids", "indicator"), image=_indicated_image
        ),
        two_calls=True,  # the other is of a model of its own
    ),
    "Kandinsky5Transformer3DModel": Family(
        text={"encoder_hidden_states": 1, "text_rope_pos": -1},
        sites=_named("cross_attention"),
        site_count=_blocks("num_visual_blocks"),
        layout=Layout("cross", ("Kandinsky5AttnProcessor",)),
        exact="float32 (no float64)",
        apart=lambda transformer, text: [(x, "forward", kandinsky) for x in transformer.text_transformer_blocks],
        two_calls=True,
    ),
}
