# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Guided attention in plain PyTorch: the truth of every test, and the fallback of `guidance` and of float64 (of all else:
sdpa.py).

NAG is arXiv 2505.21179 (its phi is `nag_scale - 1`); its four steps are numbered here in the paper's order:
    (1) extrapolate  G = Z+ + phi (Z+ - Z-)     (2) normalise  R = |G|_1 / |Z+|_1, over all heads of a token
    (3) clip         G' = min(R, tau) / R * G   (4) refine     out = alpha G' + (1 - alpha) Z+
NASA is arXiv 2412.02687 (SNOOPI): (5) out = Z+ - scale Z-.
VSF is arXiv 2508.10931: (6) out = softmax(Q [Ks | K+ | K-]^T + bias on K-) [Vs | V+ | -scale V-], no Z- at all.
Arithmetic is float32, float64 for float64 inputs; nothing is rounded before the final cast. It imports torch only.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

Part = tuple[Tensor | None, Tensor | None, Tensor | None, float]  # key, value, mask, and the bias of the logits


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def attention(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, bias: Tensor, factor: Tensor | None, scale: float
) -> Tensor:  # fmt: skip
    """Z = softmax(Q K^T * scale + bias) (factor V) over the visible keys; a row that sees no key gives zeros.

    query [B, S, H, D]; key, value [B, T, Hkv, D]; visible bool [B, T] or None; bias [T], added to the logits;
    factor [B, T], of the values, or None.
    """
    repeats = query.shape[2] // key.shape[2]  # grouped queries: one key head serves `repeats` query heads
    if visible is not None:  # what is hidden in a padded key or value (NaN too) must not come through
        key = key.masked_fill(~visible[:, :, None, None], 0)
        value = value.masked_fill(~visible[:, :, None, None], 0)
    key, value = key.repeat_interleave(repeats, 2), value.repeat_interleave(repeats, 2)
    logits = torch.einsum("bshd,bthd->bhst", query, key) * scale + bias
    if visible is None:
        weights = logits.softmax(-1)
    else:  # the lowest finite number, not -inf: a row with no visible key is then uniform, and set to zero below
        hidden = ~visible[:, None, None, :]
        weights = logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(hidden, 0)
    if factor is not None:
        weights = weights * factor[:, None, None, :]
    # In runs of 128 keys: some matrix libraries add up a product in one long chain, whose rounding grows with its length.
    runs = zip(weights.split(128, -1), value.split(128, 1), strict=True)
    return functools.reduce(torch.add, (torch.einsum("bhst,bthd->bshd", *run) for run in runs))


def row_factors(
    positive: Tensor, negative: Tensor, scale: Tensor, tau: Tensor, alpha: Tensor, rule: str,
    total: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(a, b) of out = a * Z+ - b * Z-, one pair per token; positive, negative are [..., C] with all heads in C (where some
    are elsewhere, total adds up the sums |G|_1 and |Z+|_1, [..., 2]).

    (5) gives a = 1, b = scale. (1) to (4) give, without a quotient by |Z+|_1 (f = 1 where |G|_1 = 0),
        f = min(1, tau |Z+|_1 / |G|_1),  a = alpha f scale + 1 - alpha,  b = alpha f (scale - 1)
    """
    if rule == "nasa":
        return torch.ones_like(scale), scale
    sums = [x.abs().sum(-1, keepdim=True) for x in (scale * positive - (scale - 1) * negative, positive)]
    extrapolated, whole = sums if total is None else total(torch.cat(sums, -1)).chunk(2, -1)
    no_clip = torch.isinf(tau)
    bound = torch.where(no_clip, 1.0, tau) * whole
    clipped = (extrapolated > bound) & ~no_clip
    factor = torch.where(clipped, bound / torch.where(clipped, extrapolated, 1.0), 1.0)
    return alpha * factor * scale + 1 - alpha, alpha * factor * (scale - 1)


def as_tensor(setting: float | Tensor, like: Tensor) -> Tensor:
    """A setting as it multiplies tensors like `like`: [] or, one value per sample, [B, 1, ..., 1]."""
    dtype = accumulate_dtype(like.dtype)
    if not isinstance(setting, Tensor):
        return torch.full((), setting, dtype=dtype, device=like.device)
    return setting.to(dtype).reshape(setting.shape + (1,) * (like.ndim - setting.ndim))


def guidance(
    positive: Tensor, negative: Tensor, nag_scale: float | Tensor, nag_tau: float | Tensor, nag_alpha: float | Tensor,
    rule: str = "nag", total: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """out = a * positive - b * negative, tensors [..., C]; settings are floats or tensors [] or [B]; not for "vsf"."""
    dtype = accumulate_dtype(positive.dtype)
    scale, tau, alpha = (as_tensor(x, positive) for x in (nag_scale, nag_tau, nag_alpha))
    wide_positive, wide_negative = positive.to(dtype), negative.to(dtype)
    a, b = row_factors(wide_positive, wide_negative, scale, tau, alpha, rule, total)
    return (a * wide_positive - b * wide_negative).to(positive.dtype).contiguous()


def fused_guided_attention(
    query: Tensor, key_positive: Tensor, value_positive: Tensor, key_negative: Tensor, value_negative: Tensor,
    nag_scale: float | Tensor, nag_tau: float | Tensor, nag_alpha: float | Tensor,
    key_shared: Tensor | None = None, value_shared: Tensor | None = None,
    mask_positive: Tensor | None = None, mask_negative: Tensor | None = None, mask_shared: Tensor | None = None,
    softmax_scale: float | None = None, negative_logit_bias: float = 0.0, rule: str = "nag",
) -> Tensor:  # fmt: skip
    """Z+ attends to [shared | positive], Z- to [shared | negative]; out = a Z+ - b Z-, or (6) for "vsf". Arguments as in
    `nag_kernels.fused_guided_attention`; settings are floats or tensors [] or [B]."""
    batch, length, heads, size = query.shape
    dtype = accumulate_dtype(query.dtype)
    scale = size**-0.5 if softmax_scale is None else softmax_scale

    def attend(*parts: Part, factor: Tensor | None = None) -> Tensor:
        """To the keys of all parts that are there."""
        there = [(key, value, m, bias) for key, value, m, bias in parts if key is not None and value is not None]
        keys = torch.cat([key.expand(batch, -1, -1, -1).to(dtype) for key, _, _, _ in there], 1)
        values = torch.cat([value.expand(batch, -1, -1, -1).to(dtype) for _, value, _, _ in there], 1)
        visible = None
        if any(mask is not None for _, _, mask, _ in there):
            masks = (key.new_ones(1, key.shape[1], dtype=torch.bool) if m is None else m for key, _, m, _ in there)
            visible = torch.cat([mask.expand(batch, -1) for mask in masks], 1)
        bias = torch.cat([keys.new_full((key.shape[1],), bias) for key, _, _, bias in there])
        return attention(query.to(dtype), keys, values, visible, bias, factor, scale)

    shared = (key_shared, value_shared, mask_shared, 0.0)
    positive = (key_positive, value_positive, mask_positive, 0.0)
    negative = (key_negative, value_negative, mask_negative, negative_logit_bias)
    if rule == "vsf":
        seen_by_both = key_positive.shape[1] + (0 if key_shared is None else key_shared.shape[1])
        flipped = -as_tensor(nag_scale, key_negative[..., 0, 0]).expand(batch, key_negative.shape[1])
        factor = torch.cat([flipped.new_ones(batch, seen_by_both), flipped], 1)
        return attend(shared, positive, negative, factor=factor).to(query.dtype).contiguous()
    seen_positive, seen_negative = (attend(shared, text).flatten(2) for text in (positive, negative))
    guided = guidance(seen_positive, seen_negative, nag_scale, nag_tau, nag_alpha, rule)
    return guided.view(batch, length, heads, size).to(query.dtype)
