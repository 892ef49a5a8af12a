# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""HunyuanDiT."""

from typing import Any

import torch

from ..attention.generic import Layout
from ..attention.text_modules import TextModule
from ..denoiser_calls import Denoiser, forward_parameters
from .layers import layers_named, sum_of
from .spec import ModelSpec


def hunyuan_dit(model: Denoiser) -> list[TextModule]:
    """HunyuanDiT accepts one prompt length only, replaces padding by learned embeddings, and adds a pooled prompt to its timestep
    embedding.

    So both prompts go through it as a batch, [text+ of all rows, text- of all rows]. In the blocks they lie along the sequence
    again. The timestep embedding is that of text+.
    """
    names = (("encoder_hidden_states", "text_embedding_mask"), ("encoder_hidden_states_t5", "text_embedding_mask_t5"))

    order = forward_parameters(model)  # now: torch.compile cannot look them up within the call

    def enter(forward, text, *args, **named):
        arguments = dict(zip(order, args, strict=False)) | named
        for of_part, (positive, negative) in zip(names, text.parts, strict=True):
            if positive != negative:
                raise ValueError(
                    f"guide: {of_part[0]} must have {positive} tokens for the negative as for the prompt, got {negative}: this "
                    "model knows texts of one length alone"
                )
            arguments |= {name: torch.cat(arguments[name].chunk(2, dim=1)) for name in of_part}
        by_place = order[: len(args)]
        return forward(*(arguments[name] for name in by_place),
                       **{name: x for name, x in arguments.items() if name not in by_place})  # fmt: skip

    def embed(forward, text, timestep, both, *sizes, **options):
        return forward(timestep, both.chunk(2)[0], *sizes, **options)

    def attend(forward, text, hidden_states, encoder_hidden_states: Any = None, **options):
        packed = torch.cat(encoder_hidden_states.chunk(2), dim=1)
        return forward(hidden_states, encoder_hidden_states=packed, **options)

    blocks = [(block, "forward", attend) for block in model.blocks]
    return [(model, "forward", enter), (model.time_extra_emb, "forward", embed), *blocks]


MODELS: dict[str, ModelSpec] = {
    "HunyuanDiT2DModel": ModelSpec(
        text={
            "encoder_hidden_states": 1,
            "text_embedding_mask": 1,  # of embeddings that stand in for padding: attention sees all of them
            "encoder_hidden_states_t5": 1,
            "text_embedding_mask_t5": 1,
        },
        concatenated=(("encoder_hidden_states", None), ("encoder_hidden_states_t5", None)),
        layers=layers_named("attn2"),
        layer_count=sum_of("num_layers"),
        layout=Layout("cross", ("HunyuanAttnProcessor2_0", "FusedHunyuanAttnProcessor2_0")),
        text_modules=lambda transformer: hunyuan_dit(transformer),
    ),
}
