# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Helios."""

from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import Family

MODELS: dict[str, Family] = {
    "HeliosTransformer3DModel": Family(
        text={"encoder_hidden_states": 1},
        sites=layers_named("attn2"),
        site_count=sum_of("num_layers"),
        layout=Layout("cross", ("HeliosAttnProcessor",)),
        two_calls=True,
        by_timestep=True,
    ),
}
