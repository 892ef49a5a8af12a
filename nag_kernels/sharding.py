# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""How both operations run on DTensor: importing this registers their sharding rules.

`fused_guided_attention` stays where its data is if they are sharded by batch, or the query by its sequence and all keys, values
and masks whole; over a mesh of several dimensions, by either along each. Heads are never sharded: the norms of rule "nag" span
them. Whatever is placed otherwise DTensor moves first. `guidance` stays where it is along all dimensions but the last, for the
same reason. The gradients stay where the operations do: what a tensor that is whole gets from each rank is a part of a sum.

The front doors import this when they first meet a DTensor; a caller of `torch.ops.nag` must do so.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from . import _ops
from .namespace import operations

Sharding = tuple[list[Placement | None], list[Placement | None]]  # of the output, and of each argument


def _placed(arguments: tuple[Any, ...], place: Callable[[Any, int], Placement]) -> Sharding:
    """place(argument, its position) for each that is a tensor, and for the output what the first has."""
    inputs = [place(x, i) if hasattr(x, "placements") else None for i, x in enumerate(arguments)]
    return inputs[:1], inputs


def _by_rows(first: Any, x: Any) -> Placement:
    """Along the first dimension, which one row for all, and a setting for all, do not have."""
    return Shard(0) if x.ndim and x.shape[0] == first.shape[0] else Replicate()


def _both_along(dim: int, x: Any, i: int) -> Placement:
    return Shard(dim) if i < 2 else Replicate()


def _attention(query: Any, *others: Any) -> list[Sharding]:
    arguments = (query, *others)
    return [
        _placed(arguments, lambda x, i: Replicate()),
        _placed(arguments, lambda x, i: _by_rows(query, x)),
        _placed(arguments, lambda x, i: Replicate() if i else Shard(1)),
    ]


def _guidance(positive: Any, *others: Any) -> list[Sharding]:
    arguments = (positive, *others)
    shardings = [_placed(arguments, lambda x, i: Replicate())]
    if positive.ndim > 1:
        shardings.append(_placed(arguments, lambda x, i: _by_rows(positive, x)))
    for dim in range(1, positive.ndim - 1):
        shardings.append(_placed(arguments, functools.partial(_both_along, dim)))
    return shardings


def _gradients(
    forward: Callable[..., list[Sharding]], push: Any, wanted: Sequence[bool], *arguments: Any
) -> list[Sharding]:
    """Of each sharding of an operation, that of its gradient: a derivative is placed as its argument, or is part of a sum."""

    def derivative(want: bool, placed: Placement | None, whole: bool) -> Placement:
        if not want or whole:
            return Replicate()
        return Partial() if isinstance(placed, Replicate) else placed or Replicate()

    shardings: list[Sharding] = []
    for output, inputs in forward(*arguments):
        whole = isinstance(output[0], Replicate)
        outputs = [derivative(want, inputs[i], whole) for i, want in enumerate(wanted)]
        shardings.append(([*outputs], [output[0], None, *inputs]))
    return shardings


def _register() -> None:
    for name in _ops.SCHEMAS:
        op, _, overload = name.partition(".")
        forward = {"fused_guided_attention": _attention, "guidance": _guidance}[op]
        for operation, shardings in ((op, forward), (f"{op}_backward", functools.partial(_gradients, forward))):
            call = getattr(getattr(operations(), operation), overload or "default")
            register_sharding(call)(shardings)


_register()
