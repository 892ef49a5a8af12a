# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Finding the attention layers of a denoiser by their type, name or number."""

from collections.abc import Callable, Iterator

from diffusers.models.attention_processor import Attention
from torch.nn import Module

from ..attention.base import Layer
from ..denoiser_calls import Denoiser, Modules

Layers = Iterator[tuple[str, Layer]]  # (name, layer) of each

# How FLUX.1 and its kin take the prompt: embeddings, and their position ids.
FLUX_LIKE = {"encoder_hidden_states": 1, "txt_ids": -2}


def layers_named(*names: str, kind: type[Module] = Module) -> Callable[[Modules], Layers]:
    """Attention layers (of this class) by the last part of their name, outside of whatever comes before the model's blocks."""
    return lambda modules: (
        (name, module)
        for name, module in modules.items()
        if name.rpartition(".")[2] in names
        and isinstance(module, kind)
        and hasattr(module, "processor")
        and name.split(".")[0].endswith(("block", "blocks", "layers"))
    )


def sum_of(*names: str) -> Callable[[Denoiser], int]:
    """The sum of these numbers of the model's configuration."""
    return lambda denoiser: sum(getattr(denoiser.config, name) for name in names)


def cross_attentions(modules: Modules) -> Layers:
    for name, module in modules.items():
        if isinstance(module, Attention) and (module.is_cross_attention or module.added_kv_proj_dim is not None):
            yield name, module


def joint_attentions(modules: Modules) -> Layers:
    """Those with text projections; the `attn2` of SD3.5-Medium sees the image alone."""
    for name, module in modules.items():
        if isinstance(module, Attention) and module.added_kv_proj_dim is not None:
            yield name, module


def layers_of_type(*kinds: type[Module]) -> Callable[[Modules], Layers]:
    return lambda modules: ((name, module) for name, module in modules.items() if isinstance(module, kinds))


def attentions_in(*blocks: str) -> Callable[[Modules], Layers]:
    return lambda modules: (
        (name, module)
        for name, module in modules.items()
        if isinstance(module, Attention) and name.split(".")[0] in blocks
    )


def modules_of_type(denoiser: Denoiser, name: str) -> list[Module]:
    return [module for module in denoiser.modules() if type(module).__name__ == name]
