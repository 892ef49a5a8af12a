# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.3."""

from typing import Any

import torch
from torch import Tensor

from ..attention.generic import Layout
from ..attention.text_modules import TextModule
from ..denoiser_calls import Denoiser, Modules
from .layers import FLUX_LIKE, layers_named, sum_of
from .spec import ModelSpec


def _alone(
    forward: Any, text: Any, hidden_states: Tensor, temb_mod: Tensor, image_rotary_emb: tuple[Tensor, Tensor]
) -> Tensor:
    """A block in which the tokens of a text see each other."""
    parts = zip(
        text.split(hidden_states),
        text.split(temb_mod),
        zip(*(text.split(x, dim=0) for x in image_rotary_emb), strict=True),
        strict=True,
    )
    return torch.cat([forward(*part) for part in parts], dim=1)


def _text_modules(model: Denoiser) -> list[TextModule]:
    return [(block, "forward", _alone) for block in model.txt_mode_blocks]


def _joint_layers(modules: Modules) -> Any:
    return ((name, x) for name, x in layers_named("attn")(modules) if name.startswith("single_transformer_blocks."))


MODELS: dict[str, ModelSpec] = {
    "Flux3Transformer2DModel": ModelSpec(
        text=FLUX_LIKE,
        layers=_joint_layers,
        layer_count=sum_of("num_single_layers"),
        layout=Layout("first", ("Flux3AttnProcessor",)),
        text_modules=_text_modules,
        two_calls=True,
    ),
}
