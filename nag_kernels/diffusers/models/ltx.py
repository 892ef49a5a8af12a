# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""LTX-Video."""

from collections.abc import Mapping
from typing import Any

from diffusers.models.transformers.transformer_ltx import LTXAttention, LTXVideoAttnProcessor
from torch import Tensor

from nag_kernels import published

from ..attention.base import Layer, PackedText, heads
from ..attention.cross import CrossAttentionProcessor
from .layers import layers_named
from .spec import ModelSpec


class NAGLTXVideoAttnProcessor(CrossAttentionProcessor):
    """Guided cross-attention for LTX-Video, instead of `LTXVideoAttnProcessor`.

        out = to_out(guidance(Z+, Z-)),  Z+- = softmax(Q K+-^T / sqrt(D)) V+-                    (arXiv 2505.21179)

    Args, masks and errors as in `NAGAttnProcessor2_0`; image_rotary_emb beside a text is refused as well.
    """

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain = LTXVideoAttnProcessor()

    def __call__(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        rows = hidden_states.shape[0]
        if encoder_hidden_states is None or (self.text is None and encoder_hidden_states.shape[0] == rows):
            return self._plain(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        if image_rotary_emb is not None:
            raise ValueError(f"{type(self).__name__}: image_rotary_emb must be None beside encoder_hidden_states")
        self._check_text(rows, encoder_hidden_states)
        masks = self._masks(attention_mask, encoder_hidden_states, rows)
        self._count()

        query = heads(attn, attn.norm_q(attn.to_q(hidden_states)))
        key = heads(attn, attn.norm_k(attn.to_k(encoder_hidden_states)))
        hidden_states = self._attend(query, key, heads(attn, attn.to_v(encoder_hidden_states)), masks)
        return attn.to_out[1](attn.to_out[0](hidden_states))


class LTXVideo(ModelSpec):
    def timesteps_taken(self, pipe: Any, arguments: Mapping[str, Any]) -> range | None:
        """The pipeline of several prompts leaves out the last one, and those of too much noise, in each of its windows."""
        if not any(kind.__name__ == "LTXI2VLongMultiPromptPipeline" for kind in type(pipe).__mro__):
            return None
        most, last = arguments.get("skip_steps_sigma_threshold"), len(pipe.scheduler.timesteps) - 1
        skipped = 0 if most is None or most <= 0 else int((pipe.scheduler.sigmas[:last] > most).sum())
        return range(skipped, last)


MODELS: dict[str, ModelSpec] = {
    "LTXVideoTransformer3DModel": LTXVideo(
        text={"encoder_hidden_states": 1},
        masks=("encoder_attention_mask",),
        layers=layers_named("attn2", kind=LTXAttention),
        layer_count=lambda transformer: transformer.config.num_layers,
        processors={LTXVideoAttnProcessor: NAGLTXVideoAttnProcessor},
        settings=lambda transformer: published.FLUX,  # Wan's; none are published
        context_parallel=True,
    ),
}
