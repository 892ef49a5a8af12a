# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""First derivatives of the operations, in memory that is linear in the lengths.

A key set is the image's keys, text+ or text-; a branch is what one softmax runs over: the image's keys and a text. Queries are
taken in blocks of rows, each in three steps:

1. Each key set by itself gives exp(S - m) V and the sum of exp(S - m) for its logits S, of which m is a row's largest. With
   weights exp(m - L), L the logsumexp of a branch, the sets of a branch add up to its Z.
2. The formula's own derivative turns dL/dout into dL/dZ+ and dL/dZ-.
3. Each key set gives its part of the gradient, from its logits, computed again where they were too many to be kept:

       P = exp(S - L),  dV = P^T dZ,  dS = P (dZ V^T - delta),  delta = sum(dZ Z),  dQ = scale dS K,  dK = scale dS^T Q

P is exp(S - m) times exp(m - L), a factor of each row, which goes into dZ and delta instead. So where both branches see a key
set, the image's keys, one walk over it serves both: step 3 is linear in dZ and delta, and what the branches bring is added up
before. The method without the second branch is that of FlashAttention (arXiv 2205.14135, appendix B.4).

This serves a GPU, and a CPU where no kernel is built. The CPU kernel has the same three steps (csrc/cpu/gradient_kernel.h).

Arithmetic is float32, float64 for float64 inputs. The order of all sums is fixed, so that the bits are the same on every run.
A gradient that has derivatives itself goes through the reference (_ops.py).
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import Attention
from .reference import accumulate_dtype, as_tensor

# Query rows of a block at most, and numbers in its logits: what stays in the cache of a core, and what fills a GPU.
ROWS, NUMBERS = {"cpu": 1024}, {"cpu": 1 << 21}
ROWS_ELSEWHERE, NUMBERS_ELSEWHERE = 4096, 1 << 26


def formula(
    gradient: Tensor, branches: Sequence[Tensor], settings: Sequence[Tensor], rule: str, dims: tuple[int, ...]
) -> tuple[Tensor, Tensor, Sequence[Tensor]]:  # fmt: skip
    """(dL/dZ+, dL/dZ-, (dL/dscale, dL/dtau, dL/dalpha)) of `reference.guidance`; the last three one number per token.

    gradient is dL/dout, branches are Z+ and Z-. The norms run over `dims`, which hold the numbers of a token; settings have
    a size of 1 there.
    With u = sum(g G), the sums over a token, and e = alpha u where f clips, 0 elsewhere:
        dG  = alpha f g - e f / |G|_1 sign(G)
        dZ+ = (1 - alpha) g + e tau / |G|_1 sign(Z+) + scale dG,   dZ- = -(scale - 1) dG
        dscale = sum(dG (Z+ - Z-)),   dtau = e |Z+|_1 / |G|_1,   dalpha = f u - sum(g Z+)
    """
    (positive, negative), (scale, tau, alpha) = branches, settings
    whole = (gradient * positive).sum(dims, keepdim=True)
    if rule == "nasa":  # out = Z+ - scale Z-
        nothing = torch.zeros_like(whole)
        return gradient, gradient * -scale, (-(gradient * negative).sum(dims, keepdim=True), nothing, nothing)
    extrapolated = torch.addcmul(negative, positive - negative, scale)  # G
    length = extrapolated.abs().sum(dims, keepdim=True)
    norm = positive.abs().sum(dims, keepdim=True)
    no_clip = torch.isinf(tau)
    finite_tau = torch.where(no_clip, 1.0, tau)
    clipped = (length > finite_tau * norm) & ~no_clip
    divisor = torch.where(clipped, length, 1.0)
    factor = torch.where(clipped, finite_tau * norm / divisor, 1.0)
    along = (gradient * extrapolated).sum(dims, keepdim=True)  # u
    pull = torch.where(clipped, alpha * along, 0.0) / divisor  # e / |G|_1
    d_extrapolated = torch.addcmul(gradient * (alpha * factor), extrapolated.sign_(), pull * factor, value=-1)
    d_scale = (d_extrapolated * (positive - negative)).sum(dims, keepdim=True)
    d_positive = torch.addcmul(gradient * (1 - alpha), positive.sign(), pull * finite_tau)
    d_positive.addcmul_(d_extrapolated, scale)
    d_negative = d_extrapolated.mul_(1 - scale)
    return d_positive, d_negative, (d_scale, pull * norm, factor * along - whole)


def guidance(
    gradient: Tensor, wanted: Sequence[bool], positive: Tensor, negative: Tensor, nag_scale: float | Tensor,
    nag_tau: float | Tensor, nag_alpha: float | Tensor, rule: str = "nag",
) -> list[Tensor]:  # fmt: skip
    """dL/d of positive, negative, nag_scale, nag_tau, nag_alpha of the operation `guidance`; empty where not wanted."""
    wide = accumulate_dtype(positive.dtype)
    settings = (nag_scale, nag_tau, nag_alpha)
    branches, wide_settings = [x.to(wide) for x in (positive, negative)], [as_tensor(x, positive) for x in settings]
    d_positive, d_negative, d_settings = formula(gradient.to(wide), branches, wide_settings, rule, (-1,))
    # Of "nasa" dL/dZ+ is dL/dout itself, and an operation gives no tensor that it was given.
    found = [
        x.clone(memory_format=torch.contiguous_format) if x is gradient else x.to(positive.dtype).contiguous()
        for x in (d_positive, d_negative)
    ]
    found += [_sum_to(d, x) for d, x in zip(d_settings, settings, strict=True)]
    return [x if want else gradient.new_empty(0) for x, want in zip(found, wanted, strict=True)]


def _sum_to(gradient: Tensor, setting: float | Tensor) -> Tensor:
    """One number per token [B, ..., 1], summed to the shape of a setting, [] or [B]."""
    if not isinstance(setting, Tensor):
        return gradient.new_empty(0)
    return (gradient.flatten(1).sum(1) if setting.ndim else gradient.sum()).to(setting.dtype)


@dataclass
class KeySet:
    """Keys that are seen as one, of one sample, and what their gradients have come to so far."""

    key: Tensor  # [T, Hkv, D]
    value: Tensor
    visible: Tensor | None  # bool [T]
    bias: float  # of the logits
    factor: Tensor | None  # of the values: -nag_scale for text- of rule "vsf"
    branches: tuple[int, ...]  # that see it
    d_key: Tensor | None  # [T, Hkv, D] in the dtype of the arithmetic; None where not wanted
    d_value: Tensor | None

    def heads(self, first: int, last: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Key and value [n, T, D] of some heads; what is hidden in them (NaN too) is zero."""
        key, value = (x[:, first:last].transpose(0, 1).to(dtype) for x in (self.key, self.value))
        if self.visible is None:
            return key, value
        hidden = ~self.visible[:, None]
        return key.masked_fill(hidden, 0), value.masked_fill(hidden, 0)


@dataclass
class Seen:
    """What a block sees of a key set."""

    out: Tensor  # exp(S - m) V [Hkv, rows, D]
    largest: Tensor  # m, the largest logit of a row [Hkv, rows, 1]
    total: Tensor  # the sum of exp(S - m)
    weights: list[Tensor]  # exp(S - m) of each group of heads, where they are few enough to be kept


@dataclass
class Block:
    """Some rows of the query of one sample."""

    query: Tensor  # [Hkv, rows, D] times `scale`; the query heads of a key head are rows of it
    scale: float
    numbers: int  # of logits at once

    def groups(self, keys: KeySet) -> Iterator[tuple[int, int]]:
        """First and last of the key heads that are taken at once."""
        heads, rows, _ = self.query.shape
        step = max(1, self.numbers // (rows * keys.key.shape[0]))
        return ((first, min(first + step, heads)) for first in range(0, heads, step))

    def weights(self, keys: KeySet, key: Tensor, seen: "Seen", first: int, last: int, find: bool) -> Tensor:
        """exp(S - m) [n, rows, T] of the logits S; m, the largest of each row, is found in step 1, with the sums."""
        weights = torch.bmm(self.query[first:last], key.transpose(1, 2))
        if keys.visible is not None:
            weights.masked_fill_(~keys.visible, -torch.inf)
        largest, total = seen.largest[first:last], seen.total[first:last]
        if find:  # the lowest finite number where no key is seen: every exponential of -inf less that is 0
            torch.amax(weights, -1, keepdim=True, out=largest).clamp_min_(torch.finfo(weights.dtype).min)
        weights.sub_(largest).exp_()
        if find:
            torch.sum(weights, -1, keepdim=True, out=total)
        return weights

    def attend(self, keys: KeySet, keep: bool) -> Seen:
        """Step 1."""
        largest, total = self.query.new_empty(2, *self.query.shape[:2], 1)
        seen = Seen(torch.empty_like(self.query), largest, total, [])
        for first, last in self.groups(keys):
            key, value = keys.heads(first, last, self.query.dtype)
            weights = self.weights(keys, key, seen, first, last, find=True)
            torch.bmm(weights, value, out=seen.out[first:last])
            if keep:
                seen.weights.append(weights)
        return seen

    def differentiate(self, keys: KeySet, seen: Seen, push: Tensor, delta: Tensor, d_query: Tensor | None) -> None:
        """Step 3 for one key set: adds to its gradients and to the query's."""
        for group, (first, last) in enumerate(self.groups(keys)):
            query, d_out = self.query[first:last], push[first:last]
            key, value = keys.heads(first, last, query.dtype)
            if seen.weights:
                weights = seen.weights[group]
            else:
                weights = self.weights(keys, key, seen, first, last, find=False)
            if keys.d_value is not None:
                keys.d_value[:, first:last].transpose(0, 1).baddbmm_(weights.transpose(1, 2), d_out)
            if d_query is None and keys.d_key is None:
                continue
            d_logits = torch.bmm(d_out, value.transpose(1, 2)).sub_(delta[first:last]).mul_(weights)
            if d_query is not None:
                d_query[first:last].baddbmm_(d_logits, key, alpha=self.scale)
            if keys.d_key is not None:
                keys.d_key[:, first:last].transpose(0, 1).baddbmm_(d_logits.transpose(1, 2), query)


def _branch(
    index: int, sets: Sequence[KeySet], every: Sequence[Seen], like: Tensor
) -> tuple[Tensor, dict[int, Tensor]]:
    """Z [Hkv, rows, D] of a branch, and exp(m - L) [Hkv, rows, 1] of each of its key sets; where it sees no key Z is 0.

    exp(m - L) is a quotient of sums, without L: beside a large m the logarithm of a sum would be rounded away.
    """
    lowest = torch.finfo(like.dtype).min
    tops = {
        i: (every[i].largest + keys.bias).clamp_min_(lowest) for i, keys in enumerate(sets) if index in keys.branches
    }
    out = torch.zeros_like(like)
    if not tops:
        return out, {}
    top = functools.reduce(torch.maximum, tops.values())
    shares = {i: (x - top).exp_() for i, x in tops.items()}
    total = functools.reduce(torch.add, (every[i].total * share for i, share in shares.items()))
    total.clamp_min_(1)  # the weight of the largest logit of all; 0 where none is seen
    for i, share in shares.items():
        factor = sets[i].factor
        share.div_(total)
        out.addcmul_(every[i].out, share if factor is None else share * factor)
    return out, shares


def _block(block: Block, gradient: Tensor, sets: Sequence[KeySet], settings: Sequence[Tensor], rule: str, repeats: int,
           d_query: Tensor | None) -> list[Tensor]:  # fmt: skip
    """Adds what the rows of a block bring; returns dL/d of the settings. gradient is dL/dout [Hkv, rows, D]."""

    def by_head(x: Tensor) -> Tensor:
        return x.view(x.shape[0] * repeats, -1, x.shape[2])

    numbers = block.query.shape[0] * block.query.shape[1] * sum(keys.key.shape[0] for keys in sets)
    every = [block.attend(keys, numbers <= 2 * block.numbers) for keys in sets]
    branches = [_branch(index, sets, every, block.query) for index in ((0,) if rule == "vsf" else (0, 1))]
    outs, shares = (list(x) for x in zip(*branches, strict=True))
    del branches
    pushes, d_settings = [gradient], [gradient.new_zeros(())] * 3
    if rule == "vsf":
        for i, share in shares[0].items():
            if sets[i].factor is not None:  # -nag_scale
                d_settings[0] = -((gradient * every[i].out).sum(-1, keepdim=True) * share).sum()
        deltas = [(outs[0] * gradient).sum(-1, keepdim=True)]
    else:
        for seen in every:
            seen.out = gradient.new_empty(0)  # of no more use
        *found, d_each = formula(by_head(gradient), [by_head(z) for z in outs], settings, rule, (0, 2))
        pushes = [x.view(gradient.shape) for x in found]
        deltas = [(z * push).sum(-1, keepdim=True) for z, push in zip(outs, pushes, strict=True)]
        d_settings = [x.sum() for x in d_each]
    del outs
    for i, (keys, seen) in enumerate(zip(sets, every, strict=True)):
        push, delta = (
            functools.reduce(torch.add, (x[b] * shares[b][i] for b in keys.branches)) for x in (pushes, deltas)
        )
        block.differentiate(keys, seen, push if keys.factor is None else push * keys.factor, delta, d_query)
    return d_settings


def _row(x: Tensor, sample: int) -> Tensor:
    """What belongs to a sample, of one for each or one for all."""
    return x[sample if x.shape[0] > 1 else 0]


def _key_sets(call: Attention, sample: int, scale: Tensor, found: dict[str, Tensor]) -> list[KeySet]:
    """Those of a sample that have keys; scale is its nag_scale, found holds the gradients of all samples."""
    vsf, sets = call.rule == "vsf", []
    branches = {"positive": (0,), "negative": (0,) if vsf else (1,), "shared": (0,) if vsf else (0, 1)}
    for name, seen_by in branches.items():
        key, value, mask = (getattr(call, f"{kind}_{name}") for kind in ("key", "value", "mask"))
        if key is None or key.shape[1] == 0:
            continue
        d_key, d_value = (found.get(f"{kind}_{name}") for kind in ("key", "value"))
        sets.append(KeySet(
            key=_row(key, sample), value=_row(value, sample), visible=None if mask is None else _row(mask, sample),
            bias=call.negative_logit_bias if name == "negative" else 0.0,
            factor=-scale if vsf and name == "negative" else None, branches=seen_by,
            d_key=None if d_key is None else _row(d_key, sample),
            d_value=None if d_value is None else _row(d_value, sample),
        ))  # fmt: skip
    return sets


def fused_guided_attention(gradient: Tensor, wanted: Sequence[bool], *arguments: Any) -> list[Tensor]:
    """dL/d of the first ten arguments of the operation `fused_guided_attention`; empty where not wanted.

    gradient: dL/dout [B, S, H, D].  wanted: one for each of the ten.
    """
    call = Attention(*arguments)
    query, dtype, device = call.query, accumulate_dtype(call.query.dtype), call.query.device.type
    batch, length, heads, size = query.shape
    kv_heads = call.key_positive.shape[2]
    repeats, scale = heads // kv_heads, size**-0.5 if call.softmax_scale is None else call.softmax_scale
    numbers = NUMBERS.get(device, NUMBERS_ELSEWHERE)
    names = [name for name, want in zip(Attention._fields, wanted, strict=False) if want]
    tensors: dict[str, Tensor] = {name: getattr(call, name) for name in names}
    found = {  # in the dtype of the arithmetic, but for the query, each row of which is written once
        name: x.new_zeros(x.shape, dtype=dtype if name.startswith(("key", "value")) else x.dtype)
        for name, x in tensors.items()
    }  # fmt: skip
    settings = [as_tensor(x, query).expand(batch, 1, 1, 1) for x in (call.nag_scale, call.nag_tau, call.nag_alpha)]
    d_settings = query.new_zeros(3, batch, dtype=dtype)

    def packed(x: Tensor, sample: int, rows: slice) -> Tensor:
        """[Hkv, rows, D], where the query heads of a key head are rows of it."""
        return x[sample, rows].transpose(0, 1).to(dtype).reshape(kv_heads, -1, size)

    for sample in range(batch if length else 0):
        own = [x[sample] for x in settings]
        sets = _key_sets(call, sample, own[0], found)
        longest = max((keys.key.shape[0] for keys in sets), default=1)
        step = min(ROWS.get(device, ROWS_ELSEWHERE), max(64, numbers // (repeats * longest)))
        for rows in (slice(first, first + step) for first in range(0, length, step)):
            block = Block(packed(query, sample, rows) * scale, scale, numbers)
            d_query = torch.zeros_like(block.query) if "query" in found else None
            of_block = _block(block, packed(gradient, sample, rows), sets, own, call.rule, repeats, d_query)
            d_settings[:, sample] += torch.stack(of_block)
            if d_query is not None:
                found["query"][sample, rows] = d_query.view(heads, -1, size).transpose(0, 1)
    for name, each in zip(Attention._fields[5:8], d_settings, strict=True):
        if name in found:
            found[name] = _sum_to(each[:, None], tensors[name])
    return [
        found[name].to(tensors[name].dtype) if name in found else query.new_empty(0) for name in Attention._fields[:10]
    ]
