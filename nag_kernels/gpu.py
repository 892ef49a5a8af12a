# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Chooses the plan of a call on a GPU, by the rows of gpu_table.py, and runs it.

Calls whose row begins with a plan in C++ meet this module once: from then on csrc/cuda/choice.cpp knows the rows.
"""

import contextlib
import contextvars
import functools
import importlib
import importlib.util
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import _ops, availability
from .checks import Attention
from .gpu_table import Call, find, order, refusal, rows_for_cpp

calls: Counter[str] = Counter()  # how often each plan ran from here
_only: contextvars.ContextVar[str | None] = contextvars.ContextVar("nag_kernels_only", default=None)


@functools.cache
def _families() -> tuple[str, ...]:
    return tuple(x for x in ("cuda", "triton") if availability.refusal(x, "cuda") is None)


def turned_on() -> tuple[str, ...]:
    """The families of kernels that may serve: those that NAG_BACKEND turned on and that are here, or the forced one."""
    only = _only.get()
    return _families() if only is None else tuple(x for x in _families() if x == only)


@contextlib.contextmanager
def only(family: str) -> Iterator[None]:
    """Within it, only the plans of one family ("cuda", "triton") may serve; what it refuses goes to plain PyTorch."""
    token = _only.set(family)
    paused = torch.ops.nag_cuda.pause(True) if "cuda" in _families() else True
    try:
        yield
    finally:
        _only.reset(token)
        if not paused:
            torch.ops.nag_cuda.pause(False)


@functools.cache
def _hand_over() -> None:
    torch.ops.nag_cuda.set_choices(rows_for_cpp(_families()))


@functools.lru_cache(4096)
def choose(call: Call, families: tuple[str, ...]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """(plan that serves, ((other plan, why it does not), ...)) for the families of kernels that may serve."""
    row = find(call)
    chosen: str | None = None
    others: list[tuple[str, str]] = []
    for plan in order(row):
        if plan.split()[0] not in families:
            why = f"{plan.split()[0]} is off or not here"
        else:
            refused = refusal(plan, call)
            if refused is None and chosen is None:
                chosen = plan
                continue
            why = refused or f"{chosen} comes first ({row.source if row else 'no row of the table fits'})"
        others.append((plan, why))
    fallback = _ops.fallback("fused_guided_attention", call.dtype)
    if chosen is None:
        return fallback, tuple(others)
    return chosen, (*others, (fallback, f"{chosen} comes first"))


def explain(call: Call, families: tuple[str, ...] | None = None) -> str:
    """One line per plan: which serves the call, and why each other one does not."""
    families = turned_on() if families is None else families
    chosen, others = choose(call, families)
    row = find(call)
    source = "" if row is None or chosen in _ops.PLAIN else f" (table row of chip {row.chip / 10}: {row.source})"
    return "\n".join([f"{chosen} serves this call{source}", *(f"{plan} does not: {why}" for plan, why in others)])


# --- running a plan ---------------------------------------------------------------------------------------------------


def _triton() -> Any:
    return importlib.import_module(".triton_kernels.attention", __package__)


def _overload(operation: Any, setting: float | Tensor) -> Any:
    return operation.tensor if isinstance(setting, Tensor) else operation.default


def run_plan(plan: str, *arguments: Any, **named: Any) -> Tensor:
    """`fused_guided_attention`, of the fields of `Attention`, by one plan, for input that was checked and that the plan does
    not refuse."""
    call = Attention(*arguments, **named)
    calls[plan] += 1
    if plan.startswith("cuda"):
        operation = torch.ops.nag_cuda.fused_guided_attention
        return _overload(operation, call.nag_scale)(*call, plan.split()[1])
    if plan == "triton":
        return _triton().fused_guided_attention(*call)
    if plan.startswith("triton finish"):
        prefix = importlib.import_module(".triton_kernels.prefix", __package__).PREFIXES[plan.split()[2]]
        scale = call.query.shape[3] ** -0.5 if call.softmax_scale is None else call.softmax_scale
        state = prefix(call.query, call.key_shared, call.value_shared, scale)
        given = call._asdict()
        del given["key_shared"], given["value_shared"], given["mask_shared"]
        return _triton().finish(**given, shared_out=state[0], shared_lse=state[1], spend=True)
    return _ops.run_plain(plan, "fused_guided_attention", *call)


@functools.cache
def _chip(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
    return 10 * major + minor


def call_of(
    query: Tensor, key_positive: Tensor, key_negative: Tensor, key_shared: Tensor | None, mask_shared: Tensor | None, rule: str
) -> Call:  # fmt: skip
    _, length, heads, size = query.shape
    return Call(
        _chip(query.device), length, heads, size, key_positive.shape[1], key_negative.shape[1],
        0 if key_shared is None else key_shared.shape[1], key_positive.shape[2], mask_shared is not None, query.dtype, rule,
    )  # fmt: skip


def fused_guided_attention(*arguments: Any, **named: Any) -> Tensor:
    """Of the fields of `Attention`."""
    given = Attention(*arguments, **named)
    if "cuda" in _families():
        _hand_over()
    call = call_of(given.query, given.key_positive, given.key_negative, given.key_shared, given.mask_shared, given.rule)
    plan, others = choose(call, turned_on())
    if plan in _ops.PLAIN:
        _ops.LOG.debug("no GPU kernel serves nag::fused_guided_attention: %s", "; ".join(map(": ".join, others)))
    return run_plan(plan, *given)


def guidance(
    positive: Tensor, negative: Tensor, nag_scale: float | Tensor, nag_tau: float | Tensor, nag_alpha: float | Tensor,
    rule: str = "nag",
) -> Tensor:  # fmt: skip
    arguments = (positive, negative, nag_scale, nag_tau, nag_alpha, rule)
    families = turned_on()
    if "cuda" in families:
        calls["cuda guidance"] += 1
        operation = torch.ops.nag_cuda.guidance
        return _overload(operation, nag_scale)(*arguments)
    if "triton" in families:
        calls["triton guidance"] += 1
        return _triton().guidance(*arguments)
    return _ops.run_plain("reference", "guidance", *arguments)


KERNELS: _ops.Operations
KERNELS = {"fused_guided_attention": fused_guided_attention, "guidance": guidance}


# --- warm-up ----------------------------------------------------------------------------------------------------------
