# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""FLUX.1."""

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor, FluxIPAdapterAttnProcessor
from torch import Tensor

from nag_kernels import guidance

from ..attention.base import PackedText, heads
from ..attention.ip_adapter import attention_to_images
from ..attention.joint import JointAttentionProcessor, Projected, plain_attention, turned
from .layers import layers_of_type
from .spec import ModelSpec, Settings


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
        self, attn: FluxAttention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        single = encoder_hidden_states is None
        if not single:
            self._check_joint(hidden_states, encoder_hidden_states, attention_mask)
        if self.text is None:
            call = (hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
            if single and self.encoder_hidden_states_length is not None:
                return self._one_stream_doubled(attn, *call)
            if not single and self._is_doubled(hidden_states, encoder_hidden_states):
                return self._two_streams_doubled(attn, *call)
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

    def _two_streams_doubled(self, attn, image, text, attention_mask, rotary) -> tuple[Tensor, Tensor]:
        self._count()
        length, (image, text) = text.shape[1], self._project_each(attn, image, text)
        if rotary is not None:
            text, image = turned(text, [x[:length] for x in rotary]), turned(image, [x[length:] for x in rotary])
        text, image = self._attend_doubled(image, text)
        return attn.to_out[1](attn.to_out[0](image)), attn.to_add_out(text)

    def _one_stream_doubled(self, attn, whole, _, attention_mask, rotary) -> Tensor:
        length, (rows, tokens, _) = self.encoder_hidden_states_length, whole.shape
        if rows % 2 or tokens < length or attention_mask is not None:
            raise ValueError(
                f"{type(self).__name__}: with encoder_hidden_states_length {length}, hidden_states must have an even batch "
                f"([positive; negative]) of at least {length} tokens, and attention_mask be None, got {tuple(whole.shape)}"
                + ("" if attention_mask is None else " and a mask")
            )
        self._count()
        out = plain_attention(*turned(self._project(attn, whole, None), rotary)).flatten(2)
        positive, negative = out[:, length:].chunk(2)
        steered = guidance(positive, negative, *self._settings_for(positive, slice(0, rows // 2)))
        return torch.cat([out[:, :length], torch.cat([steered, steered])], dim=1)

    def _project(self, attn: FluxAttention, image: Tensor, text: Tensor | None) -> Projected:
        """Query, key and value of the whole sequence, text first."""
        image, text = self._project_each(attn, image, text)
        return image if text is None else tuple(torch.cat(pair, dim=1) for pair in zip(text, image, strict=True))

    def _project_each(
        self, attn: FluxAttention, image: Tensor, text: Tensor | None
    ) -> tuple[Projected, Projected | None]:
        fused = attn.fused_projections
        own = attn.to_qkv(image).chunk(3, dim=-1) if fused else (attn.to_q(image), attn.to_k(image), attn.to_v(image))
        query, key, value = (heads(attn, x) for x in own)
        own = attn.norm_q(query), attn.norm_k(key), value
        if text is None:
            return own, None
        projections = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        added = attn.to_added_qkv(text).chunk(3, dim=-1) if fused else [project(text) for project in projections]
        query, key, value = (heads(attn, x) for x in added)
        return own, (attn.norm_added_q(query), attn.norm_added_k(key), value)


class NAGFluxIPAdapterAttnProcessor(NAGFluxAttnProcessor2_0):
    """Guided attention of FLUX.1's two-stream blocks with an IP-Adapter, instead of `FluxIPAdapterAttnProcessor`.

    As `NAGFluxAttnProcessor2_0`, and the attention to the image prompts as a third output.

    Args:
        nag_scale, nag_tau, nag_alpha, text: as there.  adapter: as in `NAGIPAdapterAttnProcessor2_0`.
    """

    _takes_doubled_batch = False

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None, adapter: FluxIPAdapterAttnProcessor | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self.adapter = adapter

    def takes_over(self, stock: FluxIPAdapterAttnProcessor) -> None:
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
        images = attention_to_images(where, attn, self.adapter, query, ip_hidden_states, ip_adapter_masks)
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
        settings=lambda transformer: Settings(5.0, 2.5, 0.25),
        two_calls=True,
        pooled="pooled_projections",
        context_parallel=True,
    ),
}
