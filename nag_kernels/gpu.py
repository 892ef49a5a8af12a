# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which kernel serves a call on a GPU, and why the others do not: the rows of gpu_choices.csv, by chip, head size,
lengths and whether there are shared keys, never by batch (the same bits alone and in one).

    cuda text               C++, one launch, two short texts           cuda branches    C++, any lengths, then the blend
    cuda cluster            C++ for an H100, one launch, any lengths
    triton                  one walk over the keys, then the blend
    triton finish flash     torch's FlashAttention over the shared keys, then both texts and the blend; "cudnn": cuDNN,
                            "flash-attn": the package of that name
    sdpa                    torch's own attention, then the formula; float64: reference, the formula alone

A row's source is the benchmark row that it came from, or `unmeasured`; `python -m benchmarks.tune_gpu` rewrites the file.
Calls whose row begins with a plan in C++ meet this module once: from then on csrc/cuda/choice.cpp knows the rows.
"""

import contextlib
import contextvars
import csv
import functools
import importlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import _ops

TABLE = Path(__file__).with_name("gpu_choices.csv")
PLANS = (
    "cuda text", "cuda cluster", "cuda branches", "triton", "triton finish flash", "triton finish cudnn",
    "triton finish flash-attn",
)  # fmt: skip
TEXT_MAX_SIZE, TEXT_MAX_LENGTH, BRANCH_MAX_SIZE = 160, 512, 256  # csrc/cuda/tile_size.h; a test reads both
CLUSTER_MAX_HEADS = {64: 40, 128: 24}  # by head size: those whose Z+ and Z- a cluster can hold; the same
TRITON_MAX_SIZE = 256
# The other attention rounds its output to the element type. In float16 the finish form then makes 0.55 to 0.60 of the eager
# formula's error from here on, and up to 0.70 with few keys, where 0.65 is allowed.
FINISH_MIN_LENGTH = 256
calls: Counter[str] = Counter()  # how often each plan ran from here
_only: contextvars.ContextVar[str | None] = contextvars.ContextVar("nag_kernels_only", default=None)


@dataclass(frozen=True)
class Call:
    """What the choice depends on. `chip`: compute capability times 10."""

    chip: int
    length: int
    heads: int
    size: int
    positive: int
    negative: int
    shared: int = 0
    kv_heads: int | None = None
    mask_shared: bool = False
    dtype: torch.dtype = torch.bfloat16
    rule: str = "nag"


@dataclass(frozen=True)
class Choice:
    """A row of the table. A limit of 0 (an empty cell) is none."""

    chip: int  # from which on the row holds
    shared: int  # 1: with shared keys
    size_to: int
    length_to: int
    text_to: int  # the longer text
    plans: str  # in order of preference
    source: str

    def fits(self, call: Call) -> bool:
        text = max(call.positive, call.negative)
        limits = ((self.size_to, call.size), (self.length_to, call.length), (self.text_to, text))
        return self.chip <= call.chip and self.shared == bool(call.shared) and all(not a or b <= a for a, b in limits)


def read(path: Path = TABLE) -> list[Choice]:
    with path.open(newline="") as file:
        return [
            Choice(**{k: v if k in ("plans", "source") else int(v or 0) for k, v in row.items()})
            for row in csv.DictReader(file)
        ]


def write(rows: list[Choice], path: Path = TABLE) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(Choice.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: v or "" if k.endswith("_to") else v for k, v in vars(row).items()} for row in rows)


@functools.lru_cache(4096)
def find(call: Call) -> Choice | None:
    """The first row that fits among those of the newest chip that is not newer than this one."""
    rows = [row for row in read() if row.fits(call)]
    newest = max((row.chip for row in rows), default=0)
    return next((row for row in rows if row.chip == newest), None)


# --- why a plan cannot run --------------------------------------------------------------------------------------------


def refusal(plan: str, call: Call) -> str | None:
    """Why the kernels of `plan` cannot serve a call, or None if they can."""
    if call.chip < 80:
        return f"it needs compute capability 8.0, this GPU has {call.chip / 10}"
    if call.dtype == torch.float64:
        return "no GPU kernel computes in float64"
    if plan.startswith("cuda"):
        if call.dtype == torch.float32:
            return "its matrix units take bfloat16 and float16, not float32"
        if call.size % 8 or call.size > BRANCH_MAX_SIZE:
            return f"head size {call.size} is no multiple of 8 up to {BRANCH_MAX_SIZE}"
        if plan == "cuda cluster":
            if call.chip != 90:
                return f"it is machine code of compute capability 9.0, this GPU has {call.chip / 10}"
            if not _cluster_is_built():
                return "this library was not compiled for compute capability 9.0"
            if call.dtype != torch.bfloat16:
                return "it takes bfloat16, as what it keeps of a head has 16 bits"
            if call.size > max(CLUSTER_MAX_HEADS):
                return f"head size {call.size} is above {max(CLUSTER_MAX_HEADS)}, where the cluster kernel ends"
            room = next(heads for size, heads in CLUSTER_MAX_HEADS.items() if call.size <= size)
            if call.heads > room:
                return f"a cluster has room for {room} heads of size {call.size}, not for {call.heads}"
        if plan == "cuda text":
            if call.shared:
                return "the one-launch kernel takes no shared keys"
            if call.size > TEXT_MAX_SIZE:
                return f"head size {call.size} is above {TEXT_MAX_SIZE}, where the one-launch kernel ends"
            longest = max(call.positive, call.negative)
            if longest > TEXT_MAX_LENGTH:
                return f"a text of {longest} is above {TEXT_MAX_LENGTH}, where the one-launch kernel ends"
        return None
    if call.size > TRITON_MAX_SIZE:
        return f"head size {call.size} is above {TRITON_MAX_SIZE}"
    if plan.startswith("triton finish"):
        if not call.shared:
            return "there are no shared keys to leave to another attention"
        if call.shared < FINISH_MIN_LENGTH:
            return f"{call.shared} shared keys are below {FINISH_MIN_LENGTH}: rounding their part on its own costs accuracy"
        if call.mask_shared:
            return "the other attention takes no mask of the shared keys"
        if call.kv_heads not in (None, call.heads):
            return f"the other attention has no grouped queries ({call.heads} heads on {call.kv_heads})"
        if call.dtype == torch.float32:
            return "the other attention takes bfloat16 and float16, not float32"
        if plan.endswith("cudnn") and (call.size > 128 or call.size % 8):
            return f"cuDNN takes head sizes up to 128 in multiples of 8, not {call.size}"
        if "flash" in plan and call.size % 8:
            return f"FlashAttention takes head sizes in multiples of 8, not {call.size}"
        if plan.endswith("flash-attn") and not _has_flash_attn():
            return "the package flash-attn is not installed"
    return None


@functools.cache
def _has_flash_attn() -> bool:
    return any(importlib.util.find_spec(name) for name in ("flash_attn", "flash_attn_interface"))


def _cluster_is_built() -> bool:
    """Whether the library at hand has that kernel; where there is no library, whether one could."""
    library = sys.modules.get(f"{__package__}._C_cuda")
    return library is None or library.limits()["cluster_size"] > 0


@functools.cache
def _families() -> tuple[str, ...]:
    from . import backends  # which imports this module

    return tuple(x for x in ("cuda", "triton") if backends.refusal(x, "cuda") is None)


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


def _order(row: Choice | None) -> list[str]:
    """All plans: those of the row first."""
    order = [x.strip() for x in row.plans.split(">")] if row else []
    return order + [plan for plan in PLANS if plan not in order]


def rows_for_cpp(families: tuple[str, ...]) -> list[int]:
    """Of each row six numbers for choice.cpp: its limits, and which of the plans in C++ comes first (0: another one)."""
    numbers = []
    for row in read():
        first = next(plan for plan in _order(row) if plan.split()[0] in families)
        form = {"cuda text": 1, "cuda branches": 2, "cuda cluster": 3}.get(first, 0)
        numbers += [row.chip, row.shared, row.size_to, row.length_to, row.text_to, form]
    return numbers


@functools.cache
def _hand_over() -> None:
    torch.ops.nag_cuda.set_choices(rows_for_cpp(_families()))


@functools.lru_cache(4096)
def choose(call: Call, families: tuple[str, ...]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """(plan that serves, ((other plan, why it does not), ...)) for the families of kernels that may serve."""
    row = find(call)
    chosen, others = None, []
    for plan in _order(row):
        if plan.split()[0] not in families:
            why = f"{plan.split()[0]} is off or not here"
        else:
            why = refusal(plan, call)
            if why is None and chosen is None:
                chosen = plan
                continue
            why = why or f"{chosen} comes first ({row.source if row else 'no row of the table fits'})"
        others.append((plan, why))
    floor = _ops.floor("fused_guided_attention", call.dtype)
    if chosen is None:
        return floor, tuple(others)
    return chosen, (*others, (floor, f"{chosen} comes first"))


def explain(call: Call, families: tuple[str, ...] | None = None) -> str:
    """One line per plan: which serves the call, and why each other one does not."""
    families = turned_on() if families is None else families
    chosen, others = choose(call, families)
    row = find(call)
    source = "" if row is None or chosen in _ops.PLAIN else f" (table row of chip {row.chip / 10}: {row.source})"
    return "\n".join([f"{chosen} serves this call{source}", *(f"{plan} does not: {why}" for plan, why in others)])


# --- running a plan ---------------------------------------------------------------------------------------------------


def _triton():
    return importlib.import_module(".triton_kernels.attention", __package__)


def _overload(operation, setting):
    return operation.tensor if isinstance(setting, Tensor) else operation.default


def run_plan(
    plan: str, query: Tensor, key_positive: Tensor, value_positive: Tensor, key_negative: Tensor, value_negative: Tensor,
    nag_scale, nag_tau, nag_alpha, key_shared: Tensor | None = None, value_shared: Tensor | None = None,
    mask_positive: Tensor | None = None, mask_negative: Tensor | None = None, mask_shared: Tensor | None = None,
    softmax_scale: float | None = None, negative_logit_bias: float = 0.0, rule: str = "nag",
) -> Tensor:  # fmt: skip
    """`fused_guided_attention` by one plan, for input that was checked and that the plan does not refuse."""
    arguments = (query, key_positive, value_positive, key_negative, value_negative, nag_scale, nag_tau, nag_alpha)
    shared = (key_shared, value_shared, mask_positive, mask_negative, mask_shared)
    options = (softmax_scale, negative_logit_bias, rule)
    calls[plan] += 1
    if plan.startswith("cuda"):
        operation = torch.ops.nag_cuda.fused_guided_attention
        return _overload(operation, nag_scale)(*arguments, *shared, *options, plan.split()[1])
    if plan == "triton":
        return _triton().fused_guided_attention(*arguments, *shared, *options)
    if plan.startswith("triton finish"):
        prefix = importlib.import_module(".triton_kernels.prefix", __package__).PREFIXES[plan.split()[2]]
        scale = query.shape[3] ** -0.5 if softmax_scale is None else softmax_scale
        state = prefix(query, key_shared, value_shared, scale)
        return _triton().finish(*arguments, *state, mask_positive, mask_negative, *options, spend=True)
    return _ops.run_plain(plan, "fused_guided_attention", *arguments, *shared, *options)


@functools.cache
def _chip(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)
    return 10 * major + minor


def call_of(query, key_positive, key_negative, key_shared, mask_shared, rule) -> Call:
    _, length, heads, size = query.shape
    return Call(
        _chip(query.device), length, heads, size, key_positive.shape[1], key_negative.shape[1],
        0 if key_shared is None else key_shared.shape[1], key_positive.shape[2], mask_shared is not None, query.dtype, rule,
    )  # fmt: skip


def fused_guided_attention(
    query, key_positive, value_positive, key_negative, value_negative, nag_scale, nag_tau, nag_alpha, key_shared=None,
    value_shared=None, mask_positive=None, mask_negative=None, mask_shared=None, softmax_scale=None,
    negative_logit_bias=0.0, rule="nag",
) -> Tensor:  # fmt: skip
    if "cuda" in _families():
        _hand_over()
    call = call_of(query, key_positive, key_negative, key_shared, mask_shared, rule)
    plan, others = choose(call, turned_on())
    if plan in _ops.PLAIN:
        _ops.LOG.debug("no GPU kernel serves nag::fused_guided_attention: %s", "; ".join(map(": ".join, others)))
    return run_plan(
        plan, query, key_positive, value_positive, key_negative, value_negative, nag_scale, nag_tau, nag_alpha, key_shared,
        value_shared, mask_positive, mask_negative, mask_shared, softmax_scale, negative_logit_bias, rule,
    )  # fmt: skip


def guidance(positive, negative, nag_scale, nag_tau, nag_alpha, rule="nag") -> Tensor:
    families = turned_on()
    if "cuda" in families:
        calls["cuda guidance"] += 1
        operation = torch.ops.nag_cuda.guidance
        return _overload(operation, nag_scale)(positive, negative, nag_scale, nag_tau, nag_alpha, rule)
    if "triton" in families:
        calls["triton guidance"] += 1
        return _triton().guidance(positive, negative, nag_scale, nag_tau, nag_alpha, rule)
    return _ops.run_plain("reference", "guidance", positive, negative, nag_scale, nag_tau, nag_alpha, rule)


KERNELS = {"fused_guided_attention": fused_guided_attention, "guidance": guidance}


# --- warm-up ----------------------------------------------------------------------------------------------------------


def warmup(*layers: dict, device: str | torch.device = "cuda", dtype: torch.dtype = torch.bfloat16) -> list[str]:
    """Compile and load ahead of the first call what layers of these shapes need; nothing is tuned.

    Args:
        layers: each a dict of length, heads, size, positive, negative and, where they apply, batch, kv_heads, shared,
            masks (True: every key set comes with one) and rule. Settings are tensors, as the processors pass them.
    Returns: for each layer a line that says which plan serves it.
    """
    from . import functional

    said = []
    for layer in layers:
        layer = {"batch": 1, "kv_heads": layer["heads"], "shared": 0, "masks": False, "rule": "nag"} | layer
        batch, heads, size = layer["batch"], layer["heads"], layer["size"]
        query = torch.zeros(batch, layer["length"], heads, size, dtype=dtype, device=device)
        inputs: dict = {"query": query}
        for part in ("positive", "negative", "shared"):
            if part != "shared" or layer["shared"]:
                key = query.new_zeros(batch, layer[part], layer["kv_heads"], size)
                inputs |= {f"key_{part}": key, f"value_{part}": key.clone()}
                if layer["masks"]:
                    inputs[f"mask_{part}"] = torch.ones(batch, layer[part], dtype=torch.bool, device=device)
        settings = [torch.full((), x, device=device) for x in (2.0, 2.5, 0.25)]
        functional.fused_guided_attention(
            **inputs, nag_scale=settings[0], nag_tau=settings[1], nag_alpha=settings[2], rule=layer["rule"]
        )
        call = call_of(query, inputs["key_positive"], inputs["key_negative"], inputs.get("key_shared"),
                       inputs.get("mask_shared"), layer["rule"])  # fmt: skip
        served = explain(call).splitlines()[0] if query.is_cuda else f"{device}: no GPU kernel"
        said.append(
            f"{layer['length']} x {heads} x {size}, texts {layer['positive']} and {layer['negative']}: {served}"
        )
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return said
