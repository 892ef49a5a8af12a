# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Chooses the plan of a call on a GPU, by the rows of gpu_table.py or by what is known of this GPU, and runs it.

Where NAG_BACKEND turned kernels on, the rows choose. Else a plan serves only where it was proven right and faster on a GPU of
this kind (prove/verdicts.py), in the order of the times found there. csrc/cuda/choice.cpp remembers what was chosen for a call:
calls that a plan in C++ serves meet this module once.
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

from . import _ops, availability, sdpa
from .checks import Attention
from .gpu_table import Call, find, order, refusal
from .namespace import operations
from .prove import verdicts
from .prove.verdicts import Verdict

calls: Counter[str] = Counter()  # how often each plan ran from here
RULES = ("nag", "nasa", "vsf")  # in the order of params.h
NOTHING_KNOWN = Verdict()
_only: contextvars.ContextVar[str | None] = contextvars.ContextVar("nag_kernels_only", default=None)


@functools.cache
def _families() -> tuple[str, ...]:
    return tuple(x for x in ("cuda", "triton") if availability.refusal(x, "cuda") is None)


def turned_on() -> tuple[str, ...]:
    """The families of kernels that may serve: those that NAG_BACKEND or a verdict turned on and that are here, or the forced
    one."""
    only = _only.get()
    return _families() if only is None else tuple(x for x in _families() if x == only)


@contextlib.contextmanager
def only(family: str) -> Iterator[None]:
    """Within it, only the plans of one family ("cuda", "triton") may serve; what it refuses goes to plain PyTorch."""
    token = _only.set(family)
    paused = operations("_cuda").pause(True) if "cuda" in _families() else True
    try:
        yield
    finally:
        _only.reset(token)
        if not paused:
            operations("_cuda").pause(False)


# --- what is known of a GPU ---------------------------------------------------------------------------------------------

HINT = (
    "the fused kernels for this GPU are off: `%s` tries each on it, in a few minutes, and turns on those that are right and "
    "faster (by count, a FLUX layer's guidance is one kernel and 72 MiB in place of 10 and 456); NAG_PROVE=off says no more"
)


@functools.cache
def verdict_of(device: torch.device) -> Verdict | None:
    """What is known of the plans on a GPU; None where NAG_BACKEND chose, and no verdict is asked."""
    if availability.ASKED is not None or device.type != "cuda":
        return None
    facts = verdicts.facts_of(device)
    found = verdicts.read(facts)
    if not found.plans and availability.PROVE == "auto":
        found = _prove_guidance(device, facts)
    if not found.plans and availability.PROVE != "off":
        _ops.LOG.warning(HINT, verdicts.COMMAND)
    return found


def _prove_guidance(device: torch.device, facts: verdicts.Facts) -> Verdict:
    """NAG_PROVE=auto: the plan of least risk shows itself right, in a process of its own, before the first call."""
    from .prove import layers, run

    plans = run.commands(["triton guidance"], layers.USUAL[:2])
    _ops.LOG.warning("NAG_PROVE=auto: trying `triton guidance` on this GPU, once")
    found = run.prove(facts, plans, layers.USUAL[:2], device=verdicts.visible_name(device), wait=60, say=_ops.LOG.info)
    _families.cache_clear()
    return found


@functools.cache
def refused_by_device(plan: str, device: torch.device) -> str | None:
    """Why this device cannot run the code of a plan, as the library finds it, asked once; None if it can."""
    if not plan.startswith("cuda") or "cuda" not in _families():
        return None
    said: str = operations("_cuda").device_refusal(device.index or 0, plan.split()[1])
    return said or None


# --- the choice ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(4096)
def choose(
    call: Call, families: tuple[str, ...], verdict: Verdict | None = None, device: torch.device | None = None
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """(plan that serves, ((other plan, why it does not), ...)) for the families of kernels that may serve.

    verdict: what is known of the GPU, where plans need that.  device: asked for what it cannot run.
    """
    row = find(call)
    plans = order(row) if verdict is None else verdict.ranked(order(row), call)
    chosen: str | None = None
    others: list[tuple[str, str]] = []
    for plan in plans:
        refused = refusal(plan, call)
        if plan.split()[0] not in families:
            refused = f"{plan.split()[0]} is off or not here"
        if refused is None and verdict is not None:
            refused = verdict.refusal(plan, call)
        if refused is None and device is not None:
            refused = refused_by_device(plan, device)
        if refused is None and chosen is None:
            chosen = plan
            continue
        others.append((plan, refused or f"{chosen} comes first ({_source(call, verdict)})"))
    fallback = _ops.fallback("fused_guided_attention", call.dtype)
    if chosen is None:
        return fallback, tuple(others)
    return chosen, (*others, (fallback, f"{chosen} comes first"))


def _source(call: Call, verdict: Verdict | None) -> str:
    if verdict is not None:
        return "by the times found on this GPU"
    row = find(call)
    return "no row of the table fits" if row is None else f"table row of chip {row.chip / 10}: {row.source}"


def explain(call: Call, families: tuple[str, ...] | None = None, device: torch.device | None = None) -> str:
    """One line per plan: which serves the call, and why each other one does not.

    families: as if NAG_BACKEND had turned these on.  device: for what is known of that GPU.
    """
    verdict = None
    if families is None and availability.ASKED is None:
        verdict = NOTHING_KNOWN if device is None else verdict_of(device)
    families = turned_on() if families is None else families
    chosen, others = choose(call, families, verdict, device)
    source = "" if chosen in _ops.PLAIN else f" ({_source(call, verdict)})"
    return "\n".join([f"{chosen} serves this call{source}", *(f"{plan} does not: {why}" for plan, why in others)])


def explain_here(call: Call) -> str:
    """`explain` with what is known of the current GPU, where there is one of the call's chip."""
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        if _chip(device) == call.chip:
            return explain(call, device=device)
    return explain(call)


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
    if plan.endswith("guidance"):
        positive, negative = sdpa.branches(call)
        arguments = (positive.flatten(2), negative.flatten(2), call.nag_scale, call.nag_tau, call.nag_alpha, call.rule)
        return run_guidance(plan, *arguments).view(call.query.shape)
    if plan.startswith("cuda"):
        operation = operations("_cuda").fused_guided_attention
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


@functools.lru_cache(4096)
def _remember(index: int, call: Call, form: str) -> None:
    """From now on csrc/cuda/choice.cpp serves such calls on this device by this form."""
    facts = (call.dtype == torch.float16, call.length, call.heads, call.size, call.positive, call.negative, call.shared,
             call.kv_heads or call.heads, call.mask_shared, RULES.index(call.rule))  # fmt: skip
    operations("_cuda").remember(index, [int(x) for x in facts], form)


def fused_guided_attention(*arguments: Any, **named: Any) -> Tensor:
    """Of the fields of `Attention`."""
    given = Attention(*arguments, **named)
    call = call_of(given.query, given.key_positive, given.key_negative, given.key_shared, given.mask_shared, given.rule)
    device = given.query.device
    verdict = verdict_of(device)  # which may turn families on
    plan, others = choose(call, turned_on(), verdict, device)
    if plan in _ops.PLAIN:
        _ops.LOG.debug("no GPU kernel serves nag::fused_guided_attention: %s", "; ".join(map(": ".join, others)))
    elif plan.startswith("cuda") and not plan.endswith("guidance") and _only.get() is None:
        _remember(device.index or 0, call, plan.split()[1])
    return run_plan(plan, *given)


@functools.lru_cache(256)
def choose_guidance(families: tuple[str, ...], verdict: Verdict | None, device: torch.device) -> str | None:
    """The plan whose kernel serves the operation `guidance`; None where plain PyTorch does."""
    for plan in ("cuda guidance", "triton guidance"):
        off = plan.split()[0] not in families or (verdict is not None and verdict.refusal(plan) is not None)
        if not off and refused_by_device(plan, device) is None:
            return plan
    return None


@functools.cache
def _allow_guidance(index: int) -> None:
    """From now on csrc/cuda/choice.cpp serves the operation `guidance` on this device."""
    operations("_cuda").allow_guidance(index)


def run_guidance(plan: str, *arguments: Any) -> Tensor:
    """The operation `guidance` by the kernel of a plan, for input that was checked."""
    if plan.startswith("cuda"):
        return _overload(operations("_cuda").guidance, arguments[2])(*arguments)
    return _triton().guidance(*arguments)


def guidance(
    positive: Tensor, negative: Tensor, nag_scale: float | Tensor, nag_tau: float | Tensor, nag_alpha: float | Tensor,
    rule: str = "nag",
) -> Tensor:  # fmt: skip
    arguments = (positive, negative, nag_scale, nag_tau, nag_alpha, rule)
    device = positive.device
    verdict = verdict_of(device)
    plan = choose_guidance(turned_on(), verdict, device)
    if plan is None:
        return _ops.run_fallback("guidance", *arguments)
    if plan == "cuda guidance" and _only.get() is None:
        _allow_guidance(device.index or 0)
    calls[plan] += 1
    return run_guidance(plan, *arguments)


KERNELS: _ops.Operations
KERNELS = {"fused_guided_attention": fused_guided_attention, "guidance": guidance}
