# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Times nag::fused_guided_attention beside two attentions and the formula, and beside attention alone.

Each provider is first compared with float64 on a part of the queries and not timed if it is wrong. Providers take turns
call by call, so that a change of clock or a busy neighbour meets all of them; inputs rotate through copies. Times are those
of the device: events on a GPU, the clock on a CPU. Rows go to benchmarks/results/ as they come, so a run cut short keeps them.
"""

import argparse
import dataclasses
import functools
import math
import os
import statistics
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Iterable

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.machine import RESULTS, Rows, describe, peaks, sentence
from benchmarks.providers import PROVIDERS, SETTINGS, Run, served, verify
from benchmarks.report_rows import means
from benchmarks.workloads import CPU, GPU, GROWTH, ONE_TOKEN, Workload
from nag_kernels import testing

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


def measure(
    runs: dict[str, Callable], copies: list[dict], seconds: float, clock: Clock, least: int = 5
) -> dict[str, list[float]]:
    """Milliseconds of single calls, `least` or more of each provider; the first fifth of the time is warm-up.

    Providers take turns. Each turn another one begins, and each has another copy of the inputs than the one before it, so
    that none always follows the same neighbour or finds what that has brought into the cache.
    """
    names, times = list(runs), {name: [] for name in runs}
    start, turn = time.perf_counter(), 0
    while time.perf_counter() < start + seconds or min(map(len, times.values())) < least:
        warm, pairs = time.perf_counter() < start + seconds / 5, {}
        for place in range(len(names)):
            at = (turn + place) % len(names)
            call = functools.partial(runs[names[at]], copies[(turn + at) % len(copies)])
            pairs[names[at]] = clock.time(call)
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


# --- memory, overhead -------------------------------------------------------------------------------------------------

PEAK_MEMORY = """
import sys, torch
from benchmarks.providers import PROVIDERS
from benchmarks.workloads import CPU
name, provider, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
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


def resident_memory(workload: Workload, provider: str, threads: int) -> float:
    """MiB by which one float32 call raises the peak resident memory of a fresh process, its output included."""
    return printed_mib(PEAK_MEMORY, workload.name, provider, str(threads))


def printed_mib(program: str, *arguments: str) -> float:
    """What a program, in a process of its own, prints last in KiB."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=RESULTS.parents[1], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 2**10


def device_memory(run: Run, inputs: dict) -> float:
    """MiB that one call takes on a GPU beyond what was there, its output included."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = run(inputs)
    torch.cuda.synchronize()
    del out
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def call_overhead() -> dict[str, list[float]]:
    """Milliseconds of one call on one token and key, by mode: what dispatch and the autograd layer cost."""
    op, found = torch.ops.nag.fused_guided_attention, {}
    with torch.inference_mode(False):
        inputs = testing.make_inputs(**ONE_TOKEN.inputs())
        tensors = [inputs[n] for n in ("query", "key_positive", "value_positive", "key_negative", "value_negative")]
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode():
                # seconds of 1000 calls are milliseconds of one
                found[mode.__name__] = timeit.repeat(lambda: op(*tensors, *SETTINGS), number=1000, repeat=20)
    return found


# --- run --------------------------------------------------------------------------------------------------------------


def set_up(names: list[str], device: str) -> dict[str, Run]:
    runs = {}
    for name in names:
        try:
            runs[name] = PROVIDERS[name].set_up(device)
        except RuntimeError as error:  # a provider that cannot run here is named, not fatal
            print(f"{name} cannot run here: {str(error).splitlines()[0]}")
    return runs


def able(workload: Workload, runs: dict[str, Run], inputs: dict) -> dict[str, Run]:
    """The providers that take the workload and are right."""
    # A sixteenth of the queries shows whether the formula and the strides are right.
    part = {**inputs, "query": inputs["query"][:, : max(64, workload.length // 16)]}
    found = {}
    for name, run in runs.items():
        if not PROVIDERS[name].takes(workload):
            continue
        try:
            if PROVIDERS[name].guided:
                verify(name, run, part)
            run(inputs)
            found[name] = run
        except (RuntimeError, torch.OutOfMemoryError) as error:
            tqdm.write(f"{workload.name}: {name} is not timed: {str(error).splitlines()[0][:160]}")
    return found


def layer_table(title: str, *columns: str) -> Table:
    """Empty: a layer in each row, and these columns of numbers."""
    table = Table("workload", "dtype", title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def measured(workload: Workload, dtype: str, name: str, times: list[float], mib: float | None) -> dict:
    """The columns of a layer and of what was measured on it."""
    p20, p50, p80 = spread(times)
    return {
        "workload": workload.name, "group": workload.group, "batch": workload.batch, "length": workload.length,
        "heads": workload.heads, "size": workload.size, "text": workload.text, "shared": workload.shared, "dtype": dtype,
        "provider": name, "calls": len(times), "p20_ms": f"{p20:.4f}", "p50_ms": f"{p50:.4f}", "p80_ms": f"{p80:.4f}",
        "peak_mib": "" if mib is None else f"{mib:.1f}",
    }  # fmt: skip


def row(workload: Workload, dtype: str, name: str, times: list[float], peak: float | None, mib: float | None) -> dict:
    p50, guided = spread(times)[1], PROVIDERS[name].guided
    return measured(workload, dtype, name, times, mib) | {
        "gflops": f"{workload.flops() / p50 / 1e6:.1f}" if guided else "", "peak_gflops": f"{peak:.0f}" if peak else "",
        "gbytes": f"{workload.numbers() * DTYPES[dtype].itemsize / p50 / 1e6:.2f}" if guided else "",
    }  # fmt: skip


def help_text() -> str:
    lines = ["workloads on a CPU:  " + " ".join(w.name for w in CPU)]
    lines += ["on a GPU these too:  " + " ".join(w.name for w in GPU if w not in CPU)]
    lines += ["", "providers (the table says how many times longer each takes than ours):"]
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
    about, peak = describe(device, options.threads), {} if on_gpu else peaks(options.threads)
    backend, refusal = served(device)
    print(f"{sentence(about)}; ours: the {backend} kernels{f', not here: {refusal}' if refusal else ''}")
    if not on_gpu:
        said = ", ".join(f"{dtype} {rate:.0f} GFLOP/s" for dtype, rate in peak.items())
        print(f"multiply-add peak, measured: {said or 'no C compiler'}")
    runs = set_up(options.provider or [name for name, each in PROVIDERS.items() if each.usual], device)
    rows = Rows("attention", about, options.csv and whole)
    clock = Clock(device)
    table = layer_table("milliseconds, and how many times longer than ours", *runs, "GFLOP/s", "of peak")
    todo = [(w.shrunk(options.shrink), dtype) for w in known.values() for dtype in dtypes
            if w.name in (options.workload or known)]  # fmt: skip
    if whole and not on_gpu and "ours" in runs:
        todo += [(w, "float32") for w in GROWTH]
    try:
        with torch.inference_mode():
            for workload, dtype in tqdm(todo, desc="attention"):
                rivals = runs if workload.group != "growth" else {"ours": runs["ours"]}
                inputs = testing.make_inputs(dtype=DTYPES[dtype], device=device, **workload.inputs())
                right = able(workload, rivals, inputs)
                if not right:
                    continue
                seconds = options.seconds if len(rivals) > 1 else options.seconds / 4
                times = measure(right, rotated(inputs, device), seconds, clock)
                for name, run in right.items():
                    mib = None
                    if on_gpu:
                        mib = device_memory(run, inputs)
                    elif whole and HAS_PROC and dtype == "float32" and name in ("eager", "ours") and len(rivals) > 1:
                        mib = resident_memory(workload, name, options.threads)
                    rows.add(**row(workload, dtype, name, times[name], peak.get(dtype), mib))
                table.add_row(*cells(workload, dtype, runs, times, peak.get(dtype)))
            if whole and not on_gpu and "ours" in runs:
                for mode, found in call_overhead().items():
                    named = dataclasses.replace(ONE_TOKEN, name=f"{ONE_TOKEN.name}, {mode}")
                    rows.add(**row(named, "float32", "ours", found, None, None))
                    table.add_row(*cells(named, "float32", runs, {"ours": found}, None))
    finally:
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    rows.close()
    if not whole:
        print("no CSV, which holds whole runs: every workload, dtype and usual provider")
    print("\ntimes of ours, geometric mean over shapes and dtypes (least):")
    for (group, name), (mean, least) in means(rows.rows).items():
        print(f"  {group:6s} {name:10s} {mean:.2f} ({least:.2f})")


def cells(
    workload: Workload, dtype: str, names: Iterable[str], times: dict[str, list[float]], peak: float | None
) -> list:
    """A row of the table in the terminal."""
    median = {name: spread(each)[1] for name, each in times.items()}
    ours, found = median.get("ours"), [workload.name, dtype]
    for name in names:
        beside = f" {median[name] / ours:.2f}x" if name in median and ours and name != "ours" else ""
        found.append(f"{median[name]:.{4 if median[name] < 0.1 else 2}f}{beside}" if name in median else "")
    rate = workload.flops() / ours / 1e6 if ours and workload.group != "call" else None
    return found + [f"{rate:.0f}" if rate else "", f"{rate / peak:.0%}" if rate and peak else ""]
