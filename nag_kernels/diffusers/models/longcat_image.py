# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""LongCat-Image."""

from ..attention.generic import Layout
from .layers import FLUX_LIKE, layers_named, sum_of
from .spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    "LongCatImageTransformer2DModel": ModelSpec(
        text=FLUX_LIKE,
        layers=layers_named("attn"),
        layer_count=sum_of("num_layers", "num_single_layers"),
        layout=Layout("first", ("LongCatImageAttnProcessor",)),
        two_calls=True,
    ),
}
