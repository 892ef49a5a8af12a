# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Guided attention in Triton: one walk over the keys gives both branches of a head, a second kernel blends all heads.
The finish form takes the shared part from another attention, as (out, logsumexp), and walks the two texts alone.

    branches    Z+ and Z- of one tile of queries and one head: the softmax over the shared keys once, then its
                state (maximum, sum, accumulator) forked over text+ and text-. For rule "vsf" what [shared | text+] and
                what text- give to one softmax over all keys, in the places of Z+ and Z-
    blend       out = a Z+ - b Z-, with the norms of a token over all heads

Between the two kernels Z+ and Z- lie in memory: for bfloat16 in 16 bits, as float16 times a scale for each token and head, whose
rounding is an eighth of the output's, and Z+ in the place of the output; else in float32.

Softmax, norms and blend are float32. Offsets are 64-bit. No program waits for another and none adds atomically: the same
bits on every run, and alone as in a batch.
"""

from collections import Counter

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import Attention
from .configs import capability, tiles

LOG2E = tl.constexpr(1.4426950408889634)
LARGEST_BIAS = torch.finfo(torch.float32).max / 4  # times log2(e), and with a logit added, it stays finite
INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: on the CPU, for tests
calls: Counter[str] = Counter()  # how often the kernels ran, by operation


@triton.jit
def _walk(
    query, key, value, mask, length, key_stride, value_stride, mask_stride, maximum, total, accumulator, scale, bias,
    SIZE: tl.constexpr, MASKED: tl.constexpr, WIDEN: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The online softmax of one tile continued over `length` keys; logits are in units of log 2.

    WIDEN: bfloat16 operands as float32, which holds their products exactly; the interpreter has no right bfloat16 dot.
    """
    columns, size = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    for start in range(0, length, BLOCK_N):
        at = (start + columns).to(tl.int64)
        seen = at < length
        if MASKED:
            seen = seen & (tl.load(mask + at * mask_stride, mask=seen, other=0) != 0)
        inside = seen[:, None] & (size < SIZE)[None, :]
        keys = tl.load(key + at[:, None] * key_stride + size[None, :], mask=inside, other=0.0)
        if WIDEN:
            keys = keys.to(tl.float32)
        logits = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale + bias
        logits = tl.where(seen[None, :], logits, float("-inf"))
        higher = tl.maximum(maximum, tl.max(logits, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(logits - base[:, None])
        fade = tl.exp2(maximum - base)
        values = tl.load(value + at[:, None] * value_stride + size[None, :], mask=inside, other=0.0)
        rounded = weights.to(values.dtype)
        total = total * fade + tl.sum(rounded.to(tl.float32), 1)
        if WIDEN:
            rounded, values = rounded.to(tl.float32), values.to(tl.float32)
        accumulator = tl.dot(rounded, values, accumulator * fade[:, None], input_precision="ieee")
        maximum = higher
    return maximum, total, accumulator


@triton.jit
def _keep(z, branch, scales, to, row, seen, head, inside, HEADS: tl.constexpr, NARROW: tl.constexpr):
    if NARROW:
        top = tl.maximum(tl.max(tl.abs(z), 1), 1e-37)
        tl.store(scales + row * HEADS + head, top, mask=seen)
        tl.store(branch + to, (z * (1.0 / top)[:, None]).to(tl.float16), mask=inside)
    else:
        tl.store(branch + to, z, mask=inside)


@triton.jit
def branches(
    query, key_positive, value_positive, key_negative, value_negative, key_shared, value_shared,
    mask_positive, mask_negative, mask_shared, shared_out, shared_lse, positive, negative, scales_positive, scales_negative,
    length, positive_length, negative_length, shared_length, scale, bias,
    query_b, query_s, query_h, kp_b, kp_s, kp_h, vp_b, vp_s, vp_h, kn_b, kn_s, kn_h, vn_b, vn_s, vn_h,
    ks_b, ks_s, ks_h, vs_b, vs_s, vs_h, mp_b, mp_s, mn_b, mn_s, ms_b, ms_s, so_b, so_s, so_h, sl_b, sl_h, sl_s,
    HEADS: tl.constexpr, REPEATS: tl.constexpr, SIZE: tl.constexpr, SHARED: tl.constexpr, FINISH: tl.constexpr,
    MASK_POSITIVE: tl.constexpr, MASK_NEGATIVE: tl.constexpr, MASK_SHARED: tl.constexpr, VSF: tl.constexpr,
    NARROW: tl.constexpr, WIDEN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Z+ and Z- [B, S, H, D] (contiguous) of one tile of BLOCK_M queries of one head: float32, or float16 and the scales that
    multiply it, [B, S, H] in float32 (NARROW).

    SHARED: the shared keys are walked here. FINISH: their softmax came from elsewhere, as shared_out [B, S, H, D] and
    shared_lse [B, H, S] (natural logarithm; an infinity is a row that saw no key).
    """
    head, sample = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    group = head // REPEATS
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    size = tl.arange(0, BLOCK_D)
    inside = (rows < length)[:, None] & (size < SIZE)[None, :]
    query += sample * query_b + head * query_h
    tile = tl.load(query + rows[:, None] * query_s + size[None, :], mask=inside, other=0.0)
    if WIDEN:
        tile = tile.to(tl.float32)
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    scale *= LOG2E
    if SHARED:
        maximum, total, accumulator = _walk(
            tile, key_shared + sample * ks_b + group * ks_h, value_shared + sample * vs_b + group * vs_h,
            mask_shared + sample * ms_b, shared_length, ks_s, vs_s, ms_s, maximum, total, accumulator, scale, 0.0,
            SIZE, MASK_SHARED, WIDEN, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    if FINISH:  # an attention output is an accumulator whose weights sum to 1 on the scale of its logsumexp
        lse = tl.load(shared_lse + sample * sl_b + head * sl_h + rows * sl_s, mask=rows < length, other=0.0) * LOG2E
        none = tl.abs(lse) == float("inf")
        maximum, total = tl.where(none, float("-inf"), lse), tl.where(none, 0.0, 1.0)
        at = sample * so_b + head * so_h + rows[:, None] * so_s + size[None, :]
        found = tl.load(shared_out + at, mask=inside, other=0.0).to(tl.float32)
        accumulator = tl.where(none[:, None], 0.0, found)
    row = sample * length + rows
    to = row[:, None] * (HEADS * SIZE) + head * SIZE + size[None, :]
    top_positive, sum_positive, z_positive = _walk(
        tile, key_positive + sample * kp_b + group * kp_h, value_positive + sample * vp_b + group * vp_h,
        mask_positive + sample * mp_b, positive_length, kp_s, vp_s, mp_s, maximum, total, accumulator, scale, 0.0,
        SIZE, MASK_POSITIVE, WIDEN, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    if VSF:  # text- by itself
        maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        accumulator = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    else:
        z = z_positive / tl.where(sum_positive > 0, sum_positive, 1.0)[:, None]
        _keep(z, positive, scales_positive, to, row, rows < length, head, inside, HEADS, NARROW)
    top_negative, sum_negative, z_negative = _walk(
        tile, key_negative + sample * kn_b + group * kn_h, value_negative + sample * vn_b + group * vn_h,
        mask_negative + sample * mn_b, negative_length, kn_s, vn_s, mn_s, maximum, total, accumulator, scale,
        bias * LOG2E, SIZE, MASK_NEGATIVE, WIDEN, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    if VSF:  # both sums on the scale of the higher maximum, and both accumulators by the sum of the two
        top = tl.maximum(top_positive, top_negative)
        base = tl.where(top == float("-inf"), 0.0, top)
        weight_positive, weight_negative = tl.exp2(top_positive - base), tl.exp2(top_negative - base)
        sum_both = sum_positive * weight_positive + sum_negative * weight_negative
        sum_both = tl.where(sum_both > 0, sum_both, 1.0)
        z = z_positive * (weight_positive / sum_both)[:, None]
        _keep(z, positive, scales_positive, to, row, rows < length, head, inside, HEADS, NARROW)
        z = z_negative * (weight_negative / sum_both)[:, None]
        _keep(z, negative, scales_negative, to, row, rows < length, head, inside, HEADS, NARROW)
    else:
        z = z_negative / tl.where(sum_negative > 0, sum_negative, 1.0)[:, None]
        _keep(z, negative, scales_negative, to, row, rows < length, head, inside, HEADS, NARROW)


@triton.jit
def _setting(setting, sample, stride, TENSOR: tl.constexpr):
    """A setting of a sample in float32: read on the device, or the number that it is."""
    if TENSOR:
        return tl.load(setting + sample * stride)
    else:
        return tl.cast(setting, tl.float32)


@triton.jit
def _kept(branch, scales, row, at, channels, SIZE: tl.constexpr, NARROW: tl.constexpr):
    """A branch's numbers in float32."""
    inside = at < channels
    z = tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
    if NARROW:
        z *= tl.load(scales + row * (channels // SIZE) + at // SIZE, mask=inside, other=0.0)
    return z


@triton.jit
def blend(
    positive, negative, scales_positive, scales_negative, out, nag_scale, nag_tau, nag_alpha, rows_per_sample,
    positive_row, negative_row, scale_stride, tau_stride, alpha_stride, channels,
    NASA: tl.constexpr, TENSOR: tl.constexpr, SIZE: tl.constexpr, NARROW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [N, C] = a Z+ - b Z- for one row: two walks over its C numbers, the first for the norms. `out` may be where Z+ lies.

    NASA: Z+ - scale Z- instead, for "vsf" as well.
    """
    row = tl.program_id(0).to(tl.int64)
    sample = row // rows_per_sample
    scale = _setting(nag_scale, sample, scale_stride, TENSOR)
    positive += row * positive_row
    negative += row * negative_row
    out += row * channels
    block = tl.arange(0, BLOCK)
    if NASA:
        a, b = scale * 0 + 1, scale
    else:
        tau, alpha = _setting(nag_tau, sample, tau_stride, TENSOR), _setting(nag_alpha, sample, alpha_stride, TENSOR)
        norm, extrapolated = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        for start in range(0, channels, BLOCK):
            plus = _kept(positive, scales_positive, row, start + block, channels, SIZE, NARROW)
            minus = _kept(negative, scales_negative, row, start + block, channels, SIZE, NARROW)
            norm += tl.abs(plus)
            extrapolated += tl.abs(scale * plus - (scale - 1) * minus)
        length, limit = tl.sum(extrapolated, 0), tl.sum(norm, 0)
        free = tau == float("inf")
        limit = tl.where(free, 1.0, tau) * limit
        clipped = (length > limit) & (free == 0)
        factor = tl.where(clipped, limit / tl.where(clipped, length, 1.0), 1.0)
        a, b = alpha * factor * scale + 1 - alpha, alpha * factor * (scale - 1)
    for start in range(0, channels, BLOCK):
        plus = _kept(positive, scales_positive, row, start + block, channels, SIZE, NARROW)
        minus = _kept(negative, scales_negative, row, start + block, channels, SIZE, NARROW)
        to = out + start + block
        tl.store(to, (a * plus - b * minus).to(out.dtype.element_ty), mask=start + block < channels)


def _unit(x: Tensor) -> Tensor:
    """A tensor that can be read in place: with a unit last stride."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _blend(
    positive: Tensor, negative: Tensor, out: Tensor, samples: int, settings: tuple, rule: str,
    scales: Tensor | None = None,
) -> None:  # fmt: skip
    """positive, negative, out [N, C]; a sample is N / samples rows. scales: [2, N, H], where the two are narrow."""
    count, channels = positive.shape
    tensors = isinstance(settings[0], Tensor)
    settings = settings if tensors else tuple(float(x) for x in settings)
    strides = [x.stride(0) if tensors and x.ndim else 0 for x in settings]
    block = min(1024, triton.next_power_of_2(max(channels, 16)))
    blend[(count,)](
        positive, negative, *(out, out) if scales is None else scales, out, *settings, max(count // samples, 1),
        positive.stride(0), negative.stride(0), *strides, channels, NASA=rule != "nag", TENSOR=tensors,
        SIZE=1 if scales is None else channels // scales.shape[2], NARROW=scales is not None, BLOCK=block,
        num_warps=4 if block > 256 else 1,
    )  # fmt: skip


def guidance(positive: Tensor, negative: Tensor, nag_scale, nag_tau, nag_alpha, rule: str = "nag") -> Tensor:
    """As `nag_kernels.guidance`, for inputs that were checked; any dtype but float64."""
    calls["guidance"] += 1
    out = torch.empty_like(positive, memory_format=torch.contiguous_format)
    if out.numel():
        channels, samples = positive.shape[-1], positive.shape[0] if positive.ndim > 1 else 1
        rows = [_unit(x).reshape(-1, channels) for x in (positive, negative)]
        _blend(*rows, out.view(-1, channels), samples, (nag_scale, nag_tau, nag_alpha), rule)
    return out


def _guided(call: Attention, state: tuple[Tensor, Tensor, bool] | None = None) -> Tensor:
    """Both kernels; in the place of the shared keys `state`: (out, logsumexp, whether Z- may lie where `out` does) of an
    attention to them."""
    if not call.query.numel():
        return torch.empty_like(call.query, memory_format=torch.contiguous_format)
    batch, length, heads, size = call.query.shape
    bias = min(max(float(call.negative_logit_bias), -LARGEST_BIAS), LARGEST_BIAS)
    shared = call.key_shared is not None and call.key_shared.shape[1] > 0
    query = _unit(call.query)
    positive, negative = (call.key_positive, call.value_positive), (call.key_negative, call.value_negative)
    last = (call.key_shared, call.value_shared) if shared else positive
    texts = [_unit(x) for x in (*positive, *negative, *last)]
    masks = [call.mask_positive, call.mask_negative, call.mask_shared if shared else None]
    prefix, lse, spent = state or (query, query, False)
    prefix = _unit(prefix)
    strides = [query.stride(i) for i in range(3)]
    for x in texts:
        strides += [x.stride(0) if x.shape[0] == batch else 0, x.stride(1), x.stride(2)]
    for mask in masks:
        strides += [0, 0] if mask is None else [mask.stride(0) if mask.shape[0] == batch else 0, mask.stride(1)]
    strides += [*(prefix.stride(i) for i in range(3)), *(lse.stride(i) for i in range(3))]
    out = torch.empty((batch, length, heads, size), dtype=query.dtype, device=query.device)
    narrow = query.dtype == torch.bfloat16
    if narrow:
        spent = spent and prefix.is_contiguous() and prefix.dtype == out.dtype
        both = [x.view(torch.float16) for x in (out, prefix if spent else torch.empty_like(out))]
    else:
        both = torch.empty((2, *out.shape), dtype=torch.float32, device=query.device)
    scales = torch.empty((2, batch * length, heads), dtype=torch.float32, device=query.device) if narrow else None
    config = tiles(size, query.dtype, capability(query.device))
    branches[(triton.cdiv(length, config["BLOCK_M"]), heads, batch)](
        query, *texts, *(query if mask is None else mask.view(torch.uint8) for mask in masks), prefix, lse, *both,
        *(both if scales is None else scales), length, *(x.shape[1] for x in texts[::2]),
        size**-0.5 if call.softmax_scale is None else float(call.softmax_scale), bias, *strides,
        HEADS=heads, REPEATS=heads // texts[0].shape[2], SIZE=size, SHARED=shared, FINISH=state is not None,
        MASK_POSITIVE=masks[0] is not None, MASK_NEGATIVE=masks[1] is not None, MASK_SHARED=masks[2] is not None,
        VSF=call.rule == "vsf", NARROW=narrow, WIDEN=INTERPRETED and query.dtype == torch.bfloat16,
        BLOCK_D=max(16, triton.next_power_of_2(size)), **config,
    )  # fmt: skip
    settings = (call.nag_scale, call.nag_tau, call.nag_alpha)
    _blend(*(x.view(batch * length, heads * size) for x in (*both, out)), batch, settings, call.rule, scales)
    return out


def fused_guided_attention(*arguments, **named) -> Tensor:
    """As `nag_kernels.fused_guided_attention`, of the fields of `Attention`, for inputs that were checked; any dtype but
    float64."""
    calls["fused_guided_attention"] += 1
    return _guided(Attention(*arguments, **named))


def finish(*arguments, shared_out: Tensor, shared_lse: Tensor, spend: bool = False, **named) -> Tensor:
    """The same with the shared part given: shared_out [B, S, H, D] (query's dtype or float32) and shared_lse [B, H, S]
    (float32, natural logarithm), what an attention of query to the shared keys returned at the same softmax_scale.
    spend: shared_out may be written over."""
    calls["finish"] += 1
    return _guided(Attention(*arguments, **named), (shared_out, shared_lse, spend))


KERNELS = {"fused_guided_attention": fused_guided_attention, "guidance": guidance}
