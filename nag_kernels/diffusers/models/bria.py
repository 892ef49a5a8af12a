# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Bria 3.2, FIBO and FIBO 2."""

from collections.abc import Mapping
from typing import Any

from ..attention.dual_forward import DualForward
from ..attention.generic import Layout
from ..denoiser_calls import Denoiser
from .layers import FLUX_LIKE, layers_named, sum_of
from .spec import ModelSpec


def _image_beside_gist(denoiser: Denoiser, arguments: Mapping[str, Any], length: int) -> slice:
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


MODELS: dict[str, ModelSpec] = {
    "BriaTransformer2DModel": ModelSpec(
        text=FLUX_LIKE,
        layers=layers_named("attn"),
        layer_count=sum_of("num_layers", "num_single_layers"),
        layout=Layout("first", ("BriaAttnProcessor",)),
    ),
    "BriaFiboTransformer2DModel": ModelSpec(
        text=FLUX_LIKE | {"text_encoder_layers": 1},
        masks=("joint_attention_kwargs.attention_mask",),
        masks_for_image=True,
        hard_masks=True,
        layers=layers_named("attn"),
        layer_count=sum_of("num_layers", "num_single_layers"),
        layout=Layout("first", ("BriaFiboAttnProcessor", "BriaAttnProcessor"), masks=True),
    ),
    "BriaFibo2Transformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 2},
        layers=layers_named("attention", "cross_attention"),
        layer_count=lambda denoiser: denoiser.config.n_layers + len(denoiser.config.injection_layer_ids),
        dual_forward=DualForward(text=("encoder_hidden_states", "encoder_attention_mask"), image=_image_beside_gist),
        two_calls=True,
    ),
}
