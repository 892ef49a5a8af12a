# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""SANA and SANA-Sprint, SANA-Video and SANA-WM."""

from diffusers.models.transformers.sana_transformer import SanaAttnProcessor2_0
from torch import Tensor

from nag_kernels import published

from ..attention.base import Layer, PackedText, heads
from ..attention.cross import NAGAttnProcessor2_0
from ..attention.generic import Layout
from .layers import cross_attentions, layers_named, sum_of
from .spec import ModelSpec


class NAGSanaAttnProcessor2_0(NAGAttnProcessor2_0):
    """Guided cross-attention for SANA and SANA-Sprint, instead of `SanaAttnProcessor2_0`.

    As `NAGAttnProcessor2_0`, but for the norms of query and key, which SANA takes over all heads together.
    """

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.375,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain = SanaAttnProcessor2_0()

    def _stock(self, attn: Layer, *call: Tensor | None) -> Tensor:
        return self._plain(attn, *call[:-1])  # without temb, which it does not take

    def _project_image(self, attn: Layer, hidden_states: Tensor) -> Tensor:
        query = attn.to_q(hidden_states)
        return heads(attn, query if attn.norm_q is None else attn.norm_q(query))

    def _project_text(self, attn: Layer, text: Tensor) -> tuple[Tensor, Tensor]:
        key = attn.to_k(text)
        return heads(attn, key if attn.norm_k is None else attn.norm_k(key)), heads(attn, attn.to_v(text))


MODELS: dict[str, ModelSpec] = {
    "SanaTransformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        layers=cross_attentions,
        layer_count=lambda transformer: transformer.config.num_layers,
        processors={SanaAttnProcessor2_0: NAGSanaAttnProcessor2_0},
        settings=lambda transformer: published.SANA,
        negative_call={"complex_human_instruction": None},  # an instruction to enhance prompts, not for negatives
        keeps_text=True,
    ),
    "SanaVideoTransformer3DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        layers=layers_named("attn2"),
        layer_count=sum_of("num_layers"),
        layout=Layout("cross", ("SanaAttnProcessor2_0",), masks=True),
        negative_call={"complex_human_instruction": None},
    ),
    "SanaWMTransformer3DModel": ModelSpec(
        text={"encoder_hidden_states": -2},  # [B, 1, T, C]
        masks=("mask",),
        hard_masks=True,
        layers=layers_named("cross_attn"),
        layer_count=sum_of("num_layers"),
        layout=Layout("cross", ("SanaWMCrossAttnProcessor",), masks=True),
        exact="float32 (no float64)",
        negative_call={"chi_prompt": [""]},  # as SANA's instruction to enhance prompts
        must_be_none=("encoder_attention_mask",),
    ),
}
