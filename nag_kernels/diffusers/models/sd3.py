# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion 3 and 3.5."""

from typing import Any

import torch
from diffusers.models.attention_processor import (
    FusedJointAttnProcessor2_0,
    JointAttnProcessor2_0,
    SD3IPAdapterJointAttnProcessor2_0,
)
from torch import Tensor

from nag_kernels import published

from ..attention.base import Layer, PackedText, heads
from ..attention.ip_adapter import side_by_side
from ..attention.joint import JointAttentionProcessor, Projected
from ..denoiser_calls import Denoiser
from .layers import joint_attentions
from .spec import ModelSpec


class NAGJointAttnProcessor2_0(JointAttentionProcessor):
    """Guided joint attention for SD3 and SD3.5, instead of `JointAttnProcessor2_0`; text is last.

        image:  guidance(Z+, Z-),  Z+- = softmax(Q [K_image | K+-]^T / sqrt(D)) [V_image | V+-]    in one call
        text+-: plain attention to [image | text+-]: each text keeps its own stream        (arXiv 2505.21179)

    Args:
        nag_scale, nag_tau, nag_alpha: as in `NAGAttnProcessor2_0`.
        text: how the texts are packed. With it, encoder_hidden_states [B, T+ + T-, C] is [text+ ; text-] and
            both streams come back packed. Without it the batch tells, as in `NAGAttnProcessor2_0`: the text comes back in
            the batch in which it came. That batch needs the published transformer: the stock one feeds SD3's text norms
            with an embedding of the image's batch, and breaks, at batch 1 silently.
    Raises: ValueError for encoder_hidden_states of another batch or length, attention_mask or text masks (SD3
        has none), settings out of range.
    """

    _takes_doubled_batch = True
    _plain_fused: Any

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.125,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain, self._plain_fused = JointAttnProcessor2_0(), FusedJointAttnProcessor2_0()

    def takes_over(self, stock: Any) -> None:
        self.fused = isinstance(stock, FusedJointAttnProcessor2_0)

    def __call__(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        if encoder_hidden_states is None:
            return self._stock(attn, hidden_states)
        return self._run(attn, hidden_states, encoder_hidden_states, attention_mask)

    def _run(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None,
        beside: Tensor | None = None,
    ) -> Any:  # fmt: skip
        """Both streams; `beside` is added to the image's attention, [B, S, C]."""
        self._check_joint(hidden_states, encoder_hidden_states, attention_mask)
        doubled = self._is_doubled(hidden_states, encoder_hidden_states)
        if self.text is None and not doubled:
            return self._stock(attn, hidden_states, encoder_hidden_states)
        self._count()

        image, text = self._project(attn, hidden_states, encoder_hidden_states)
        if doubled:
            encoder_hidden_states, hidden_states = self._attend_doubled(image, text)
        else:
            *streams, hidden_states = self._attend(image, text)
            encoder_hidden_states = torch.cat(streams, dim=1)
        if beside is not None:
            hidden_states = hidden_states + beside
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if not attn.context_pre_only:
            encoder_hidden_states = attn.to_add_out(encoder_hidden_states)
        return hidden_states, encoder_hidden_states

    def _stock(self, attn: Layer, *call: Tensor) -> Any:
        if not self._is_fused(attn):
            return self._plain(attn, *call)
        if attn.norm_q is not None:
            raise ValueError(
                f"{type(self).__name__}: diffusers' own processor for fused projections leaves out the norms of query and key; "
                "call unfuse_qkv_projections()"
            )
        return self._plain_fused(attn, *call)

    def _project(self, attn: Layer, image: Tensor, text: Tensor) -> tuple[Projected, Projected]:
        if self._is_fused(attn):
            own, added = attn.to_qkv(image).chunk(3, dim=-1), attn.to_added_qkv(text).chunk(3, dim=-1)
        else:
            own = attn.to_q(image), attn.to_k(image), attn.to_v(image)
            added = attn.add_q_proj(text), attn.add_k_proj(text), attn.add_v_proj(text)

        def normed(projections: Any, norms: Any) -> Projected:
            query, key, value = (heads(attn, x) for x in projections)
            norm_query, norm_key = norms
            return query if norm_query is None else norm_query(query), key if norm_key is None else norm_key(key), value

        return normed(own, (attn.norm_q, attn.norm_k)), normed(added, (attn.norm_added_q, attn.norm_added_k))


class NAGSD3IPAdapterJointAttnProcessor2_0(NAGJointAttnProcessor2_0):
    """Guided attention of SD3 and SD3.5 with an IP-Adapter, instead of `SD3IPAdapterJointAttnProcessor2_0`.

        image:  to_out(guidance(Z+, Z-) + scale Z_prompt),
        Z_prompt = softmax(Q' [K'_image | K_prompt]^T / sqrt(D)) [V_image | V_prompt],  with the adapter's own norms

    Z_prompt, attention to the image prompt and the image itself, sees no text. The texts are as in `NAGJointAttnProcessor2_0`.

    Args:
        nag_scale, nag_tau, nag_alpha, text: as there.  adapter: as in `NAGIPAdapterAttnProcessor2_0`.
    Raises: as there; ValueError without an adapter.
    """

    _takes_doubled_batch = False
    adapter: Any  # diffusers' processor

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.125,
                 text: PackedText | None = None, adapter: SD3IPAdapterJointAttnProcessor2_0 | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self.adapter = adapter

    def takes_over(self, stock: SD3IPAdapterJointAttnProcessor2_0) -> None:
        self.adapter, self.fused = stock, False  # which knows no fused projections

    def __call__(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, ip_hidden_states: Tensor | None = None, temb: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        if self.adapter is None:
            raise ValueError(f"{type(self).__name__}: needs an adapter (the processor that it stands for)")
        if self.text is None or encoder_hidden_states is None:
            return self.adapter(attn, hidden_states, encoder_hidden_states, attention_mask, ip_hidden_states, temb)
        beside = None
        if ip_hidden_states is not None and self.adapter.scale != 0:
            beside = self.adapter.scale * self._to_prompt(attn, hidden_states, ip_hidden_states, temb)
        return self._run(attn, hidden_states, encoder_hidden_states, attention_mask, beside)

    def _to_prompt(self, attn: Layer, image: Tensor, prompt: Tensor, temb: Tensor | None) -> Tensor:
        """Attention of the image to itself and to the image prompt, [B, S, C]."""
        adapter: Any = self.adapter
        query, key, value = (heads(attn, project(image)) for project in (attn.to_q, attn.to_k, attn.to_v))
        prompt = adapter.norm_ip(prompt, temb=temb)
        key = torch.cat([adapter.norm_k(key), adapter.norm_ip_k(heads(attn, adapter.to_k_ip(prompt)))], dim=1)
        value = torch.cat([value, heads(attn, adapter.to_v_ip(prompt))], dim=1)
        return side_by_side(adapter.norm_q(query), key, value).flatten(2)


def _refuse(transformer: Denoiser) -> str | None:
    sites = [block.attn for block in transformer.transformer_blocks if hasattr(block, "attn")]
    if any(type(attn.processor) is FusedJointAttnProcessor2_0 and attn.norm_q is not None for attn in sites):
        return (
            "its projections are fused, and diffusers' processor for that leaves out the norms of query and key, which this "
            "model has: call unfuse_qkv_projections()"
        )
    return None


MODELS: dict[str, ModelSpec] = {
    "SD3Transformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        masks=(),
        layers=joint_attentions,
        layer_count=lambda transformer: transformer.config.num_layers,
        processors={
            JointAttnProcessor2_0: NAGJointAttnProcessor2_0,
            FusedJointAttnProcessor2_0: NAGJointAttnProcessor2_0,
            SD3IPAdapterJointAttnProcessor2_0: NAGSD3IPAdapterJointAttnProcessor2_0,
        },
        settings=lambda transformer: published.SD3,
        refuse=_refuse,
        pooled="pooled_projections",
    ),
}
