# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Guided attention over several processes: the sequence split (context parallelism) or the heads (tensor parallelism).

Sequence split: each process has its share of the image's tokens and of both texts, [text+ ; text- ; image] of its own, with all
heads. Keys and values are gathered, queries stay where they are; so the norms, which span the heads, stay local, and every
softmax is that of one process. Ulysses, ring and both differ in how they exchange keys, not in what is computed; here all
three gather, with the memory of diffusers' ring (which gathers as well) and N / 2 times the traffic of Ulysses over N.

Heads sharded: each process has some heads of all tokens. Only rule "nag" looks across heads, through two sums for each token,
which are added up over the processes. It runs as two attentions then, and the image's keys are met twice.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nag_kernels import fused_guided_attention, reference
from nag_kernels.checks import Attention

_gather: Callable[..., Any]
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # the name until torch 2.12
PLAIN = (1.0, 1.0, 0.0)  # nag_scale, nag_tau, nag_alpha of attention as it is: Z+


def interleaved(positive: Tensor, negative: Tensor, dim: int, degree: int, name: str) -> Tensor:
    """[text+ ; text-] along dim such that each of `degree` equal parts holds its part of both.

    Raises ValueError where a text's length is no multiple of degree.
    """
    lengths = positive.shape[dim], negative.shape[dim]
    if any(length % degree for length in lengths):
        raise ValueError(
            f"guide: {name} must have a length that {degree} devices divide, got {lengths[0]} tokens for the prompt and "
            f"{lengths[1]} for the negative: pad both (max_sequence_length, or ready-made text)"
        )
    parts = zip(positive.chunk(degree, dim), negative.chunk(degree, dim), strict=True)
    return torch.cat([part for pair in parts for part in pair], dim=dim)


def gathered(keys_and_values: list[tuple[Tensor, Tensor]], group: Any) -> list[tuple[Tensor, Tensor]]:
    """Key and value [B, T, H, D] of each part of the sequence from all processes, in their order; one collective for all.

    Raises ValueError where a gradient is wanted: it would miss what the other processes do with these keys.
    """
    lengths = [key.shape[1] for key, _ in keys_and_values]
    local = torch.stack([torch.cat(same, dim=1) for same in zip(*keys_and_values, strict=True)])
    if torch.is_grad_enabled() and local.requires_grad:
        raise ValueError("guided attention has no gradient over several devices; run it under torch.no_grad()")
    size = dist.get_world_size(group)
    everywhere = local.new_empty(size * local.shape[0], *local.shape[1:])
    _gather(everywhere, local, group=group)
    parts = everywhere.unflatten(0, (size, 2)).split(lengths, dim=3)  # of [process, key or value, B, T, H, D]
    whole = [part.permute(1, 2, 0, 3, 4, 5).flatten(2, 3) for part in parts]
    return [(part[0], part[1]) for part in whole]


def attention_with_sharded_heads(*arguments: Any, group: Any, **named: Any) -> Tensor:
    """`fused_guided_attention` on this process's heads, of the fields of `Attention`; group: over which heads are sharded.

    Raises ValueError for a negative_logit_bias under rule "nag", and where a gradient is wanted.
    """
    call = Attention(*arguments, **named)
    if call.rule != "nag":  # which look at each head alone
        return fused_guided_attention(*arguments, **named)
    if call.negative_logit_bias != 0:
        raise ValueError(
            f"negative_logit_bias must be 0 where heads are sharded over devices, got {call.negative_logit_bias:g}"
        )
    if torch.is_grad_enabled() and call.query.requires_grad:
        raise ValueError("guided attention has no gradient over several devices; run it under torch.no_grad()")
    batch = call.query.shape[0]

    def attend(key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Z of one text, [B, S, H * D]."""
        key, value = key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)
        return fused_guided_attention(
            call.query, key, value, key[:, :0], value[:, :0], *PLAIN, mask_positive=mask, key_shared=call.key_shared,
            value_shared=call.value_shared, mask_shared=call.mask_shared, softmax_scale=call.softmax_scale,
        ).flatten(2)  # fmt: skip

    def over_all_heads(sums: Tensor) -> Tensor:
        dist.all_reduce(sums, group=group)
        return sums

    positive = attend(call.key_positive, call.value_positive, call.mask_positive)
    negative = attend(call.key_negative, call.value_negative, call.mask_negative)
    settings = call.nag_scale, call.nag_tau, call.nag_alpha
    return reference.guidance(positive, negative, *settings, total=over_all_heads).view(call.query.shape)
