# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Times nag::fused_guided_attention beside two attentions and the formula, and beside attention alone.

Each provider is first compared with float64 on a part of the queries and not timed if it is wrong. Providers take turns
call by call, so that a change of clock or a busy neighbour meets all of them; inputs rotate through copies. Times are those
of the device: events on a GPU, the clock on a CPU. Rows go to benchmarks/results/ as they come, so a run cut short keeps them.
"""

import argparse
import functools
import math
import os
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from nag_kernels import testing

from .machine import RESULTS, Rows, describe, fma_peak, sentence
from .providers import PROVIDERS, SETTINGS, Run, served, verify
from .workloads import CPU, GPU, Workload

HAS_PROC = os.path.exists("/proc/self/status")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COPIES = {"cpu": 64 << 20, "cuda": 256 << 20}  # bytes of inputs to rotate through; on a GPU more than its cache


# --- timing -----------------------------------------------------------------------------------------------------------


class Clock:
    """Milliseconds of a call: by events on a GPU, so that launches which the CPU cannot keep up with count as in a model."""

    def __init__(self, device: str):
        self.on_gpu = torch.device(device).type == "cuda"

    def time(self, call: Callable) -> tuple:
        if not self.on_gpu:
            start = time.perf_counter()
            call()
            return start, time.perf_counter()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        return start, end

    def milliseconds(self, pair: tuple) -> float:
        start, end = pair
        return start.elapsed_time(end) if self.on_gpu else (end - start) * 1e3

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


def rotated(inputs: dict, device: str) -> list[dict]:
    size = sum(x.numel() * x.element_size() for x in inputs.values())
    count = min(16, math.ceil(COPIES[torch.device(device).type] / size))
    return [inputs] + [{name: x.clone() for name, x in inputs.items()} for _ in range(count - 1)]


def measure(runs: dict[str, Run], copies: list[dict], seconds: float, clock: Clock) -> dict[str, list[float]]:
    """Milliseconds of single calls, the providers in turns; the first fifth of the time is warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    start, turn = time.perf_counter(), 0
    while time.perf_counter() < start + seconds or min(map(len, times.values())) < 5:
        warm, inputs = time.perf_counter() < start + seconds / 5, copies[turn % len(copies)]
        pairs = {name: clock.time(functools.partial(run, inputs)) for name, run in runs.items()}
        clock.wait()
        turn += 1
        if not warm:
            for name, pair in pairs.items():
                times[name].append(clock.milliseconds(pair))
    return times


def spread(times: list[float]) -> tuple[float, float, float]:
    """p20, p50, p80."""
    tenths = statistics.quantiles(times, n=10, method="inclusive")
    return tenths[1], tenths[4], tenths[7]


# --- memory, overhead, growth -----------------------------------------------------------------------------------------

PEAK_MEMORY = """
import sys, torch
from benchmarks.providers import PROVIDERS
from benchmarks.workloads import CPU
name, provider = sys.argv[1:]
w = next(w for w in CPU if w.name == name)
make = lambda length: torch.ones(w.batch, length, w.heads, w.size)
inputs = {"query": make(w.length)}
for part, length in (("positive", w.text), ("negative", w.text), ("shared", w.shared)):
    if length:
        inputs[f"key_{part}"], inputs[f"value_{part}"] = make(length), make(length)
run = PROVIDERS[provider].set_up("cpu")
run({key: x[:, :8] for key, x in inputs.items()})
# Not ru_maxrss: a process inherits that from its parent.
peak = lambda: int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1])
before = peak()
run(inputs)
print(peak() - before)
"""


def peak_memory(workload: Workload, provider: str) -> float:
    """MiB by which one float32 call raises the peak resident memory of a fresh process, its output included."""
    command = [sys.executable, "-c", PEAK_MEMORY, workload.name, provider]
    done = subprocess.run(command, cwd=RESULTS.parents[1], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 2**10


def call_overhead() -> dict[str, float]:
    """Microseconds of one call on one token and key, by mode: what dispatch and the autograd layer cost."""
    inputs = testing.make_inputs(length=1, heads=1, size=8, positive=1, negative=1)
    tensors = [inputs[n] for n in ("query", "key_positive", "value_positive", "key_negative", "value_negative")]
    op = torch.ops.nag.fused_guided_attention

    def cost():
        return min(timeit.repeat(lambda: op(*tensors, *SETTINGS), number=2000, repeat=5)) / 2000 * 1e6

    found = {"normal mode": cost()}
    with torch.no_grad():
        found["no_grad"] = cost()
    with torch.inference_mode():
        found["inference_mode"] = cost()
    return found


def device_memory(run: Run, inputs: dict) -> float:
    """MiB that one call takes on a GPU beyond what was there, its output included."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = run(inputs)
    torch.cuda.synchronize()
    del out
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def growth(workload: Workload, device: str, clock: Clock) -> str:
    """Time of one token as there are more of them, and as the batch grows: flat where cost is linear."""
    run, said = PROVIDERS["ours"].set_up(device), []
    for kind in ("tokens", "batch"):
        found = []
        for times in (1, 2, 4):
            more = workload.tiled(**{kind: times})
            inputs = testing.make_inputs(device=device, **more.inputs())
            median = statistics.median(measure({"ours": run}, [inputs], 1.0, clock)["ours"])
            found.append(f"{1e3 * median / (more.batch * more.length):.2f}")
        said.append(f"{kind} x1, x2, x4: {', '.join(found)}")
    return "; ".join(said)


# --- report -----------------------------------------------------------------------------------------------------------


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def set_up(names: list[str], device: str) -> dict[str, Run]:
    runs = {}
    for name in names:
        try:
            runs[name] = PROVIDERS[name].set_up(device)
        except RuntimeError as error:  # a provider that cannot run here is named, not fatal
            print(f"{name} cannot run here: {str(error).splitlines()[0]}")
    return runs


def time_workload(
    workload: Workload, dtype: torch.dtype, runs: dict[str, Run], seconds: float, device: str
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Milliseconds by provider, and on a GPU MiB by provider."""
    inputs = testing.make_inputs(dtype=dtype, device=device, **workload.inputs())
    # A sixteenth of the queries shows whether the formula and the strides are right.
    part = {**inputs, "query": inputs["query"][:, : max(64, workload.length // 16)]}
    able: dict[str, Run] = {}
    for name, run in runs.items():
        if not PROVIDERS[name].takes(workload):
            continue
        try:
            if PROVIDERS[name].guided:
                verify(name, run, part)
            run(inputs)
            able[name] = run
        except (RuntimeError, torch.OutOfMemoryError) as error:
            tqdm.write(f"{workload.name}: {name} is not timed: {str(error).splitlines()[0][:160]}")
    times = measure(able, rotated(inputs, device), seconds, Clock(device))
    on_gpu = torch.device(device).type == "cuda"
    return times, {name: device_memory(run, inputs) for name, run in able.items()} if on_gpu else {}


def help_text() -> str:
    lines = [
        "workloads on a CPU:  " + " ".join(w.name for w in CPU),
        "on a GPU:            " + " ".join(w.name for w in GPU),
    ]
    lines += ["", "providers (the last column of the table: how many times longer each takes than ours):"]
    return "\n".join(lines + [f"  {name:10s} {provider.says}" for name, provider in PROVIDERS.items()])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", nargs="+", metavar="NAME", help="default: all of the device")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="default: float32 and bfloat16; bfloat16 on a GPU")
    parser.add_argument("--provider", nargs="+", choices=PROVIDERS, metavar="NAME",
                        help="default: all but flex and reference")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=4.0, help="time per workload and dtype (default: 4)")
    parser.add_argument("--shrink", type=int, default=1, help="divide the image tokens by this (default: 1)")


def main(options: argparse.Namespace) -> None:
    device, on_gpu = options.device, torch.device(options.device).type == "cuda"
    known = {w.name: w for w in (GPU if on_gpu else CPU)}
    unknown = [name for name in options.workload or () if name not in known]
    if unknown:
        sys.exit(f"--workload must be of {', '.join(known)}; got {', '.join(unknown)}")
    dtypes = options.dtype or (["bfloat16"] if on_gpu else ["float32", "bfloat16"])
    whole = not options.workload and not options.dtype and not options.provider and options.shrink == 1
    about, peak = describe(device, options.threads), None if on_gpu else fma_peak(options.threads)
    print(f"{sentence(about)}; the operation is served by {served(device)}")
    if not on_gpu:
        print(f"float32 multiply-add peak, measured: {f'{peak:.0f} GFLOP/s' if peak else 'no C compiler'}")
    runs = set_up(options.provider or [name for name, each in PROVIDERS.items() if each.usual], device)
    rows = Rows("attention", about, options.csv and whole)
    ratios: dict[tuple[str, str], list[float]] = {}
    table = Table(title="milliseconds, and how many times longer than ours", title_justify="left")
    for column in ("workload", "dtype", *runs, "GFLOP/s", "of peak"):
        table.add_column(column, justify="left" if column in ("workload", "dtype") else "right")
    todo = [(w.shrunk(options.shrink), dtype) for w in known.values() for dtype in dtypes
            if w.name in (options.workload or known)]  # fmt: skip
    try:
        with torch.inference_mode():
            for workload, dtype in tqdm(todo, desc="attention"):
                times, memory = time_workload(workload, DTYPES[dtype], runs, options.seconds, device)
                median = {name: spread(t)[1] for name, t in times.items()}
                for name, t in times.items():
                    p20, p50, p80 = spread(t)
                    rows.add(
                        workload=workload.name, group=workload.group, batch=workload.batch, length=workload.length,
                        heads=workload.heads, size=workload.size, text=workload.text, shared=workload.shared, dtype=dtype,
                        provider=name, calls=len(t), p20_ms=f"{p20:.4f}", p50_ms=f"{p50:.4f}", p80_ms=f"{p80:.4f}",
                        gflops=f"{workload.flops() / p50 / 1e6:.1f}", peak_gflops=f"{peak:.0f}" if peak else "",
                        gbytes=f"{workload.numbers() * DTYPES[dtype].itemsize / p50 / 1e6:.2f}",
                        peak_mib=f"{memory[name]:.1f}" if memory else "",
                    )  # fmt: skip
                    if name != "ours" and "ours" in median:
                        ratios.setdefault((workload.group, name), []).append(p50 / median["ours"])
                cells = [workload.name, dtype]
                for name in runs:
                    beside = name in median and name != "ours" and "ours" in median
                    ratio = f" {median[name] / median['ours']:.2f}x" if beside else ""
                    cells.append(f"{median[name]:.2f}{ratio}" if name in median else "")
                rate = workload.flops() / median["ours"] / 1e6 if "ours" in median else None
                table.add_row(*cells, f"{rate:.0f}" if rate else "", f"{rate / peak:.0%}" if rate and peak else "")
    finally:
        Console(width=None if sys.stdout.isatty() else 160).print(table)
        rows.close()
    if not whole:
        print("no CSV, which holds whole runs: every workload, dtype and usual provider")
    print("\ntimes of ours, geometric mean over shapes and dtypes (least):")
    for (group, name), values in ratios.items():
        print(f"  {group:6s} {name:10s} {geometric_mean(values):.2f} ({min(values):.2f})")
    if on_gpu:
        return
    print(
        f"\npeak resident memory of one float32 call, MiB, output included:{'' if HAS_PROC else ' not read here, no /proc'}"
    )
    for workload in (w for w, dtype in todo if HAS_PROC and dtype == dtypes[0] and w.group != "small"):
        out = workload.batch * workload.length * workload.heads * workload.size * 4 / 2**20
        found = {name: peak_memory(workload, name) for name in ("eager", "ours") if name in runs}
        print(
            f"  {workload.name:15s} "
            + ", ".join(f"{n} {m:.0f}" for n, m in found.items())
            + f" (output alone {out:.0f})"
        )
    if "ours" in runs:
        print("\nmicroseconds of one token, float32, as they and the batch grow (flat is linear):")
        for workload in (w for w in CPU if w.name in ("sdxl_32x32", "flux_512px")):
            print(f"  {workload.name:15s} {growth(workload, device, Clock(device))}")
        print("\none call on one token, microseconds: "
              + ", ".join(f"{mode} {cost:.1f}" for mode, cost in call_overhead().items()))  # fmt: skip
