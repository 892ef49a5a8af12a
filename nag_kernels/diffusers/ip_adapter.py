# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Drop-in processors for layers with an IP-Adapter: attention to text is guided, attention to image prompts left as it is."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import (
    Attention,
    IPAdapterAttnProcessor2_0,
    SD3IPAdapterJointAttnProcessor2_0,
)
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxIPAdapterAttnProcessor
from torch import Tensor

from .cross_attention import NAGAttnProcessor2_0
from .guided_processor import PackedText, heads
from .joint_attention import NAGFluxAttnProcessor2_0, NAGJointAttnProcessor2_0


def _attention_to_images(
    where: str, attn: Any, adapter: Any, query: Tensor, images: list[Tensor], masks: Any
) -> Tensor:
    """The sum over the adapters of scale * attention of query [B, S, H, D] to their image prompts, [B, S, C].

    Raises ValueError for masks, and for scales that go with them.
    """
    if masks is not None or any(isinstance(scale, list) for scale in adapter.scale):
        raise ValueError(
            f"{where}: ip_adapter_masks must be None beside guidance (an image prompt acts on the whole image)"
        )
    total = query.new_zeros(())
    for image, scale, to_k, to_v in zip(images, adapter.scale, adapter.to_k_ip, adapter.to_v_ip, strict=True):
        if scale == 0:
            continue
        if image.ndim == 4:  # [B, images, tokens, C]: the tokens of all images of a prompt are one sequence
            image = image.flatten(1, 2)
        parts = (x.transpose(1, 2) for x in (query, heads(attn, to_k(image)), heads(attn, to_v(image))))
        total = total + scale * F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2).to(query.dtype)
    return total


class NAGIPAdapterAttnProcessor2_0(NAGAttnProcessor2_0):
    """Guided cross-attention of a UNet with an IP-Adapter, in the place of `IPAdapterAttnProcessor2_0`.

        out = to_out(guidance(Z+, Z-) + sum_i scale_i Z_image_i)

    Args:
        nag_scale, nag_tau, nag_alpha, text: as in `NAGAttnProcessor2_0`.
        adapter: the processor that it stands for, which holds the adapter's weights and scales.
    Raises: as there; ValueError for encoder_hidden_states that are no tuple (text, image prompts), and for masks.
    """

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.5,
                 text: PackedText | None = None, adapter: IPAdapterAttnProcessor2_0 | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self.adapter = adapter

    def stands_for(self, stock: IPAdapterAttnProcessor2_0) -> None:
        self.adapter, self.fused = stock, False  # which knows no fused projections

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: tuple[Tensor, list[Tensor]] | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, ip_adapter_masks: Any = None,
    ) -> Tensor:  # fmt: skip
        where = type(self).__name__
        if self.adapter is None or not isinstance(encoder_hidden_states, tuple):
            raise ValueError(f"{where}: needs an adapter, and encoder_hidden_states as (text, image prompts)")
        text, images = encoder_hidden_states
        if self.text is None and text.shape[0] == hidden_states.shape[0]:
            return self.adapter(attn, hidden_states, encoder_hidden_states, attention_mask, temb,
                                ip_adapter_masks=ip_adapter_masks)  # fmt: skip

        def beside(query: Tensor) -> Tensor:
            return _attention_to_images(where, attn, self.adapter, query, images, ip_adapter_masks)

        return self._run(attn, hidden_states, text, attention_mask, temb, beside)


class NAGFluxIPAdapterAttnProcessor(NAGFluxAttnProcessor2_0):
    """Guided attention of FLUX.1's two-stream blocks with an IP-Adapter, in the place of `FluxIPAdapterAttnProcessor`.

    As `NAGFluxAttnProcessor2_0`, and the attention to the image prompts as a third output.

    Args:
        nag_scale, nag_tau, nag_alpha, text: as there.  adapter: as in `NAGIPAdapterAttnProcessor2_0`.
    """

    _takes_doubled_batch = False

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None, adapter: FluxIPAdapterAttnProcessor | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self.adapter = adapter

    def stands_for(self, stock: FluxIPAdapterAttnProcessor) -> None:
        self.adapter = stock

    def __call__(
        self, attn: FluxAttention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        ip_hidden_states: list[Tensor] | None = None, ip_adapter_masks: Any = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        where = type(self).__name__
        if self.adapter is None or encoder_hidden_states is None or ip_hidden_states is None:
            raise ValueError(f"{where}: needs an adapter, encoder_hidden_states and ip_hidden_states (an image prompt)")
        if self.text is None:
            return self.adapter(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb,
                                ip_hidden_states, ip_adapter_masks)  # fmt: skip
        outputs = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        (query, _, _), _ = self._project_each(attn, hidden_states, None)  # not turned by positions
        images = _attention_to_images(where, attn, self.adapter, query, ip_hidden_states, ip_adapter_masks)
        return *outputs, images.expand_as(outputs[0])


class NAGSD3IPAdapterJointAttnProcessor2_0(NAGJointAttnProcessor2_0):
    """Guided attention of SD3 and SD3.5 with an IP-Adapter, in the place of `SD3IPAdapterJointAttnProcessor2_0`.

        image:  to_out(guidance(Z+, Z-) + scale Z_prompt),
        Z_prompt = softmax(Q' [K'_image | K_prompt]^T / sqrt(D)) [V_image | V_prompt],  with the adapter's own norms

    Z_prompt, attention to the image prompt and the image itself, sees no text. The texts are as in `NAGJointAttnProcessor2_0`.

    Args:
        nag_scale, nag_tau, nag_alpha, text: as there.  adapter: as in `NAGIPAdapterAttnProcessor2_0`.
    Raises: as there; ValueError without an adapter.
    """

    _takes_doubled_batch = False

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.125,
                 text: PackedText | None = None, adapter: SD3IPAdapterJointAttnProcessor2_0 | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self.adapter = adapter

    def stands_for(self, stock: SD3IPAdapterJointAttnProcessor2_0) -> None:
        self.adapter, self.fused = stock, False  # which knows no fused projections

    def __call__(
        self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
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

    def _to_prompt(self, attn: Attention, image: Tensor, prompt: Tensor, temb: Tensor) -> Tensor:
        """Attention of the image to itself and to the image prompt, [B, S, C]."""
        adapter = self.adapter
        query, key, value = (heads(attn, project(image)) for project in (attn.to_q, attn.to_k, attn.to_v))
        prompt = adapter.norm_ip(prompt, temb=temb)
        key = torch.cat([adapter.norm_k(key), adapter.norm_ip_k(heads(attn, adapter.to_k_ip(prompt)))], dim=1)
        value = torch.cat([value, heads(attn, adapter.to_v_ip(prompt))], dim=1)
        parts = (x.transpose(1, 2) for x in (adapter.norm_q(query), key, value))
        return F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
