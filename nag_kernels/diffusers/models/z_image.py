# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Z-Image."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_z_image import ZSingleStreamAttnProcessor
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..attention.base import Layer, PackedText, heads
from ..attention.joint import JointAttentionProcessor
from ..attention.text_modules import TextModule, changes_text
from ..denoiser_calls import Denoiser
from .layers import attentions_in
from .spec import ModelSpec


class NAGZSingleStreamAttnProcessor(JointAttentionProcessor):
    """Guided attention for Z-Image, instead of `ZSingleStreamAttnProcessor`.

    As `NAGHunyuanVideoAttnProcessor2_0` in a block of one stream: hidden_states is [image ; text+ ; text-], freqs_cis holds the
    positions of all of it, and the masks of the texts, which Z-Image needs where those of a batch differ in length, stand in
    PackedText.
    """

    _has_masks = True

    def __init__(self, nag_scale: float = 1.0, nag_tau: float = 2.5, nag_alpha: float = 0.25,
                 text: PackedText | None = None):  # fmt: skip
        super().__init__(nag_scale, nag_tau, nag_alpha, text)
        self._plain = ZSingleStreamAttnProcessor()

    def __call__(
        self, attn: Layer, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, freqs_cis: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        if self.text is None:
            return self._plain(attn, hidden_states, encoder_hidden_states, attention_mask, freqs_cis)
        length = sum(self._lengths())
        self._check_joint(hidden_states, hidden_states[:, -length:], None)
        self._check_own_masks(attention_mask)
        self._count()

        query, key, value = (heads(attn, layer(hidden_states)) for layer in (attn.to_q, attn.to_k, attn.to_v))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if freqs_cis is not None:
            query, key = (_turned(x, freqs_cis) for x in (query, key))
        sizes = (hidden_states.shape[1] - length, length)
        image, text = zip(*(x.split(sizes, dim=1) for x in (query, key, value)), strict=True)
        *streams, guided = self._attend(image, text)
        hidden_states = torch.cat([guided, *streams], dim=1)
        for layer in attn.to_out:
            hidden_states = layer(hidden_states)
        return hidden_states


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    """x [B, S, H, D], pairs of channels turned by turns [B, S, D/2], complex64; in float32 as Z-Image does it."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns[:, :, None]).flatten(-2).to(x.dtype)


def z_image(model: Denoiser) -> list[TextModule]:
    """Captions come as a list with one tensor for each image, and then one for each image's negative.

    Up to the end of their refiner the model treats them as so many captions. Its own padding (to multiples of 32, of tokens
    that are seen) is part of each. Then each image's pair is packed: [image, text+, text-], in which the image has the
    positions that it has beside text+.
    """

    def patchify(method, text, images, captions, *patch):
        rows = len(images)
        positive = list(method(images, captions[:rows], *patch))
        negative = method(images, captions[rows:], *patch)
        for place in (1, 4, 6):  # captions, their positions and their padding
            positive[place] = [*positive[place], *negative[place]]
        return tuple(positive)

    @changes_text
    def unify(method, shared, x, x_freqs, x_lengths, x_noise, captions, freqs, lengths, noise, *rest):
        if len(set(x_lengths)) > 1:
            raise ValueError(f"guide: images must be of one size while texts are packed, got {x_lengths} tokens")
        rows = len(x_lengths)
        each = slice(0, rows), slice(rows, None)
        longest = [max(lengths[part]) for part in each]
        captions, freqs = (
            torch.cat([padded(y[part], lengths[part]) for part in each], dim=1) for y in (captions, freqs)
        )
        masks = (
            None if len(set(lengths[part])) == 1 else
            torch.arange(length, device=captions.device) < torch.tensor(lengths[part], device=captions.device)[:, None]
            for part, length in zip(each, longest, strict=True)
        )  # fmt: skip
        shared.change(**dict(zip(("length_positive", "length_negative"), longest, strict=True)),
                      **dict(zip(("mask_positive", "mask_negative"), masks, strict=True)))  # fmt: skip
        return method(x, x_freqs, x_lengths, x_noise, captions, freqs, [sum(longest)] * rows, noise, *rest)

    return [(model, "patchify_and_embed", patchify), (model, "_build_unified_sequence", unify)]


def padded(x: Tensor, lengths: list[int]) -> Tensor:
    return pad_sequence([row[:length] for row, length in zip(x, lengths, strict=True)], batch_first=True)


class ZImage(ModelSpec):
    def pack(self, packer: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return packer.pack_list(arguments)


MODELS: dict[str, ModelSpec] = {
    "ZImageTransformer2DModel": ZImage(
        text={"cap_feats": 0},
        since="0.39",
        layers=attentions_in("layers"),
        layer_count=lambda transformer: transformer.config.n_layers,
        processors={ZSingleStreamAttnProcessor: NAGZSingleStreamAttnProcessor},
        text_modules=lambda transformer: z_image(transformer),
        prompt_first=True,
        cfg_above=0.0,
        must_be_none=("siglip_feats", "image_noise_mask", "controlnet_block_samples"),
        timestep="t",
    ),
}
