# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""LTX-2."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_ltx2 import (
    LTX2Attention,
    LTX2AudioVideoAttnProcessor,
    LTX2PerturbedAttnProcessor,
)
from torch import Tensor

from ..attention.base import Layer, PackedText, heads
from ..attention.cross import CrossAttentionProcessor
from .layers import layers_named
from .spec import ModelSpec


class NAGLTX2AudioVideoAttnProcessor(CrossAttentionProcessor):
    """Guided cross-attention for LTX-2, of the video or of the sound to its text, instead of `LTX2AudioVideoAttnProcessor`.

        out = to_out(gate * guidance(Z+, Z-)),  Z+- = softmax(Q K+-^T / sqrt(D)) V+-             (arXiv 2505.21179)

    Args, masks and errors as in `NAGAttnProcessor2_0`; rotary positions beside a text are refused as well. Without `text`, equal
    batches are plain attention: so it may stand at the layers between video and sound too.
    """

    _stock = LTX2AudioVideoAttnProcessor

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain = self._stock()

    def __call__(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, query_rotary_emb: tuple[Tensor, Tensor] | None = None,
        key_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        rows = hidden_states.shape[0]
        if encoder_hidden_states is None or (self.text is None and encoder_hidden_states.shape[0] == rows):
            call = (hidden_states, encoder_hidden_states, attention_mask, query_rotary_emb, key_rotary_emb)
            return self._plain(attn, *call)
        if query_rotary_emb is not None or key_rotary_emb is not None:
            raise ValueError(f"{type(self).__name__}: rotary positions must be None beside encoder_hidden_states")
        self._check_text(rows, encoder_hidden_states)
        masks = self._masks(attention_mask, encoder_hidden_states, rows)
        self._count()

        query = heads(attn, attn.norm_q(attn.to_q(hidden_states)))
        key = heads(attn, attn.norm_k(attn.to_k(encoder_hidden_states)))
        attended = self._attend(query, key, heads(attn, attn.to_v(encoder_hidden_states)), masks)
        if attn.to_gate_logits is not None:
            gates = 2.0 * torch.sigmoid(attn.to_gate_logits(hidden_states))  # [B, S, H]
            attended = (heads(attn, attended) * gates[..., None]).flatten(2)
        return attn.to_out[1](attn.to_out[0](attended))


class NAGLTX2PerturbedAttnProcessor(NAGLTX2AudioVideoAttnProcessor):
    """As `NAGLTX2AudioVideoAttnProcessor`, instead of `LTX2PerturbedAttnProcessor`; a perturbed text is refused."""

    _stock = LTX2PerturbedAttnProcessor

    def __call__(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, query_rotary_emb: tuple[Tensor, Tensor] | None = None,
        key_rotary_emb: tuple[Tensor, Tensor] | None = None, perturbation_mask: Tensor | None = None,
        all_perturbed: bool | None = None,
    ) -> Tensor:  # fmt: skip
        call = (hidden_states, encoder_hidden_states, attention_mask, query_rotary_emb, key_rotary_emb)
        if perturbation_mask is None:
            return super().__call__(attn, *call)
        if encoder_hidden_states is None:
            return self._plain(attn, *call, perturbation_mask, all_perturbed)
        raise ValueError(f"{type(self).__name__}: perturbation_mask must be None beside encoder_hidden_states")


class LTX2Spec(ModelSpec):
    def doubles_batch(self, arguments: Mapping[str, Any]) -> bool:
        """The sound has a scale of its own, by default the video's."""
        sound = arguments.get("audio_guidance_scale")
        return super().doubles_batch(arguments) or super().doubles_batch({"guidance_scale": sound or 0.0})

    def timesteps_taken(self, pipe: Any, arguments: Mapping[str, Any]) -> range | None:
        """Those pipelines that draw a video in tiles count the steps of all tiles, and leave out the last timestep of one kind of
        scheduler."""
        tiled = ("LTX2DFRPipeline", "LTX2DFRTemporalRefinePipeline")
        if not any(kind.__name__ in tiled for kind in type(pipe).__mro__):
            return None
        left_out = any(kind.__name__ == "LTXEulerAncestralRFScheduler" for kind in type(pipe.scheduler).__mro__)
        return range(len(pipe.scheduler.timesteps) - left_out)


MODELS: dict[str, ModelSpec] = {
    "LTX2VideoTransformer3DModel": LTX2Spec(
        text={"encoder_hidden_states": 1, "audio_encoder_hidden_states": 1},
        masks=("encoder_attention_mask", "audio_encoder_attention_mask"),
        layers=layers_named("attn2", "audio_attn2", kind=LTX2Attention),
        layer_count=lambda transformer: 2 * transformer.config.num_layers,
        processors={
            LTX2AudioVideoAttnProcessor: NAGLTX2AudioVideoAttnProcessor,
            LTX2PerturbedAttnProcessor: NAGLTX2PerturbedAttnProcessor,
        },
        negative_call={"enable_prompt_enhancement": False},
        negatives_for={
            "video": ("encoder_hidden_states", "encoder_attention_mask"),
            "audio": ("audio_encoder_hidden_states", "audio_encoder_attention_mask"),
        },
    ),
}
