# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Times a forward and its backward: the operation's gradient beside autograd through two attentions and the formula.

Each provider's gradients are first compared with float64 on a part of the queries, and it is not timed if they are wrong.
Providers take turns call by call. Peak memory is that of a fresh process, over its inputs. Rows go to benchmarks/results/.
"""

import argparse
import functools
import sys

import torch
from rich.console import Console
from tqdm import tqdm

from benchmarks.bench_attention import DTYPES, Clock, layer_table, measure, measured, printed_mib, spread
from benchmarks.machine import Rows, describe, sentence
from benchmarks.providers import PROVIDERS, Run
from benchmarks.workloads import GRADIENT, ONE_TOKEN
from nag_kernels import testing

NAMES = ("eager", "compiled", "ours")
# What is timed unless told otherwise: torch's bfloat16 backward takes minutes for the largest layer on a CPU without tiles.
USUAL = [
    (name, dtype)
    for dtype in ("float32", "bfloat16")
    for name in GRADIENT
    if (name, dtype) != ("flux_1024px", "bfloat16")
]

PEAK_MEMORY = """
import sys, torch
from benchmarks.bench_gradient import DTYPES, differentiate
from benchmarks.providers import PROVIDERS
from benchmarks.workloads import GRADIENT
from nag_kernels import testing
name, dtype, provider, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
inputs = testing.make_inputs(dtype=DTYPES[dtype], **GRADIENT[name].inputs())
push = torch.randn_like(inputs["query"])
run = PROVIDERS[provider].set_up("cpu")
differentiate(run, {key: x[:, :8] for key, x in inputs.items()}, push[:, :8])
# Not ru_maxrss: a process inherits that from its parent.
field = lambda name: int(next(x for x in open("/proc/self/status") if x.startswith(name)).split()[1])
open("/proc/self/clear_refs", "w").write("5")
before = field("VmRSS")
found = differentiate(run, inputs, push)
print(field("VmHWM") - before)
"""


def differentiate(run: Run, inputs: dict, push: torch.Tensor) -> list[torch.Tensor]:
    """A forward, and dL/d of all inputs where dL/dout is push."""
    with torch.enable_grad():
        leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
        out = run(leaves)
        return list(torch.autograd.grad(out, list(leaves.values()), push.view_as(out)))


def wrong(run: Run, inputs: dict, push: torch.Tensor) -> str:
    """What speaks against timing this; "" where its gradients are those of float64, within rounding."""
    wide = testing.cast(inputs, torch.float64)
    exact = differentiate(PROVIDERS["reference"].set_up("cpu"), wide, push.double())
    allowed = 20 * torch.finfo(push.dtype).eps
    found = max(map(testing.error, differentiate(run, inputs, push), exact))
    return "" if found <= allowed else f"error {found:.3g} against float64, allowed {allowed:.3g}"


def help_text() -> str:
    return "workloads:  " + " ".join(GRADIENT)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", nargs="+", choices=GRADIENT, metavar="NAME", help="default: all")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="default: float32, and bfloat16 but for flux_1024px")
    parser.add_argument("--seconds", type=float, default=4.0, help="time per workload and dtype (default: 4)")
    parser.add_argument("--shrink", type=int, default=1, help="divide the image tokens by this (default: 1)")


def main(options: argparse.Namespace) -> None:
    whole = not options.workload and not options.dtype and options.shrink == 1
    on_cpu = torch.device(options.device).type == "cpu"
    todo = USUAL
    if options.workload or options.dtype:
        todo = [
            (name, dtype) for dtype in options.dtype or ("float32", "bfloat16") for name in options.workload or GRADIENT
        ]
    about = describe(options.device, options.threads)
    print(sentence(about))
    rows = Rows("gradient", about, options.csv and whole)
    table = layer_table("milliseconds of a forward and its backward, and over ours", *NAMES, "MiB, eager / ours")
    clock = Clock(options.device)
    runs = {name: PROVIDERS[name].set_up(options.device) for name in NAMES}
    try:
        for name, dtype in tqdm(todo, desc="gradient"):
            workload = GRADIENT[name].shrunk(options.shrink)
            inputs = testing.make_inputs(dtype=DTYPES[dtype], device=options.device, **workload.inputs())
            push = torch.randn_like(inputs["query"])
            part = {**inputs, "query": inputs["query"][:, :64]}
            refused = {x: wrong(run, part, push[:, :64]) for x, run in runs.items()}
            for provider, why in refused.items():
                if why:
                    tqdm.write(f"{name} {dtype}: {provider} is not timed: {why}")
            right = {x: run for x, run in runs.items() if not refused[x]}
            if not right:
                continue
            calls = {x: functools.partial(differentiate, run, push=push) for x, run in right.items()}
            times = measure(calls, [inputs], options.seconds, clock, least=3)
            memory: dict[str, float] = {}
            if on_cpu and whole and name != ONE_TOKEN.name:
                threads = str(options.threads)
                memory = {x: printed_mib(PEAK_MEMORY, name, dtype, x, threads) for x in ("eager", "ours") if x in right}
            for provider, each in times.items():
                rows.add(**measured(workload, dtype, provider, each, memory.get(provider)))
            medians = {x: spread(each)[1] for x, each in times.items()}
            shown = [f"{medians[x]:.2f} {medians[x] / medians['ours']:.2f}x" if {x, "ours"} <= set(medians) else ""
                     for x in NAMES]  # fmt: skip
            table.add_row(name, dtype, *shown, " / ".join(f"{x:.0f}" for x in memory.values()))
    finally:
        Console(width=None if sys.stdout.isatty() else 160).print(table)
    rows.close()
    if not whole:
        print("no CSV, which holds whole runs")
