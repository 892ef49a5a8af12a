# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""AudioLDM 2."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch.nn import Module

from ..attention.generic import Layout
from ..attention.text_modules import TextModule, changes_text, masks_of_part
from ..denoiser_calls import Modules, named_modules
from .layers import modules_of_type
from .spec import ModelSpec


def _layers(modules: Modules) -> Iterator[tuple[str, Module, int]]:
    """(name, layer, which text it sees). The attention layers of a block cycle through: self-attention, text 1, text 2."""
    block: Any
    for name, block in modules.items():
        widths: Any = getattr(block, "cross_attention_dim", ()) if hasattr(block, "attentions") else ()
        attentions: Any = block.attentions if widths else ()
        for i, attention in enumerate(attentions):
            turn = i % len(widths)
            for x, layer in attention.named_modules() if widths[turn] else ():
                if x.endswith("attn2") and hasattr(layer, "processor"):
                    yield f"{name}.attentions.{i}.{x}", layer, int(turn > 1)


def audioldm2(layers: Iterable[tuple[Module, int]]) -> list[TextModule]:
    """Two texts, of which each layer sees one, here beside it by its place. Where there is no second text the layers for it see
    the first, and all of it: so the model has it."""

    def of_part(place):
        @changes_text
        def attend(forward, shared, *call, **options):
            text = shared.text
            there = place < len(text.parts)
            masks = masks_of_part(text, place) if there else (None, None)
            lengths = text.parts[place if there else 0]
            shared.change(mask_positive=masks[0], mask_negative=masks[1],
                          length_positive=lengths[0], length_negative=lengths[1])  # fmt: skip
            try:
                return forward(*call, **options)
            finally:
                shared.text = text

        return attend

    return [(layer, "forward", of_part(place)) for layer, place in layers]


MODELS: dict[str, ModelSpec] = {
    "AudioLDM2UNet2DConditionModel": ModelSpec(
        text={"encoder_hidden_states": 1, "encoder_hidden_states_1": 1},
        concatenated=(
            ("encoder_hidden_states", "encoder_attention_mask"),
            ("encoder_hidden_states_1", "encoder_attention_mask_1"),
        ),
        layers=lambda modules: ((name, layer) for name, layer, _ in _layers(modules)),
        layer_count=lambda unet: sum(
            not x.double_self_attention for x in modules_of_type(unet, "BasicTransformerBlock")
        ),
        layout=Layout("cross", ("AttnProcessor2_0",), masks=True),
        text_modules=lambda unet: audioldm2((layer, place) for _, layer, place in _layers(named_modules(unet))),
    ),
}
