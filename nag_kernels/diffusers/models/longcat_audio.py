# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""LongCat-Audio."""

import torch
from torch import Tensor

from ..attention.generic import Layout
from ..attention.text_modules import TextModule, begun_anew
from ..denoiser_calls import Denoiser
from .layers import layers_named, sum_of
from .spec import ModelSpec


def longcat_audio(model: Denoiser) -> list[TextModule]:
    """Convolutions along the text, its numbers, and a mean of it that is a part of the time: of text+."""
    known: dict[str, Tensor] = {}

    def keep_time(forward, text, *call):
        known["time"] = forward(*call)
        return known["time"]

    def embed(forward, text, x, mask):
        known["mask"] = text.split(mask)[0]
        known["text"] = forward(x, mask)
        return known["text"]

    def convolve(forward, text, x):
        known["text"] = torch.cat([forward(each) for each in text.split(x)], dim=1)
        return known["text"]

    def with_mean(forward, text, *call):
        seen = known["mask"][..., None]
        mean = (text.split(known["text"])[0] * seen).sum(1) / seen.sum(1).clamp(min=1)
        return forward(*call[:-1], known["time"] + mean)

    def attend(forward, text, *, prompt_rotary_emb, **options):
        return forward(prompt_rotary_emb=tuple(begun_anew(x, text) for x in prompt_rotary_emb), **options)

    local = model.config.adaln_type == "local"
    of_time = [block.adaln_mlp for block in model.blocks] if local else [model.adaln_global_mlp, model.norm_out]
    parts: list[TextModule]
    parts = [(model.time_embed, "forward", keep_time), (model.text_embed, "forward", embed)]
    parts += [(block.cross_attn, "forward", attend) for block in model.blocks]
    if model.config.text_conv:
        parts.append((model.text_conv_layer, "forward", convolve))
    if model.config.adaln_use_text_cond:
        parts += [(layer, "forward", with_mean) for layer in of_time]
    return parts


MODELS: dict[str, ModelSpec] = {
    "LongCatAudioDiTTransformer": ModelSpec(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        hard_masks=True,
        layers=layers_named("cross_attn"),
        layer_count=sum_of("dit_depth"),
        layout=Layout("cross", ("AudioDiTCrossAttnProcessor",), masks=True),
        text_modules=lambda transformer: longcat_audio(transformer),
        two_calls=True,
    ),
}
