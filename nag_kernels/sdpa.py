# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Guided attention by torch's own scaled_dot_product_attention, then the formula: what serves a device without a kernel of ours.

Where torch has a fused attention for the device nothing holds the logits, and the time is that of published code. So is
the error: Z+ and Z- are rounded to the dtype of the inputs before the formula, which the reference and our kernels avoid.
The formula is in float32 and in ten steps at most, of which six pass over all numbers; tests/ops/test_traffic.py counts them.

Attention runs once for each branch. Once over all keys would be one softmax for both; two can be had from one walk over the
shared keys only with the logsumexp of each part, which is what the finish form in Triton merges.
"""

import ctypes
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .checks import Attention


def _apart(x: Tensor) -> bool:
    """Whether no two numbers of x lie in one place, as far as the strides alone tell."""
    end = 1
    for stride, length in sorted(zip(x.stride(), x.shape, strict=True)):
        if length > 1:
            if stride < end:
                return False
            end = stride * length
    return True


def attention(
    query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, bias: Tensor | None, scale: float | None,
    whole_masks: bool = False,
) -> Tensor:  # fmt: skip
    """Z [B, S, H, D]; a row that sees no key gives zeros.

    query [B, S, H, D]; key, value [B, T, Hkv, D]; visible bool [B, T] or None; bias [T], added to the logits, or None.
    whole_masks: torch's attention gets a mask with a row for each query, instead of one row for all.
    """
    if key.shape[1] == 0 or query.numel() == 0:  # which not each of torch's attentions takes
        return torch.zeros_like(query)
    mask = None
    if visible is not None:  # what is hidden in a padded key or value (NaN too) must not come through
        key, value = (x.masked_fill(~visible[:, :, None, None], 0) for x in (key, value))
        # Some of torch's attentions make NaN of a row that sees no key. It sees them all here, and all its values are zero.
        mask = (visible | ~visible.any(1, keepdim=True))[:, None, None, :]
    if bias is not None:
        mask = bias.view(1, 1, 1, -1) if mask is None else torch.where(mask, bias, -torch.inf)
    if whole_masks and mask is not None:
        mask = mask.expand(query.shape[0], 1, query.shape[1], key.shape[1])
    grouped = key.shape[2] != query.shape[2]
    # Torch's fused attentions want a unit last stride. Its CPU kernel wants more, or some of its output is whatever the memory
    # held: rows that do not overlap, as they go to BLAS, and no overlap at all in the query, whose strides the output takes.
    query = query if _apart(query) else query.contiguous()
    rows = (x if x.stride(3) == 1 and x.stride(1) >= x.shape[3] else x.contiguous() for x in (query, key, value))
    query, key, value = (x.transpose(1, 2) for x in rows)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


def branches(call: Attention, whole_masks: bool = False) -> tuple[Tensor, ...]:
    """Z+ and Z- [B, S, H, D] in query's dtype, any strides, each a tensor of its own; of "vsf" its one output.

    whole_masks: as in `attention`.
    """
    query, value_negative, negative_logit_bias, rule = (
        call.query,
        call.value_negative,
        call.negative_logit_bias,
        call.rule,
    )
    batch = query.shape[0]
    if rule == "vsf":  # (6): one softmax over all keys
        value_negative = (-reference.as_tensor(call.nag_scale, value_negative) * value_negative).to(query.dtype)
    parts = [(call.key_negative, value_negative, call.mask_negative)]
    if call.key_shared is not None and call.value_shared is not None:
        parts.append((call.key_shared, call.value_shared, call.mask_shared))
    parts.append((call.key_positive, call.value_positive, call.mask_positive))
    lengths = [key.shape[1] for key, _, _ in parts]
    masked = any(mask is not None for _, _, mask in parts)
    joined = len(parts) == 3 or rule == "vsf"

    def whole(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([x.expand(batch, *x.shape[1:]) for x in tensors], 1)

    def attend(first: int, last: int) -> Tensor:
        """To the parts from `first` up to `last`, which lie side by side."""
        begin, length = sum(lengths[:first]), sum(lengths[first:last])
        if joined:
            key, value = (x.narrow(1, begin, length) for x in rows)
        else:
            key, value = (x.expand(batch, *x.shape[1:]) for x in parts[first][:2])
        bias = None
        if first == 0 and negative_logit_bias != 0:
            largest = torch.finfo(key.dtype).max  # in float16 a bias of -1e5, say, stands beyond its numbers
            filling = min(max(negative_logit_bias, -largest), largest)
            bias = torch.cat([key.new_full((lengths[0],), filling), key.new_zeros(length - lengths[0])])
        visible = seen.narrow(1, begin, length) if masked else None
        return attention(query, key, value, visible, bias, call.softmax_scale, whole_masks)

    rows: list[Tensor] = []  # keys and values of all parts
    if joined:
        rows = [whole(key for key, _, _ in parts), whole(value for _, value, _ in parts)]
    seen = query  # the masks of all parts, where there are any
    if masked:
        seen = whole([key.new_ones(1, key.shape[1], dtype=torch.bool) if m is None else m for key, _, m in parts])
    if rule == "vsf":
        return (attend(0, len(parts)),)
    return attend(1, len(parts)), attend(0, len(parts) - 1)


def guidance(
    positive: Tensor, negative: Tensor, nag_scale: float | Tensor, nag_tau: float | Tensor, nag_alpha: float | Tensor,
    rule: str = "nag", *, dims: tuple[int, ...] = (-1,), spend: bool = False,
) -> Tensor:  # fmt: skip
    """As `reference.guidance`, in few steps: the numbers are read in their dtype, computed with in float32 and rounded once.

    dims: over which the norms run.  spend: positive and negative may be written over.
    """
    settings = (nag_scale, nag_tau, nag_alpha)
    tensors = [x for x in (positive, negative, *settings) if isinstance(x, Tensor)]
    derived = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # pyright: ignore[reportAttributeAccessIssue] it is not typed
    plain = all(type(x) is Tensor and not wrapped(x) for x in tensors)
    if derived or not plain or torch.compiler.is_compiling() or positive.device.type not in ("cpu", "cuda", "meta"):
        # Gradients, vmap and compilers want the formula as it stands; of other devices it is not known whether they mix dtypes.
        first = positive.ndim - len(dims)
        return reference.guidance(positive.flatten(first), negative.flatten(first), *settings, rule).view(
            positive.shape
        )
    wide = reference.accumulate_dtype(positive.dtype)
    narrow = positive.dtype != wide
    whole = spend and positive.is_contiguous()
    out = positive if whole else torch.empty_like(positive, memory_format=torch.contiguous_format)
    # Factors have dimensions, all of size 1: one without any would not widen what it multiplies, but be rounded to its dtype.
    ones = (1,) * (positive.ndim - 1)
    if isinstance(nag_scale, Tensor):
        scale, alpha = (torch.as_tensor(x).to(wide).reshape(-1, *ones) for x in (nag_scale, nag_alpha))
    else:  # both numbers by one launch
        ends = torch.linspace(float(nag_scale), float(nag_alpha), 2, dtype=wide, device=positive.device)
        scale, alpha = ends.view(2, 1, *ones).unbind(0)
    if rule == "nasa":  # (5)
        return torch.addcmul(positive, negative, scale, value=-1, out=out)
    bound: Tensor | float
    if isinstance(nag_tau, Tensor):
        bound = alpha * nag_tau.to(wide).reshape(-1, *ones)
    else:
        bound = _product(nag_alpha, nag_tau, wide)
    norm = torch.linalg.vector_norm(positive, 1, dims, keepdim=True, dtype=wide)
    guided = torch.addcmul(negative, negative, scale, value=-1, out=negative if spend and not narrow else None)
    guided.addcmul_(positive, scale)  # (1)
    length = torch.linalg.vector_norm(guided, 1, dims, keepdim=True)
    # (2), (3): alpha f. What is no number here, of 0 / 0 or inf * 0, stands for f = 1, which fmin takes.
    share = torch.fmin((norm * bound).div_(length), alpha)
    rest = torch.addcmul(positive, positive, alpha, value=-1, out=None if narrow else out)
    return torch.addcmul(rest, guided, share, out=out)  # (4)


def _product(x: float | Tensor, y: float | Tensor, dtype: torch.dtype) -> float:
    """Of two numbers, rounded as that of two tensors would be."""
    if dtype == torch.float64:
        return float(x) * float(y)
    return ctypes.c_float(float(x)).value * ctypes.c_float(float(y)).value


def fused_guided_attention(*arguments: Any, **named: Any) -> Tensor:
    """As `nag_kernels.fused_guided_attention`, of the fields of `Attention`; settings are floats or tensors [] or [B]."""
    call = Attention(*arguments, **named)
    if call.rule == "vsf":
        return branches(call)[0].contiguous()
    positive, negative = branches(call)
    return guidance(
        positive, negative, call.nag_scale, call.nag_tau, call.nag_alpha, call.rule, dims=(2, 3), spend=True
    )
