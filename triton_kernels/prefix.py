# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The shared part of joint attention from a vendor's attention: (out [B, S, H, D], logsumexp [B, H, S]) for `finish`."""

import importlib
import importlib.util

import torch
from torch import Tensor


def flash(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """FlashAttention as torch carries it; its counterpart for tensors on the CPU."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if query.is_cuda:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False, scale=scale)[:2]
    else:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, scale=scale)[:2]
    return out.transpose(1, 2), lse


def _whole(x: Tensor) -> Tensor:
    """Contiguous as [B, S, H, D] or as [B, H, S, D], which is what cuDNN takes."""
    return x if x.is_contiguous() or x.transpose(1, 2).is_contiguous() else x.contiguous()


def cudnn(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """cuDNN's, whose logsumexp has carried a last dimension of 1 since torch 2.9."""
    q, k, v = (_whole(x).transpose(1, 2) for x in (query, key, value))
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, False, False, scale=scale)
    out, lse = found[:2]
    return out.transpose(1, 2), lse.squeeze(-1) if lse.ndim == 4 else lse


def flash_attn(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The package flash-attn: FlashAttention 3 (its module flash_attn_interface, on sm_90) where it is there, else 2."""
    third = importlib.util.find_spec("flash_attn_interface") and torch.cuda.get_device_capability(query.device)[0] == 9
    package = importlib.import_module("flash_attn_interface" if third else "flash_attn")
    out, lse, *_ = package.flash_attn_func(query, key, value, softmax_scale=scale, return_attn_probs=True)
    return out, lse


PREFIXES = {"flash": flash, "cudnn": cudnn, "flash-attn": flash_attn}
