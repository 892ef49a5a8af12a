# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.1."""

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor, FluxIPAdapterAttnProcessor
from torch import Tensor

from nag_kernels import guidance, published

from ..attention.base import Layer, PackedText, heads
from ..attention.ip_adapter import attention_to_images
from ..attention.joint import JointAttentionProcessor, Projected, Rotary, plain_attention, rotated
from .layers import layers_of_type
from .spec import ModelSpec


class NAGFluxAttnProcessor2_0(JointAttentionProcessor):
    """Guided attention for FLUX.1, instead of `FluxAttnProcessor`: two-stream and single-stream blocks, text first.

        image:  guidance(Z+, Z-),  Z+- = softmax(Q [K_image | K+-]^T / sqrt(D)) [V_image | V+-]    in one call
        text+-: plain attention to [image | text+-]: each text keeps its own stream        (arXiv 2505.21179)

    Args:
        nag_scale, nag_tau, nag_alpha: as in `NAGAttnProcessor2_0`.
        text: how the texts are packed. With it, encoder_hidden_states [B, T+ + T-, C] is [text+ ; text-], or, in a
            single-stream block, hidden_states is [text+ ; text- ; image]; image_rotary_emb holds the positions of all
            of it. Without it the batch tells in two-stream blocks, as in `NAGJointAttnProcessor2_0`, with the published
            transformer.
        encoder_hidden_states_length: without `text`, in the single-stream blocks of the published transformer: how many
            tokens of hidden_states [2B, T + S, C] are text. That transformer doubles the image too there: the second half
            has a query of its own, and both halves get the guided image. None is the plain layer.
    Raises: ValueError for another batch or length, attention_mask or text masks, settings out of range.
    """

    _takes_doubled_batch = True

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None, encoder_hidden_states_length: int | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self.encoder_hidden_states_length = encoder_hidden_states_length
        self._plain = FluxAttnProcessor()

    def __call__(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
        single = encoder_hidden_states is None
        if encoder_hidden_states is not None:
            self._check_joint(hidden_states, encoder_hidden_states, attention_mask)
        if self.text is None:
            call = (hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
            length = self.encoder_hidden_states_length
            if single and length is not None:
                return self._one_stream_doubled(attn, hidden_states, length, attention_mask, image_rotary_emb)
            if encoder_hidden_states is not None and self._is_doubled(hidden_states, encoder_hidden_states):
                return self._two_streams_doubled(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
            return self._plain(attn, *call)
        length = sum(self._lengths())
        if single:
            self._check_joint(hidden_states, hidden_states[:, :length], attention_mask)
        self._count()

        packed = self._project(attn, hidden_states, encoder_hidden_states)
        attended = self._attend_packed(packed, image_rotary_emb)
        if single:
            return torch.cat(attended, dim=1)
        *streams, hidden_states = attended
        return attn.to_out[1](attn.to_out[0](hidden_states)), attn.to_add_out(torch.cat(streams, dim=1))

    def _two_streams_doubled(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor, rotary: Rotary | None
    ) -> tuple[Tensor, Tensor]:
        self._count()
        length = encoder_hidden_states.shape[1]
        image, text = self._project_image(attn, hidden_states), self._project_text(attn, encoder_hidden_states)
        if rotary is not None:
            cosines, sines = rotary
            text, image = (
                rotated(text, (cosines[:length], sines[:length])),
                rotated(image, (cosines[length:], sines[length:])),
            )
        of_text, of_image = self._attend_doubled(image, text)
        return attn.to_out[1](attn.to_out[0](of_image)), attn.to_add_out(of_text)

    def _one_stream_doubled(
        self, attn: Layer, whole: Tensor, length: int, attention_mask: Tensor | None, rotary: Rotary | None
    ) -> Tensor:
        rows, tokens, _ = whole.shape
        if rows % 2 or tokens < length or attention_mask is not None:
            raise ValueError(
                f"{type(self).__name__}: with encoder_hidden_states_length {length}, hidden_states must have an even batch "
                f"([positive; negative]) of at least {length} tokens, and attention_mask be None, got {tuple(whole.shape)}"
                + ("" if attention_mask is None else " and a mask")
            )
        self._count()
        out = plain_attention(*rotated(self._project(attn, whole, None), rotary)).flatten(2)
        positive, negative = out[:, length:].chunk(2)
        steered = guidance(positive, negative, *self._settings_for(positive, slice(0, rows // 2)))
        return torch.cat([out[:, :length], torch.cat([steered, steered])], dim=1)

    def _project(self, attn: Layer, image: Tensor, text: Tensor | None) -> Projected:
        """Query, key and value of the whole sequence, text first."""
        own = self._project_image(attn, image)
        if text is None:
            return own
        query, key, value = (torch.cat(x, dim=1) for x in zip(self._project_text(attn, text), own, strict=True))
        return query, key, value

    def _project_image(self, attn: Layer, image: Tensor) -> Projected:
        """Of the image, or of a single stream."""
        fused = attn.fused_projections
        own = attn.to_qkv(image).chunk(3, dim=-1) if fused else (attn.to_q(image), attn.to_k(image), attn.to_v(image))
        query, key, value = (heads(attn, x) for x in own)
        return attn.norm_q(query), attn.norm_k(key), value

    def _project_text(self, attn: Layer, text: Tensor) -> Projected:
        fused = attn.fused_projections
        projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        added = attn.to_added_qkv(text).chunk(3, dim=-1) if fused else [project(text) for project in projections]
        query, key, value = (heads(attn, x) for x in added)
        return attn.norm_added_q(query), attn.norm_added_k(key), value


class NAGFluxIPAdapterAttnProcessor(NAGFluxAttnProcessor2_0):
    """Guided attention of FLUX.1's two-stream blocks with an IP-Adapter, instead of `FluxIPAdapterAttnProcessor`.

    As `NAGFluxAttnProcessor2_0`, and the attention to the image prompts as a third output.

    Args:
        nag_scale, nag_tau, nag_alpha, text: as there.  adapter: as in `NAGIPAdapterAttnProcessor2_0`.
    """

    _takes_doubled_batch = False
    adapter: Any  # diffusers' processor

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None, adapter: FluxIPAdapterAttnProcessor | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self.adapter = adapter

    def takes_over(self, stock: FluxIPAdapterAttnProcessor) -> None:
        self.adapter = stock

    def __call__(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        ip_hidden_states: list[Tensor] | None = None, ip_adapter_masks: Any = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        where = type(self).__name__
        if self.adapter is None or encoder_hidden_states is None or ip_hidden_states is None:
            raise ValueError(f"{where}: needs an adapter, encoder_hidden_states and ip_hidden_states (an image prompt)")
        if self.text is None:
            return self.adapter(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb,
                                ip_hidden_states, ip_adapter_masks)  # fmt: skip
        if ip_adapter_masks is not None:
            raise ValueError(
                f"{where}: ip_adapter_masks must be None: FLUX.1's IP-Adapter has no masks, diffusers ignores them"
            )
        outputs = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        query, _, _ = self._project_image(attn, hidden_states)  # not rotated by positions
        images = attention_to_images(where, attn, self.adapter, query, ip_hidden_states)
        return *outputs, images.expand_as(outputs[0])


MODELS: dict[str, ModelSpec] = {
    "FluxTransformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 1, "txt_ids": -2},
        masks=(),
        layers=layers_of_type(FluxAttention),
        layer_count=lambda transformer: transformer.config.num_layers + transformer.config.num_single_layers,
        processors={
            FluxAttnProcessor: NAGFluxAttnProcessor2_0,
            FluxIPAdapterAttnProcessor: NAGFluxIPAdapterAttnProcessor,
        },
        settings=lambda transformer: published.FLUX,
        two_calls=True,
        pooled="pooled_projections",
        context_parallel=True,
    ),
}
