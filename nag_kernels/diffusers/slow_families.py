# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The part of the table of families that goes the slow route: their texts cannot be packed, and the model runs twice
(`two_runs`)."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from torch.nn import Module

from .family import Family
from .generic_families import blocks, named
from .two_runs import Beside


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


def _whole(denoiser: Module, arguments: Mapping[str, Any], length: int) -> slice:
    """All of it is drawn: the text is elsewhere."""
    return slice(0, length)


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


def _first_cosmos3(denoiser: Module) -> str | None:
    if "return_dict" not in inspect.signature(type(denoiser).forward).parameters:
        return "the first form of Cosmos 3 in diffusers (0.39) calls its model otherwise: take a newer diffusers"
    return None


_COSMOS3_PLACES = [f"{x}_{of}_indexes" for x in ("vision", "sound", "action") for of in ("sequence", "mse_loss")]

SLOW_FAMILIES: dict[str, Family] = {
    "QwenImage21Transformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=named("attn"),
        site_count=blocks("num_layers"),
        beside=Beside(
            text=("encoder_hidden_states", "encoder_hidden_states_mask", "img_mask"),
            image=_last_image,
            fixed={"kv_cache": None, "kv_cache_mode": None},  # what it would hold is the prompt's
        ),
        two_calls=True,
    ),
    "Cosmos3OmniTransformer": Family(
        text={"input_ids": 0},
        sites=named("self_attn"),
        site_count=blocks("num_hidden_layers"),
        beside=Beside(
            text=("input_ids", "text_indexes", "position_ids", "und_len", "sequence_length", *_COSMOS3_PLACES),
            image=_whole,
            layer=lambda site: site.to_add_out,
        ),
        negative_call={"add_resolution_template": False, "add_duration_template": False},
        two_calls=True,
        timestep="vision_timesteps",
        refuse=_first_cosmos3,
    ),
    "BriaFibo2Transformer2DModel": Family(
        text={"encoder_hidden_states": 2},
        sites=named("attention", "cross_attention"),
        site_count=lambda denoiser: denoiser.config.n_layers + len(denoiser.config.injection_layer_ids),
        beside=Beside(text=("encoder_hidden_states", "encoder_attention_mask"), image=_image_beside_gist),
        two_calls=True,
    ),
    "OmniGenTransformer2DModel": Family(
        text={"input_ids": 1},
        sites=named("self_attn"),
        site_count=blocks("num_layers"),
        beside=Beside(
            text=("input_ids", "input_image_sizes", "attention_mask", "position_ids"), image=_image_to_be_drawn
        ),
        prompt_first=True,
        cfg_above=-math.inf,  # it always has it
    ),
    "Ideogram4Transformer2DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=named("attention"),
        site_count=blocks("num_layers"),
        beside=Beside(
            text=("encoder_hidden_states", "position_ids", "segment_ids", "indicator"), image=_indicated_image
        ),
        two_calls=True,  # the other is of a model of its own
    ),
}
