# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Drop-in processors for what came after FLUX.1 and attends alike: Chroma and FLUX.2."""

import torch
from diffusers.models.transformers.transformer_flux import FluxAttention
from diffusers.models.transformers.transformer_flux2 import (
    Flux2Attention,
    Flux2AttnProcessor,
    Flux2ParallelSelfAttention,
    Flux2ParallelSelfAttnProcessor,
)
from torch import Tensor

from .guided_processor import PackedText, heads
from .joint_attention import JointAttentionProcessor, NAGFluxAttnProcessor2_0, Projected


class NAGChromaAttnProcessor2_0(NAGFluxAttnProcessor2_0):
    """Guided attention for Chroma, in the place of `FluxAttnProcessor`; the texts may have masks.

    As `NAGFluxAttnProcessor2_0`. The masks stand in PackedText; the model is given none while its texts are packed. Where its
    masks are numbers, 1 and 0, it adds them to the logits of the tokens that are seen: so it draws, and so does this
    processor, with PackedText.unseen_bias = -1.
    """

    _has_masks = True
    _takes_doubled_batch = False

    def __call__(
        self, attn: FluxAttention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        call = (hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        if self.text is None and (encoder_hidden_states is None or len(encoder_hidden_states) == len(hidden_states)):
            return self._plain(attn, *call)
        return super().__call__(attn, *call)

    def _attend(self, image: Projected, text: Projected) -> tuple[Tensor, Tensor, Tensor]:
        bias = self.text.unseen_bias
        if bias is None or self.text.mask_positive is None:
            return super()._attend(image, text)
        # As one more channel: 1 in the queries of what is seen, the bias in the keys of what is not. Eight, as kernels like it.
        width = image[0].shape[-1]
        stretch = ((width + 8) / width) ** 0.5  # attention is scaled by the wider one
        seen = torch.cat([self.text.mask_positive, self.text.mask_negative], dim=1)[..., None, None].to(image[0])

        def widened(x, last):
            return torch.cat([x, x.new_zeros(*x.shape[:-1], 7), last.expand(*x.shape[:-1], 1)], dim=-1)

        masks, none = (self.text.mask_positive, self.text.mask_negative), image[0].new_zeros(1)
        queries = (widened(x * stretch, last * stretch) for x, last in ((image[0], none + 1), (text[0], seen)))
        keys = (widened(x, last) for x, last in ((image[1], none), (text[1], (1 - seen) * bias * width**0.5)))
        values = (widened(x, none) for x in (image[2], text[2]))
        self.text.mask_positive = self.text.mask_negative = None
        try:
            attended = super()._attend(*zip(queries, keys, values, strict=True))
        finally:
            self.text.mask_positive, self.text.mask_negative = masks
        return tuple(x.unflatten(-1, (-1, width + 8))[..., :width].flatten(-2) for x in attended)


class NAGFlux2AttnProcessor(NAGFluxAttnProcessor2_0):
    """Guided attention for the two-stream blocks of FLUX.2, in the place of `Flux2AttnProcessor`.

    As `NAGFluxAttnProcessor2_0` with packed texts; there is no published transformer with a doubled batch.
    """

    _takes_doubled_batch = False

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain = Flux2AttnProcessor()

    def __call__(
        self, attn: Flux2Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


class NAGFlux2ParallelSelfAttnProcessor(JointAttentionProcessor):
    """Guided attention for the single-stream blocks of FLUX.2, in the place of `Flux2ParallelSelfAttnProcessor`.

    One projection gives query, key, value and the feed-forward's input, one takes attention's and the feed-forward's output;
    between them attention is that of `NAGFluxAttnProcessor2_0` in a single-stream block, with its arguments and errors.
    """

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain = Flux2ParallelSelfAttnProcessor()

    def __call__(
        self, attn: Flux2ParallelSelfAttention, hidden_states: Tensor, attention_mask: Tensor | None = None,
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
