# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.2."""

import torch
from diffusers.models.transformers.transformer_flux2 import (
    Flux2Attention,
    Flux2AttnProcessor,
    Flux2ParallelSelfAttention,
    Flux2ParallelSelfAttnProcessor,
)
from torch import Tensor

from nag_kernels import published

from ..attention.base import Layer, PackedText, heads
from ..attention.joint import JointAttentionProcessor
from .flux import NAGFluxAttnProcessor2_0
from .layers import layers_of_type
from .spec import ModelSpec


class NAGFlux2AttnProcessor(NAGFluxAttnProcessor2_0):
    """Guided attention for the two-stream blocks of FLUX.2, instead of `Flux2AttnProcessor`.

    As `NAGFluxAttnProcessor2_0` with packed texts; there is no published transformer with a doubled batch.
    """

    _takes_doubled_batch = False

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain = Flux2AttnProcessor()

    def __call__(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


class NAGFlux2ParallelSelfAttnProcessor(JointAttentionProcessor):
    """Guided attention for the single-stream blocks of FLUX.2, instead of `Flux2ParallelSelfAttnProcessor`.

    One projection gives query, key, value and the feed-forward's input, one takes attention's and the feed-forward's output;
    between them attention is that of `NAGFluxAttnProcessor2_0` in a single-stream block, with its arguments and errors.
    """

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain = Flux2ParallelSelfAttnProcessor()

    def __call__(
        self, attn: Layer, hidden_states: Tensor, attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        if self.text is None:
            return self._plain(attn, hidden_states, attention_mask, image_rotary_emb)
        length = sum(self._lengths())
        self._check_joint(hidden_states, hidden_states[:, :length], attention_mask)
        self._count()

        projected = attn.to_qkv_mlp_proj(hidden_states)
        widths = (3 * attn.inner_dim, attn.mlp_hidden_dim * attn.mlp_mult_factor)
        width = projected.shape[-1] * widths[0] // sum(widths)  # under tensor parallelism the same share of both
        attention, feed_forward = projected.split((width, projected.shape[-1] - width), dim=-1)
        query, key, value = (heads(attn, x) for x in attention.chunk(3, dim=-1))
        attended = self._attend_packed((attn.norm_q(query), attn.norm_k(key), value), image_rotary_emb)
        return attn.to_out(torch.cat([torch.cat(attended, dim=1), attn.mlp_act_fn(feed_forward)], dim=-1))


MODELS: dict[str, ModelSpec] = {
    "Flux2Transformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 1, "txt_ids": -2},
        masks=(),
        layers=layers_of_type(Flux2Attention, Flux2ParallelSelfAttention),
        layer_count=lambda transformer: transformer.config.num_layers + transformer.config.num_single_layers,
        processors={
            Flux2AttnProcessor: NAGFlux2AttnProcessor,
            Flux2ParallelSelfAttnProcessor: NAGFlux2ParallelSelfAttnProcessor,
        },
        settings=lambda transformer: published.FLUX,  # FLUX.1's; none are published
        two_calls=True,
        must_be_none=("kv_cache_mode",),
        context_parallel=True,
    ),
}
