# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Chroma."""

import dataclasses

import torch
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import Tensor

from ..attention.base import Layer
from ..attention.joint import Projected
from .flux import NAGFluxAttnProcessor2_0
from .layers import layers_of_type
from .spec import ModelSpec


class NAGChromaAttnProcessor2_0(NAGFluxAttnProcessor2_0):
    """Guided attention for Chroma, instead of `FluxAttnProcessor`; the texts may have masks.

    As `NAGFluxAttnProcessor2_0`. The masks stand in PackedText; the model is given none while its texts are packed. Where its
    masks are numbers, 1 and 0, it adds them to the logits of the tokens that are seen: so it draws, and so does this
    processor, with PackedText.unseen_bias = -1.
    """

    _has_masks = True
    _takes_doubled_batch = False

    def __call__(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
        call = (hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        if self.text is None and (encoder_hidden_states is None or len(encoder_hidden_states) == len(hidden_states)):
            return self._plain(attn, *call)
        return super().__call__(attn, *call)

    def _attend(self, image: Projected, text: Projected) -> tuple[Tensor, Tensor, Tensor]:
        masks = (self._packed.mask_positive, self._packed.mask_negative)
        bias = self._packed.unseen_bias
        if bias is None or masks[0] is None or masks[1] is None:
            return super()._attend(image, text)
        # As one more channel: 1 in the queries of what is seen, the bias in the keys of what is not. Eight, as kernels like it.
        width = image[0].shape[-1]
        stretch = ((width + 8) / width) ** 0.5  # attention is scaled by the wider one
        seen = torch.cat([masks[0], masks[1]], dim=1)[..., None, None].to(image[0])

        def widened(x: Tensor, last: Tensor) -> Tensor:
            return torch.cat([x, x.new_zeros(*x.shape[:-1], 7), last.expand(*x.shape[:-1], 1)], dim=-1)

        none = image[0].new_zeros(1)
        image = widened(image[0] * stretch, (none + 1) * stretch), widened(image[1], none), widened(image[2], none)
        bias_of_unseen = (1 - seen) * bias * width**0.5
        text = widened(text[0] * stretch, seen * stretch), widened(text[1], bias_of_unseen), widened(text[2], none)
        shared, self.text = self.shared, dataclasses.replace(self._packed, mask_positive=None, mask_negative=None)
        try:
            attended = super()._attend(image, text)
        finally:
            self.shared = shared
        of_positive, of_negative, of_image = (
            x.unflatten(-1, (-1, width + 8))[..., :width].flatten(-2) for x in attended
        )
        return of_positive, of_negative, of_image


MODELS: dict[str, ModelSpec] = {
    "ChromaTransformer2DModel": ModelSpec(
        text={"encoder_hidden_states": 1, "txt_ids": -2},
        masks=("attention_mask",),
        masks_for_image=True,
        hard_masks=True,
        layers=layers_of_type(FluxAttention),
        layer_count=lambda transformer: transformer.config.num_layers + transformer.config.num_single_layers,
        processors={FluxAttnProcessor: NAGChromaAttnProcessor2_0},
        two_calls=True,
    ),
}
