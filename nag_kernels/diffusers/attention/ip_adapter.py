# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Attention to image prompts (IP-Adapter) beside guided attention to text."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .base import heads


def attention_to_images(where: str, attn: Any, adapter: Any, query: Tensor, images: list[Tensor], masks: Any) -> Tensor:
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
        attended = side_by_side(query, heads(attn, to_k(image)), heads(attn, to_v(image)))
        total = total + scale * attended.flatten(2).to(query.dtype)
    return total


def side_by_side(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Plain attention, [B, S, H, D]."""
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
