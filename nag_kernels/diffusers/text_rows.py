# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Texts of the denoiser's calls, and their rows, compared by value."""

from typing import Any

import torch
from torch import Tensor

from .packing import in_turn


def same(one: Any, two: Any) -> bool:
    """Whether two texts are the same to the bit. Zeros, which stand for no text, are the same at any length."""
    if one is two:
        return True
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        if one.shape == two.shape and one.dtype == two.dtype:
            return torch.equal(one, two.to(one.device))
        return one.is_floating_point() and two.is_floating_point() and not one.any() and not two.any()
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        return len(one) == len(two) and all(same(x, y) for x, y in zip(one, two, strict=True))
    return False


def same_halves(one: Any, two: Any) -> list[bool]:
    """Of a batch; none where the two cannot be compared."""
    tensors = isinstance(one, Tensor) and isinstance(two, Tensor) and one.shape == two.shape
    rows = isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)) and len(one) == len(two)
    return [same(x, y) for x, y in zip(halves(one), halves(two), strict=True)] if tensors or rows else []


def halves(batch: Any) -> list[Any]:
    """Of a tensor, or of a list with one for each row."""
    return [batch[: len(batch) // 2], batch[len(batch) // 2 :]]


def is_half(text: Any, whole: Any) -> bool:
    return len(whole) == 2 * len(text) and any(same(text, half) for half in halves(whole))


def has_rows(text: Any, dim: int) -> bool:
    """Whether a text has one row for each image: a tensor with a batch, or a list with a text for each. dim: of its tokens."""
    if isinstance(text, Tensor):
        return dim != 0
    return dim == 0 and isinstance(text, (list, tuple)) and all(isinstance(x, Tensor) for x in text)


def same_rows(one: Any, two: Any, dim: int) -> list[bool]:
    """Of each row of two batches whether it is the same in both, as far as both are long: a batch may be padded to its longest
    text. No row is where they are not as many. dim: of the tokens."""
    if not has_rows(two, dim) or len(one) != len(two):
        return []
    at = dim - 1 if dim > 0 else dim
    return [_begin_alike(x, y, at) for x, y in zip(one, two, strict=True)]


def _begin_alike(one: Tensor, two: Tensor, dim: int) -> bool:
    if one.ndim != two.ndim:
        return False
    length = min(one.shape[dim], two.shape[dim])
    one, two = one.narrow(dim, 0, length), two.narrow(dim, 0, length)
    return one.shape == two.shape and torch.equal(one, two.to(one))


def different_rows(text: Any) -> int:
    return sum(not any(same(text[i], text[j]) for j in range(i)) for i in range(len(text)))


def rows_of_prompts(text: Any, prompts: int, times: int) -> bool:
    """Whether the rows are those of so many prompts, each so many times: one after another, or all of them again and again."""
    rows, each = len(text), len(text) // prompts
    if rows % (prompts * times):
        return False
    if isinstance(text, Tensor):
        together = text.unflatten(0, (prompts, each))
        return torch.equal(together, together[:, :1].expand_as(together)) or in_turn(text, prompts)
    return any(all(same(text[i], text[first(i)]) for i in range(rows))
               for first in (lambda i: i - i % each, lambda i: i % prompts))  # fmt: skip
