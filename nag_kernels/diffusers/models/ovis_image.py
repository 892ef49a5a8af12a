# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Ovis-Image."""

from ..attention.generic import Layout
from .layers import FLUX_LIKE, layers_named, sum_of
from .spec import Family

MODELS: dict[str, Family] = {
    "OvisImageTransformer2DModel": Family(
        text=FLUX_LIKE,
        sites=layers_named("attn"),
        site_count=sum_of("num_layers", "num_single_layers"),
        layout=Layout("first", ("OvisImageAttnProcessor",)),
        two_calls=True,
    ),
}
