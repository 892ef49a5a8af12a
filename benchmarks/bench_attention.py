# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Times nag::fused_guided_attention on the CPU beside two attentions and the eager formula.

    python -m benchmarks.bench_attention            all workloads, under 4 minutes on 2 cores
    python -m benchmarks.bench_attention --quick    the cross-attention layers of SDXL and the joint layer of SD3.5

Each provider is first compared with float64 and not timed if it is wrong. Providers take turns call by call, so that
a change of clock or a busy neighbour meets all of them. One row per measurement goes to benchmarks/results/<cpu>.csv.
"""

import argparse
import csv
import datetime
import math
import os
import pathlib
import platform
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import timeit

import torch

from nag_kernels import backends, testing

from .workloads import WORKLOADS, Workload

HAS_PROC = os.path.exists("/proc/self/status")
RESULTS = pathlib.Path(__file__).parent / "results"
SETTINGS = (5.0, 2.5, 0.25)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
QUICK = ("sdxl_64x64", "sdxl_32x32", "sd35_512px")


# --- providers: each takes the inputs and returns [B, S, H, D] --------------------------------------------------------


def setup_eager():
    return lambda inputs: testing.eager(inputs, *SETTINGS)


def setup_compiled():
    """The eager formula through torch.compile, one graph for all shapes of a dtype."""
    formula = torch.compile(testing.eager_guidance, dynamic=True)

    def run(inputs):
        return formula(*testing.eager_branches(inputs), *SETTINGS).view(inputs["query"].shape)

    return run


def setup_cpu():
    if reason := backends.refusal("cpu", "cpu"):
        raise RuntimeError(reason)
    op = torch.ops.nag.fused_guided_attention
    scale, tau, alpha = SETTINGS
    return lambda inputs: op(**inputs, nag_scale=scale, nag_tau=tau, nag_alpha=alpha)


PROVIDERS = {"sdpa_x2+eager": setup_eager, "sdpa_x2+compiled": setup_compiled, "cpu": setup_cpu}


def verify(name: str, run, inputs: dict) -> None:
    """Raises RuntimeError where the provider's relative error against float64 is not that of its dtype."""
    exact = testing.truth(inputs, *SETTINGS)
    found = testing.error(run(inputs), exact)
    if name == "cpu":
        allowed = testing.limit(inputs, exact, SETTINGS, "nag")
    else:  # the baselines round the branches before the blend, whose extrapolation multiplies that error by up to 9
        allowed = 10 * torch.finfo(inputs["query"].dtype).eps
    if not found <= allowed:
        raise RuntimeError(f"{name} is wrong and not timed: error {found:.3g} against float64, allowed {allowed:.3g}")


def measure(runs: dict, inputs: dict, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of single calls, the providers in turns; the first fifth of the time is warm-up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    while time.perf_counter() < start + seconds or min(map(len, times.values())) < 5:
        warm = time.perf_counter() < start + seconds / 5
        for name, run in runs.items():
            begin = time.perf_counter()
            run(inputs)
            if not warm:
                times[name].append((time.perf_counter() - begin) * 1e3)
    return times


# --- the machine ------------------------------------------------------------------------------------------------------

PEAK_SOURCE = """
#include <stdio.h>
#include <time.h>
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float V __attribute__((vector_size(BYTES)));
int main() {
  V a[12], b = {}, c = {};
  for (int j = 0; j < 12; ++j) a[j] = b + (float)j;
  b += 0.999f; c += 0.001f;
  double best = 0;
  for (int r = 0; r < 10; ++r) {
    struct timespec t0, t1;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    for (int i = 0; i < 10000000; ++i) {
      for (int j = 0; j < 12; ++j) a[j] = a[j] * b + c;
    }
    clock_gettime(CLOCK_MONOTONIC, &t1);
    double s = (t1.tv_sec - t0.tv_sec) + 1e-9 * (t1.tv_nsec - t0.tv_nsec);
    double rate = 1e7 * 12 * 2 * (BYTES / 4) / s / 1e9;
    if (rate > best) best = rate;
  }
  float sum = 0;
  for (int j = 0; j < 12; ++j) for (unsigned k = 0; k < BYTES / 4; ++k) sum += a[j][k];
  printf("%f %f\\n", best, sum);
}
"""


def fma_peak(threads: int) -> float | None:
    """GFLOP/s of float32 multiply-adds in registers, `threads` processes at once; None without a C compiler."""
    compiler = shutil.which(shlex.split(os.environ.get("CC", "cc"))[0])
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, program = pathlib.Path(folder, "peak.c"), pathlib.Path(folder, "peak")
        source.write_text(PEAK_SOURCE)
        subprocess.run([compiler, "-O3", "-march=native", "-ffp-contract=fast", source, "-o", program], check=True)
        running = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True) for _ in range(threads)]
        return sum(float(process.communicate()[0].split()[0]) for process in running)


def cpu_name() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.M))
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    return fields.get("model name", platform.machine()) + family


def commit() -> tuple[str, bool]:
    def git(*arguments):
        done = subprocess.run(["git", *arguments], cwd=RESULTS, capture_output=True, text=True)
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") or "unknown", bool(git("status", "--porcelain", "--untracked-files=no"))


# --- memory and overhead ----------------------------------------------------------------------------------------------

PEAK_MEMORY = """
import sys, torch
from benchmarks.bench_attention import PROVIDERS, WORKLOADS, DTYPES
name, provider, dtype = sys.argv[1:]
w = next(w for w in WORKLOADS if w.name == name)
make = lambda length: torch.ones(w.batch, length, w.heads, w.size, dtype=DTYPES[dtype])
inputs = {"query": make(w.length)}
for part, length in (("positive", w.text), ("negative", w.text), ("shared", w.shared)):
    if length:
        inputs[f"key_{part}"], inputs[f"value_{part}"] = make(length), make(length)
run = PROVIDERS[provider]()
run({key: x[:, :8] for key, x in inputs.items()})
# Not ru_maxrss: a process inherits that from its parent.
peak = lambda: int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1])
before = peak()
run(inputs)
print(peak() - before)
"""


def peak_memory(workload: Workload, provider: str, dtype: str) -> float:
    """MiB by which one call raises the peak resident memory of a fresh process, its output included."""
    command = [sys.executable, "-c", PEAK_MEMORY, workload.name, provider, dtype]
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


# --- report -----------------------------------------------------------------------------------------------------------


def geometric_mean(values: list[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def run_workload(workload: Workload, dtype: str, runs: dict, seconds: float) -> dict[str, list[float]]:
    inputs = testing.make_inputs(dtype=DTYPES[dtype], **workload.inputs())
    # A sixteenth of the queries shows whether the formula and the strides are right.
    part = {**inputs, "query": inputs["query"][:, : max(64, workload.length // 16)]}
    for name, run in runs.items():
        verify(name, run, part)
    return measure(runs, inputs, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_attention", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="A ratio above 1 means that the op is that many times faster than the provider beside it.",
    )  # fmt: skip
    names = [w.name for w in WORKLOADS]
    parser.add_argument("--quick", action="store_true", help="three workloads, half the time each")
    parser.add_argument("--workload", nargs="+", choices=names, metavar="NAME", help=f"of: {', '.join(names)}")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="default: both")
    parser.add_argument("--seconds", type=float, default=4.0, help="time per workload and dtype (default: 4)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads (default: its own)")
    parser.add_argument("--no-csv", action="store_true", help="print only")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = options.workload or (QUICK if options.quick else names)
    seconds = options.seconds / (2 if options.quick else 1)

    (sha, dirty), cpu, peak = commit(), cpu_name(), fma_peak(options.threads)
    stamp = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    print(f"{cpu}, path {backends.cpu_capability()}, {options.threads} threads, torch {torch.__version__}, "
          f"commit {sha}{' with changes' if dirty else ''}")  # fmt: skip
    print(f"float32 multiply-add peak, measured: {f'{peak:.0f} GFLOP/s' if peak else 'no C compiler'}\n")

    runs = {}
    for name, setup in PROVIDERS.items():
        try:
            runs[name] = setup()
            runs[name](testing.make_inputs(length=64))
        except Exception as error:  # a provider that cannot run here is named, not fatal
            print(f"{name} cannot run here: {type(error).__name__}: {str(error).splitlines()[0]}")
            runs.pop(name, None)
    rows, ratios = [], {}
    print(f"{'workload':15s} {'dtype':9s}" + "".join(f"{f'{n} ms':>28s}" for n in runs)
          + "   GFLOP/s  of peak   faster than")  # fmt: skip
    with torch.inference_mode():
        for workload in (w for w in WORKLOADS if w.name in chosen):
            for dtype in options.dtype:
                times = run_workload(workload, dtype, runs, seconds)
                spread = {n: statistics.quantiles(t, n=10, method="inclusive") for n, t in times.items()}
                line = f"{workload.name:15s} {dtype:9s}"
                for name, q in spread.items():
                    line += f"{f'{q[4]:.2f} ({q[1]:.2f}..{q[7]:.2f})':>28s}"
                    rate = workload.flops() / q[4] / 1e6
                    rows.append({
                        "op": "fused_guided_attention", "provider": name, "workload": workload.name,
                        "batch": workload.batch, "length": workload.length, "heads": workload.heads,
                        "size": workload.size, "text": workload.text, "shared": workload.shared, "dtype": dtype,
                        "p20_ms": f"{q[1]:.4f}", "p50_ms": f"{q[4]:.4f}", "p80_ms": f"{q[7]:.4f}",
                        "gflops": f"{rate:.1f}", "peak_gflops": f"{peak:.0f}" if peak else "", "cpu": cpu,
                        "path": backends.cpu_capability(), "threads": options.threads, "torch": torch.__version__,
                        "git_sha": sha, "dirty": dirty, "timestamp": stamp,
                    })  # fmt: skip
                if "cpu" in spread:
                    rate = workload.flops() / spread["cpu"][4] / 1e6
                    faster = {n: q[4] / spread["cpu"][4] for n, q in spread.items() if n != "cpu"}
                    for name, ratio in faster.items():
                        ratios.setdefault((workload.group, name), []).append(ratio)
                    line += f"{rate:10.0f} {f'{rate / peak:.0%}' if peak else '-':>8s}   "
                    line += ", ".join(f"{n.split('+')[1]} {r:.2f}x" for n, r in faster.items())
                print(line, flush=True)

    print("\nfaster than, geometric mean over shapes and dtypes (least):")
    for (group, name), values in ratios.items():
        print(f"  {group:6s} {name:18s} {geometric_mean(values):.2f}x ({min(values):.2f}x)")
    if options.quick or set(chosen) != set(names) or set(options.dtype) != set(DTYPES):
        print("\nno CSV, which holds whole runs: every workload and dtype, not --quick")
    elif not options.no_csv:
        file = RESULTS / (re.sub(r"[^a-z0-9]+", "-", f"{cpu} {backends.cpu_capability()}".lower()).strip("-") + ".csv")
        file.parent.mkdir(exist_ok=True)
        with open(file, "w", newline="") as opened:
            writer = csv.DictWriter(opened, fieldnames=list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(f"\n{len(rows)} rows in {file.relative_to(RESULTS.parents[1])}")
    print(f"\npeak resident memory of one call, MiB, output included:{'' if HAS_PROC else ' not read here, no /proc'}")
    for workload in (w for w in WORKLOADS if HAS_PROC and w.name in chosen and w.group != "small"):
        out = workload.batch * workload.length * workload.heads * workload.size * 4 / 2**20
        found = {name: peak_memory(workload, name, "float32") for name in ("sdpa_x2+eager", "cpu") if name in runs}
        print(f"  {workload.name:15s} float32  " + ", ".join(f"{n} {m:.0f}" for n, m in found.items())
              + f" (output alone {out:.0f})")  # fmt: skip
    print("\none call on one token, microseconds: "
          + ", ".join(f"{mode} {cost:.1f}" for mode, cost in call_overhead().items()))  # fmt: skip


if __name__ == "__main__":
    main()
