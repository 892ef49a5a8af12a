# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Wan 2.1 and 2.2, and Wan-VACE."""

from collections.abc import Callable
from typing import Any

from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor

from nag_kernels import published

from ..attention.base import Layer, PackedText, heads
from ..attention.cross import CrossAttentionProcessor
from ..attention.ip_adapter import side_by_side
from ..denoiser_calls import Modules
from .layers import Layers
from .spec import ModelSpec


class NAGWanAttnProcessor2_0(CrossAttentionProcessor):
    """Guided cross-attention for Wan, Wan-Animate, SkyReels V2 and ChronoEdit, instead of `WanAttnProcessor` and the like.

        out = to_out(guidance(Z+, Z-) + Z_image),  Z+- = softmax(Q K+-^T / sqrt(D)) V+-         (arXiv 2505.21179)

    Z_image is the attention of image-to-video models to the tokens of their first frame, which stand before the text. It
    is the same for both texts and stays as it is.

    Args:
        nag_scale, nag_tau, nag_alpha, text: as in `NAGAttnProcessor2_0`; the published doubled batch is taken as well.
    Raises: ValueError for a batch or length of encoder_hidden_states that fits no convention, an attention_mask or
        rotary_emb beside a text (Wan has neither), settings out of range.
    """

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain = WanAttnProcessor()

    def __call__(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        rows = hidden_states.shape[0]
        if encoder_hidden_states is None or (self.text is None and encoder_hidden_states.shape[0] == rows):
            return self._plain(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        if attention_mask is not None or rotary_emb is not None:
            raise ValueError(
                f"{type(self).__name__}: attention_mask and rotary_emb must be None beside encoder_hidden_states"
            )
        first_frame, text = self._split_off_image(attn, encoder_hidden_states)
        self._check_text(rows, text)
        self._count()

        query = heads(attn, attn.norm_q(attn.to_q(hidden_states)))
        key, value = attn.to_kv(text).chunk(2, dim=-1) if attn.fused_projections else (attn.to_k(text), attn.to_v(text))
        hidden_states = self._attend(query, heads(attn, attn.norm_k(key)), heads(attn, value), (None, None))
        if first_frame is not None:
            hidden_states = hidden_states + self._attend_to_image(attn, query, first_frame[:rows])
        return attn.to_out[1](attn.to_out[0](hidden_states))

    def _split_off_image(self, attn: Layer, x: Tensor) -> tuple[Tensor | None, Tensor]:
        if attn.add_k_proj is None:
            return None, x
        # Where the text is not packed it is the last 512 tokens, as in diffusers.
        length = 512 if self.text is None else sum(self._packed.lengths)
        image = x.shape[1] - length
        if image < 0:
            raise ValueError(
                f"{type(self).__name__}: encoder_hidden_states must hold the first frame's tokens and then {length} of "
                f"text, got {x.shape[1]} in all"
            )
        return x[:, :image], x[:, image:]

    def _attend_to_image(self, attn: Layer, query: Tensor, image: Tensor) -> Tensor:
        if attn.fused_projections:
            key, value = attn.to_added_kv(image).chunk(2, dim=-1)
        else:
            key, value = attn.add_k_proj(image), attn.add_v_proj(image)
        return side_by_side(query, heads(attn, attn.norm_added_k(key)), heads(attn, value)).flatten(2)


def cross_attentions(attention: type[Any]) -> Callable[[Modules], Layers]:
    return lambda modules: (
        (name, module)
        for name, module in modules.items()
        if isinstance(module, attention) and module.is_cross_attention
    )


def wan_like(attention: type[Any], processor: type[Any], **more: Any) -> ModelSpec:
    """Wan, and models whose layers do the same in classes of their own."""
    return ModelSpec(
        text={"encoder_hidden_states": 1},
        layers=cross_attentions(attention),
        layer_count=lambda transformer: transformer.config.num_layers,
        processors={processor: NAGWanAttnProcessor2_0},
        settings=lambda transformer: published.FLUX,
        two_calls=True,
        **more,
    )


MODELS: dict[str, ModelSpec] = {
    "WanTransformer3DModel": wan_like(WanAttention, WanAttnProcessor, context_parallel=True),
    "WanVACETransformer3DModel": ModelSpec(
        text={"encoder_hidden_states": 1},
        masks=(),
        layers=cross_attentions(WanAttention),
        layer_count=lambda transformer: transformer.config.num_layers + len(transformer.config.vace_layers),
        processors={WanAttnProcessor: NAGWanAttnProcessor2_0},
        settings=lambda transformer: published.FLUX,
        two_calls=True,
    ),
}
