# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a plan must get right against float64 before it may serve, and its times beside torch's attention and the formula."""

import contextlib
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import gpu, gpu_table, sdpa, testing
from .layers import Layer
from .verdicts import RIGHT, SLOWER

SETTINGS = {"nag": (5.0, 2.5, 0.25), "nasa": (0.5, 2.5, 0.25), "vsf": (3.5, 2.5, 0.25)}
USUAL: dict[str, Any] = {"length": 130, "heads": 3, "size": 64, "dtype": torch.bfloat16}
CASES: dict[str, dict[str, Any]] = {  # few: Triton compiles each for some seconds
    "two short texts": {"positive": 77, "negative": 77},
    "a tail of queries and keys, grouped queries, float16": {
        "length": 333, "heads": 6, "kv_heads": 2, "positive": 9, "negative": 17, "dtype": torch.float16,
    },
    "float32": {"positive": 12, "negative": 20, "dtype": torch.float32},
    "masks, a negative of batch 1": {"batch": 3, "negative_batch": 1, "positive": 33, "negative": 20, "masks": True},
    "many heads": {"heads": 40, "positive": 300, "negative": 512},
    "head size 40": {"heads": 8, "size": 40, "positive": 77, "negative": 77},
    "shared keys, bias": {"positive": 12, "negative": 70, "shared": 300, "bias": math.log(3)},
    "shared keys, masks": {"batch": 2, "positive": 12, "negative": 20, "shared": 333, "masks": True},
    "shared keys, head size 128, 24 heads": {"heads": 24, "size": 128, "positive": 64, "negative": 40, "shared": 270},
    "shared keys, an empty negative": {"positive": 9, "negative": 0, "shared": 270},
    "nasa": {"positive": 77, "negative": 77, "rule": "nasa"},
    "vsf": {"positive": 77, "negative": 77, "rule": "vsf"},
    "vsf, shared keys": {"positive": 33, "negative": 20, "shared": 270, "rule": "vsf"},
}  # fmt: skip
SOME_QUERIES = 64  # of a timed layer, held against float64
Say = Callable[..., None]


class WrongError(Exception):
    """A plan gave other numbers than it may."""


def refused(plan: str, inputs: dict[str, Any], rule: str) -> str | None:
    call = gpu.call_of(inputs["query"], inputs["key_positive"], inputs["key_negative"], inputs.get("key_shared"),
                       inputs.get("mask_shared"), rule)  # fmt: skip
    return gpu_table.refusal(plan, call) or gpu.refused_by_device(plan, inputs["query"].device)


def run(plan: str, inputs: dict[str, Any], rule: str = "nag") -> Tensor:
    """With settings as tensors, as the processors pass them."""
    device = inputs["query"].device
    settings = tuple(torch.full((), x, device=device) for x in SETTINGS[rule])
    return gpu.run_plan(plan, **testing.with_settings(inputs, settings), rule=rule)


def _spoil(device: torch.device) -> None:
    """NaN in the memory that the next call gets: what a kernel leaves unwritten shows."""
    spoilt = [torch.full((n,), math.nan, device=device) for n in (1 << 10, 1 << 14, 1 << 18, 1 << 22)]
    del spoilt


def check(plan: str, inputs: dict[str, Any], rule: str, found: Tensor, rows: slice | Tensor | None = None) -> None:
    """Raises: WrongError where the numbers are further from float64 than the plan may be."""
    if rows is not None:
        inputs, found = inputs | {"query": inputs["query"][:, rows]}, found[:, rows]
    # The finish form takes over the rounding of another attention, which shows in float16.
    rounded = plan.endswith("guidance") or ("finish" in plan and found.dtype == torch.float16)
    exact = testing.truth(inputs, *SETTINGS[rule], rule=rule)
    error, allowed = testing.error(found, exact), testing.limit(inputs, exact, SETTINGS[rule], rule, rounded)
    if not error <= allowed:
        raise WrongError(f"error {error:.3g} against float64, allowed {allowed:.3g}")


def _equal(one: Tensor, other: Tensor, what: str) -> None:
    if not torch.equal(one, other):
        raise WrongError(f"other bits {what}")


def _ways(plan: str, inputs: dict[str, Any], expected: Tensor) -> None:
    """The same call by other ways: again, from turned tensors, on another stream, replayed from a graph."""
    device = expected.device
    _spoil(device)
    _equal(run(plan, inputs), expected, "in a second run")
    turned = {
        name: x.transpose(1, 2).contiguous().transpose(1, 2) if isinstance(x, Tensor) and x.ndim == 4 else x
        for name, x in inputs.items()
    }
    check(plan, inputs, "nag", run(plan, turned))  # torch's own attention need not have the same bits there
    if device.type != "cuda":
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        out = run(plan, {name: x * 1 if isinstance(x, Tensor) else x for name, x in inputs.items()})
    stream.synchronize()
    _equal(out, expected, "on another stream")
    graph = torch.cuda.CUDAGraph()
    settings = tuple(torch.full((), x, device=device) for x in SETTINGS["nag"])
    with torch.cuda.graph(graph):
        out = gpu.run_plan(plan, **testing.with_settings(inputs, settings))
    out.fill_(math.nan)
    graph.replay()
    torch.cuda.synchronize(device)
    _equal(out, expected, "from a graph that is replayed")


def _microseconds(call: Callable[[], Any], device: torch.device) -> float:
    """Of one call, the median of seven runs of some 10 ms each, after a warm-up."""

    def several(n: int) -> float:
        if device.type != "cuda":
            begun = time.perf_counter()
            for _ in range(n):
                call()
            return (time.perf_counter() - begun) / n * 1e6
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(n):
            call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / n * 1e3

    several(3)
    n = max(1, min(200, int(1e4 / max(several(1), 1.0))))
    return statistics.median(several(n) for _ in range(7))


def _inputs(layer: Layer, device: torch.device) -> dict[str, Any]:
    """Normal random tensors, made on the device: a long layer would take seconds on the host."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(length: int) -> Tensor:
        shape = (1, length, layer.heads, layer.size)
        return torch.randn(shape, generator=generator, device=device).to(layer.torch_dtype())

    parts = {"positive": layer.positive, "negative": layer.negative} | (
        {"shared": layer.shared} if layer.shared else {}
    )
    keys = {f"{kind}_{part}": normal(length) for part, length in parts.items() for kind in ("key", "value")}
    return {"query": normal(layer.length), **keys}


def time_layer(plan: str, layer: Layer, device: torch.device) -> tuple[float, float] | None:
    """Microseconds of the plan and of sdpa, once some of the plan's rows were found right; None where it refuses the layer."""
    inputs = _inputs(layer, device)
    if refused(plan, inputs, "nag") is not None:
        return None
    every = max(1, layer.length // SOME_QUERIES)
    check(plan, inputs, "nag", run(plan, inputs), slice(None, None, every))
    settings = tuple(torch.full((), x, device=device) for x in SETTINGS["nag"])
    given = testing.with_settings(inputs, settings)
    ours = _microseconds(lambda: gpu.run_plan(plan, **given), device)
    return ours, _microseconds(lambda: sdpa.fused_guided_attention(**given), device)


@torch.no_grad()
def try_plan(
    plan: str, device: torch.device, layers: list[Layer], say: Say, cases: dict[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """{"state", "why"} of a plan on a device; `say` hears each step. Raises what a kernel raises."""
    cases = CASES if cases is None else cases
    passed, why_not, first, name = 0, "no case", None, "no case"
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        try:
            for name, options in cases.items():
                say(next=name, passed=passed)
                options = {**USUAL, **options, "device": str(device)}
                rule = options.pop("rule", "nag")
                inputs = testing.make_inputs(**options)
                why = refused(plan, inputs, rule)
                if why is not None:
                    why_not = why
                    continue
                _spoil(device)
                out = run(plan, inputs, rule)
                check(plan, inputs, rule, out)
                passed += 1
                if first is None and rule == "nag":
                    name, first = "the same by other ways", inputs
                    say(next=name, passed=passed)
                    _ways(plan, inputs, out)
                    passed += 1
            if not passed:
                return {"state": "refused", "why": why_not}
            times = {}
            for layer in layers:
                name = f"the times of {layer.name()}"
                say(next=name, passed=passed)
                try:
                    found = time_layer(plan, layer, device)
                except torch.OutOfMemoryError:  # of a layer too large for this GPU nothing is known
                    torch.cuda.empty_cache()
                    continue
                if found is not None:
                    times[layer.name()] = found
                    say(times={layer.name(): found}, passed=passed)
        except WrongError as error:
            return {"state": "wrong", "why": f"{error}, at {name}"}
    if times and all(ours >= theirs for ours, theirs in times.values()):
        return {"state": SLOWER, "why": "at no layer faster than sdpa", "passed": passed}
    return {"state": RIGHT, "why": "", "passed": passed}
