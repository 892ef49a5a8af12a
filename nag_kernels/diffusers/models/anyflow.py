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


class AnyFlow(ModelSpec):
    def timesteps_taken(self, pipe: Any, arguments: Mapping[str, Any]) -> range | None:
        """The pipelines leave out a timestep that is the next one as well: the last, where the given sigmas end with 0."""
        if not any(kind.__name__ in ("AnyFlowPipeline", "AnyFlowFARPipeline") for kind in type(pipe).__mro__):
            return None
        scheduler = pipe.scheduler
        following = scheduler.sigmas[1:] * scheduler.config.num_train_timesteps
        stays = (scheduler.timesteps == following).tolist()
        taken = len(stays)
        while taken > 1 and stays[taken - 1]:
            taken -= 1
        return range(taken)


class AnyFlowFAR(AnyFlow):
    def fills_cache(self, arguments: Mapping[str, Any]) -> bool:
        return bool((arguments.get("kv_cache_flag") or {}).get("is_cache_step"))


MODELS: dict[str, ModelSpec] = {
    "AnyFlowTransformer3DModel": _anyflow(AnyFlow),
    "AnyFlowFARTransformer3DModel": _anyflow(AnyFlowFAR, by_timestep=True),
}
