# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""How time and memory grow with the tokens of an image and with the batch, in float32, on one thread and on all.

The layers are SDXL's cross-attention and a joint layer as of FLUX.1 with four of its 24 heads. What should stay the same is the
rate, in multiply-adds a second, and the memory of a token beyond the inputs. "eager" is torch's attention twice and the
formula. Its output is compared with ours on the smallest layer.
"""

import argparse
import dataclasses
import sys

import torch
from rich.console import Console
from tqdm import tqdm

from benchmarks.bench_attention import HAS_PROC, Clock, layer_table, measure, printed_mib, row, spread
from benchmarks.machine import Rows, describe, peaks, sentence
from benchmarks.providers import PROVIDERS
from benchmarks.workloads import Workload
from nag_kernels import testing

NAMES = ("eager", "ours")
CROSS = Workload("cross", "tokens", 1, 1024, 10, 64, 77)
JOINT = Workload("joint", "tokens", 1, 1024, 4, 128, 512, 1024)
LAYERS = (
    *(dataclasses.replace(CROSS, length=1024 * n) for n in (1, 4, 16, 64, 128)),
    *(dataclasses.replace(CROSS, group="batch", batch=n) for n in (1, 2, 4, 8, 16)),
    *(dataclasses.replace(JOINT, length=1024 * n, shared=1024 * n) for n in (1, 2, 4, 8, 16)),
    *(dataclasses.replace(JOINT, group="batch", batch=n) for n in (1, 2, 4, 8, 16)),
)

PEAK_MEMORY = """
import sys, torch
from benchmarks.bench_growth import LAYERS
from benchmarks.providers import PROVIDERS
from nag_kernels import testing
at, provider, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
inputs = testing.make_inputs(**LAYERS[int(at)].inputs())
run = PROVIDERS[provider].set_up("cpu")
run({key: x[:, :8] for key, x in inputs.items()})
# Not ru_maxrss: a process inherits that from its parent.
field = lambda name: int(next(x for x in open("/proc/self/status") if x.startswith(name)).split()[1])
open("/proc/self/clear_refs", "w").write("5")
before = field("VmRSS")
out = run(inputs)
print(field("VmHWM") - before)
"""


def help_text() -> str:
    return "layers:  " + " ".join(f"{w.name}:{w.batch}x{w.length}" for w in LAYERS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--most", type=int, default=128, help="thousands of tokens at most (default: 128)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time per layer and number of threads (default: 2)")


def main(options: argparse.Namespace) -> None:
    if torch.device(options.device).type != "cpu":
        raise SystemExit("growth: this measures a CPU; leave --device out")
    chosen = [w for w in LAYERS if w.batch * w.length <= 1024 * options.most]
    about, whole = describe("cpu", options.threads), len(chosen) == len(LAYERS)
    print(sentence(about))
    rows = Rows("growth", about, options.csv and whole)
    table = layer_table("GFLOP/s, and MiB beyond the inputs", *NAMES, *(f"MiB, {x}" for x in NAMES))
    numbers = sorted({1, options.threads})
    peak = {n: peaks(n).get("float32") for n in numbers}
    runs = {name: PROVIDERS[name].set_up("cpu") for name in NAMES}
    try:
        with torch.inference_mode():
            for workload in tqdm(chosen, desc="growth"):
                inputs = testing.make_inputs(**workload.inputs())
                if workload.batch * workload.length == 1024:
                    apart = testing.error(runs["ours"](inputs), runs["eager"](inputs))
                    if apart > 1e-5:
                        raise SystemExit(f"{workload.name}: ours and eager are {apart:.2g} apart; nothing is timed")
                for threads in numbers:
                    torch.set_num_threads(threads)
                    times = measure(runs, [inputs], options.seconds, Clock("cpu"), least=3)
                    memory = {}
                    for name, each in times.items():
                        if HAS_PROC and threads == options.threads and whole:
                            memory[name] = printed_mib(PEAK_MEMORY, str(LAYERS.index(workload)), name, str(threads))
                        found = row(workload, "float32", name, each, peak[threads], memory.get(name))
                        rows.add(**found, on_threads=threads)
                    rates = [f"{workload.flops() / spread(times[name])[1] / 1e6:.0f}" for name in NAMES]
                    size = f"{workload.name} {workload.batch} x {workload.length}, {threads} threads"
                    table.add_row(size, "float32", *rates, *(f"{memory[x]:.0f}" if x in memory else "" for x in NAMES))
    finally:
        torch.set_num_threads(options.threads)
        Console(width=None if sys.stdout.isatty() else 140).print(table)
    rows.close()
    if not whole:
        print("no CSV, which holds whole runs")
