# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""NAG as its authors publish it, written from the paper (arXiv 2505.21179) as a baseline for `bench_model`.

The two texts are a batch of two; queries (and, in the single-stream blocks of FLUX.1, the whole image) are repeated for the
second; two attentions; the formula in eager mode. One image a call. The pooled text is the prompt's alone: in the single-stream
blocks both copies of the image have its modulation.
"""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from nag_kernels.testing import eager_guidance

Projected = tuple[Tensor, Tensor, Tensor]  # query, key, value [B, S, H, D]


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(1, 2).flatten(2)


def _project(layers: tuple[Module, Module, Module], norms: tuple, x: Tensor, heads: int) -> Projected:
    query, key, value = (layer(x).unflatten(-1, (heads, -1)) for layer in layers)
    norm_query, norm_key = norms
    return query if norm_query is None else norm_query(query), key if norm_key is None else norm_key(key), value


class PublishedCross:
    """Cross-attention of UNets, SANA and Wan: hidden_states [1, S, C], encoder_hidden_states [2, T, C]."""

    def __init__(self, settings: tuple[float, float, float]):
        self.settings = settings

    def __call__(
        self, attn: Module, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: object, **__: object
    ) -> Tensor:
        encoder_hidden_states = encoder_hidden_states.reshape(
            2, -1, encoder_hidden_states.shape[-1]
        )  # SANA joins the rows
        query, key = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states)
        if attn.norm_q is not None:  # Wan's norms span the heads
            query, key = attn.norm_q(query), attn.norm_k(key)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)) for x in (query, key, attn.to_v(encoder_hidden_states)))
        branches = _attend(query.repeat(2, 1, 1, 1), key, value)
        return attn.to_out[1](attn.to_out[0](eager_guidance(*branches.chunk(2), *self.settings)))


class PublishedJoint:
    """Joint attention of SD3 and FLUX.1: hidden_states [1, S, C], encoder_hidden_states [2, T, C].

    In the single-stream blocks of FLUX.1 hidden_states is [2, T + S, C], the image alike in both rows.
    """

    def __init__(self, settings: tuple[float, float, float], text: int):
        self.settings, self.text = settings, text

    def _guide(self, image: Tensor) -> Tensor:
        return eager_guidance(*image.chunk(2), *self.settings)

    def __call__(
        self, attn: Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        own = _project((attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k), hidden_states, attn.heads)
        packed = own
        if encoder_hidden_states is not None:
            layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            added = _project(layers, (attn.norm_added_q, attn.norm_added_k), encoder_hidden_states, attn.heads)
            packed = tuple(torch.cat([t, i.repeat(2, 1, 1, 1)], 1) for t, i in zip(added, own, strict=True))
        query, key, value = packed
        if image_rotary_emb is not None:
            from diffusers.models.embeddings import apply_rotary_emb

            query, key = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (query, key))
        branches = _attend(query, key, value)
        text, image = branches[:, : self.text], self._guide(branches[:, self.text :])
        if encoder_hidden_states is None:
            return torch.cat([text, image.repeat(2, 1, 1)], 1)
        image = attn.to_out[1](attn.to_out[0](image))
        return image, text if getattr(attn, "context_pre_only", False) else attn.to_add_out(text)


@contextlib.contextmanager
def image_repeated(transformer: Module) -> Iterator[None]:
    """Within it the single-stream blocks of a FLUX.1 transformer run on two copies of the image, one for each text."""
    blocks = getattr(transformer, "single_transformer_blocks", [])

    def repeat(_, args, kwargs):
        return args, kwargs | {"hidden_states": kwargs["hidden_states"].repeat(2, 1, 1)}

    def first(_, args, output):
        return output[0], output[1][:1]

    hooks = []
    if len(blocks):
        hooks.append(blocks[0].register_forward_pre_hook(repeat, with_kwargs=True))
        hooks.append(blocks[-1].register_forward_hook(first))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
