# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The rows of gpu_choices.csv: which plan serves a call on a GPU, and what each plan refuses. Nothing here runs a kernel.

    cuda text               C++, one launch, two short texts           cuda branches    C++, any lengths, then the blend
    cuda cluster            C++ for an H100, one launch, any lengths
    triton                  one walk over the keys, then the blend
    triton finish flash     torch's FlashAttention over the shared keys, then both texts and the blend; "cudnn": cuDNN,
                            "flash-attn": the package of that name
    cuda guidance           torch's own attention once for each branch, then one kernel; "triton guidance": that of Triton
    sdpa                    torch's own attention, then the plain formula; float64: reference, the formula alone

Rows hold by chip, head size and lengths, never by batch (the same bits alone and in one). A row's source is the benchmark row
that it came from, or `unmeasured`; `python -m benchmarks.tune_gpu` rewrites the file.
"""

import csv
import functools
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from .whole_file import whole_file

TABLE = Path(__file__).with_name("gpu_choices.csv")
PLANS = (
    "cuda text", "cuda cluster", "cuda branches", "triton", "triton finish flash", "triton finish cudnn",
    "triton finish flash-attn", "cuda guidance", "triton guidance",
)  # fmt: skip
TEXT_MAX_SIZE, TEXT_MAX_LENGTH, BRANCH_MAX_SIZE = 160, 512, 256  # csrc/cuda/tile_size.h; a test reads both
CLUSTER_MAX_HEADS = {64: 40, 128: 24}  # by head size: those whose Z+ and Z- a cluster can hold; the same
TRITON_MAX_SIZE = 256
# The other attention rounds its output to the element type. In float16 the finish form then makes 0.55 to 0.60 of the eager
# formula's error from here on, and up to 0.70 with few keys, where 0.65 is allowed.
FINISH_MIN_LENGTH = 256


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


def _limits(row: dict[str, str]) -> tuple[int, int, int, int, int]:
    chip, shared, *limits = (int(row[x] or 0) for x in ("chip", "shared", "size_to", "length_to", "text_to"))
    size_to, length_to, text_to = limits
    return chip, shared, size_to, length_to, text_to


def read(path: Path = TABLE) -> list[Choice]:
    with path.open(newline="") as file:
        return [Choice(*_limits(row), row["plans"], row["source"]) for row in csv.DictReader(file)]


def write(rows: list[Choice], path: Path = TABLE) -> None:
    with whole_file(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(Choice.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: v or "" if k.endswith("_to") else v for k, v in vars(row).items()} for row in rows)


@functools.lru_cache(4096)
def find(call: Call) -> Choice | None:
    """The first row that fits among those of the newest chip that is not newer than this one."""
    rows = [row for row in read() if row.fits(call)]
    newest = max((row.chip for row in rows), default=0)
    return next((row for row in rows if row.chip == newest), None)


def refusal(plan: str, call: Call) -> str | None:
    """Why the kernels of `plan` cannot serve a call, or None if they can."""
    if call.chip < 80:
        return f"it needs compute capability 8.0, this GPU has {call.chip / 10}"
    if call.dtype == torch.float64:
        return "no GPU kernel computes in float64"
    if plan.endswith("guidance"):
        return "vsf is one softmax over all keys, no function of two attentions" if call.rule == "vsf" else None
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


def order(row: Choice | None) -> list[str]:
    """All plans: those of the row first."""
    order = [x.strip() for x in row.plans.split(">")] if row else []
    return order + [plan for plan in PLANS if plan not in order]
