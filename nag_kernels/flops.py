# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""How many floating-point operations attention and its gradient take, for `torch.utils.flop_counter.FlopCounterMode`.

Counted as torch counts its own attention: a multiply-add of a matrix product is two operations, and softmax, norms and blend are
left out (so `guidance` counts none). Shared keys are counted once, since both branches walk them once. Masks change no count.
"""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .namespace import operations

Shape = Sequence[int]
COUNTER = "torch.utils.flop_counter"


def _product(query: Shape, key: Shape | None) -> int:
    """Of one matrix product between all rows of the query and the keys of a set: logits, or logits times values."""
    batch, length, heads, size = query
    return 0 if key is None else 2 * batch * length * heads * size * key[1]


def attention(
    query: Shape, key_positive: Shape, value_positive: Shape, key_negative: Shape, value_negative: Shape,
    nag_scale: Any, nag_tau: Any, nag_alpha: Any, key_shared: Shape | None = None, *others: Any, **named: Any,
) -> int:  # fmt: skip
    return 2 * sum(_product(query, key) for key in (key_positive, key_negative, key_shared))


def attention_backward(gradient: Shape, wanted: Sequence[bool], query: Shape, *others: Any, **named: Any) -> int:
    """The attention anew, and the products of those gradients that are wanted."""
    count = 0
    for key in (1, 3, 8):  # positions of the keys among the arguments; their values are one further on
        d_query, d_key, d_value = wanted[0], wanted[key], wanted[key + 1]
        products = 2 + d_query + d_key + d_value + (d_query or d_key)
        count += products * _product(query, others[key - 1])
    return count


def _register(counter: ModuleType) -> None:
    counter.register_flop_formula(operations().fused_guided_attention)(attention)
    counter.register_flop_formula(operations().fused_guided_attention_backward)(attention_backward)


class _Finder(MetaPathFinder):
    """Registers the counts when torch's counter is imported: that takes longer than all of this package, as it loads Triton."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _register(module)


def register_with_counter() -> None:
    """Now, if torch's counter is imported, or as soon as it is."""
    counter = sys.modules.get(COUNTER)
    if counter is None:
        sys.meta_path.insert(0, _Finder())
    else:
        _register(counter)
