# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Attention to image prompts (IP-Adapter) beside guided attention to text."""

from typing import Any

import torch.nn.functional as F
from diffusers.image_processor import IPAdapterMaskProcessor
from torch import Tensor

from .base import heads


def attention_to_images(
    where: str, attn: Any, adapter: Any, query: Tensor, images: list[Tensor], masks: list[Tensor | None] | Tensor | None = None
) -> Tensor:  # fmt: skip
    """The sum over the adapters of scale * mask * attention of query [B, S, H, D] to their image prompts, [B, S, C].

    images: for each adapter [B, images, tokens, C]. Without a mask the tokens of all its images are one sequence.
    masks: for each adapter [1, images, height, width], where each of its images acts, and `adapter.scale` may then hold a list
    with a number for each; None is the whole image. Raises ValueError for masks and scales that do not fit the image prompts.
    """
    total = query.new_zeros(())
    each = zip(images, adapter.scale, adapter.to_k_ip, adapter.to_v_ip, _one_each(where, images, masks), strict=True)
    for image, scale, to_k, to_v, mask in each:
        for part, share, region in _parts(where, image, scale, mask):
            if share == 0:
                continue
            attended = side_by_side(query, heads(attn, to_k(part)), heads(attn, to_v(part))).flatten(2).to(query.dtype)
            if region is not None:
                shown = IPAdapterMaskProcessor.downsample(region, *attended.shape).to(attended)
                attended = attended * shown
            total = total + share * attended
    return total


def _one_each(where: str, images: list[Tensor], masks: list[Tensor | None] | Tensor | None) -> list[Tensor | None]:
    """A mask, or None, for each adapter."""
    if masks is None:
        return [None] * len(images)
    each: list[Tensor | None] = [*masks.unsqueeze(1)] if isinstance(masks, Tensor) else masks
    if len(each) != len(images):
        raise ValueError(
            f"{where}: ip_adapter_masks must hold one entry for each of the {len(images)} IP-Adapters, got {len(each)}"
        )
    for image, mask in zip(images, each, strict=True):
        if mask is not None and (mask.ndim != 4 or mask.shape[:2] != (1, image.shape[1])):
            raise ValueError(
                f"{where}: ip_adapter_masks must be tensors (1, images of the adapter, height, width), here "
                f"(1, {image.shape[1]}, height, width), got {tuple(mask.shape)}: IPAdapterMaskProcessor.preprocess makes them"
            )
    return each


def _parts(
    where: str, image: Tensor, scale: float | list[float], mask: Tensor | None
) -> list[tuple[Tensor, float, Tensor | None]]:
    """What is attended to apart of one adapter: tokens [B, T, C], their scale, and the mask [1, height, width]."""
    if mask is None:
        if isinstance(scale, list):
            raise ValueError(f"{where}: an IP-Adapter with a scale for each image, {scale}, needs ip_adapter_masks")
        return [(image.flatten(1, 2) if image.ndim == 4 else image, scale, None)]
    scales = scale if isinstance(scale, list) else [scale] * image.shape[1]
    if len(scales) != image.shape[1]:
        raise ValueError(
            f"{where}: an IP-Adapter needs one scale, or one for each of its {image.shape[1]} images, got {len(scales)}"
        )
    return [(image[:, i], share, mask[:, i]) for i, share in enumerate(scales)]


def side_by_side(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Plain attention, [B, S, H, D]."""
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
