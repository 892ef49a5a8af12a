# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""AnyFlow."""

from collections.abc import Mapping
from typing import Any

from ..attention.generic import Layout
from .layers import layers_named, sum_of
from .spec import ModelSpec


def _anyflow(spec: type[ModelSpec], **more: Any) -> ModelSpec:
    return spec(
        text={"encoder_hidden_states": 1},
        layers=layers_named("attn2"),
        layer_count=sum_of("num_layers"),
        layout=Layout("cross", ("AnyFlowCrossAttnProcessor",)),
        must_be_none=(
            "encoder_hidden_states_image",
        ),  # no pipeline gives one: an image goes before the frames to be drawn
        **more,
    )


class AnyFlowFAR(ModelSpec):
    def fills_cache(self, arguments: Mapping[str, Any]) -> bool:
        return bool((arguments.get("kv_cache_flag") or {}).get("is_cache_step"))


MODELS: dict[str, ModelSpec] = {
    "AnyFlowTransformer3DModel": _anyflow(ModelSpec),
    "AnyFlowFARTransformer3DModel": _anyflow(AnyFlowFAR, by_timestep=True),
}
