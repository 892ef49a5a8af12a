# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Times nag::fused_guided_attention on a GPU beside two attentions and the formula, and beside one unguided attention.

    python -m benchmarks.bench_gpu                      every workload in bfloat16
    python -m benchmarks.bench_gpu --device cpu --shrink 32    the same code on a CPU, to see that it runs

Each provider is first compared with float64 on a sixteenth of the queries and not timed if it is wrong. Providers take
turns; inputs rotate through copies larger than the cache; times are those of the device (events), so launches that the
CPU cannot keep up with count as they do in a model. Rows are appended to the CSV as they come.
"""

import argparse
import csv
import datetime
import functools
import math
import pathlib
import statistics
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from nag_kernels import backends, testing

from .bench_attention import SETTINGS, commit, verify
from .workloads import Workload

# The layers of DESIGN's table at their real size: (name, batch, image tokens, heads, head size, text, shared image keys).
WORKLOADS = (
    Workload("sd15_64x64", "launch", 1, 4096, 8, 40, 77),
    Workload("sdxl_64x64", "launch", 1, 4096, 10, 64, 77),
    Workload("sdxl_32x32", "launch", 1, 1024, 20, 64, 77),
    Workload("sana_1.6b", "cross", 1, 1024, 20, 112, 300),
    Workload("pixart_1024px", "cross", 1, 4096, 16, 72, 300),
    Workload("wan_1.3b_480p", "cross", 1, 32760, 12, 128, 512),
    Workload("wan_14b_480p", "cross", 1, 32760, 40, 128, 512),
    Workload("sd35_large", "joint", 1, 4096, 38, 64, 333, 4096),
    Workload("flux_1024px", "joint", 1, 4096, 24, 128, 512, 4096),
    Workload("hunyuan_video", "joint", 1, 27280, 24, 128, 256, 27280),
)
CACHE = 256 << 20  # bytes of inputs to rotate through: more than the second-level cache of any GPU


def eager(inputs: dict):
    return testing.eager(inputs, *SETTINGS)


def compiled():
    formula = torch.compile(testing.eager_guidance, dynamic=True)
    return lambda inputs: formula(*testing.eager_branches(inputs), *SETTINGS).view(inputs["query"].shape)


def ours(inputs: dict):
    scale, tau, alpha = SETTINGS
    return torch.ops.nag.fused_guided_attention(**inputs, nag_scale=scale, nag_tau=tau, nag_alpha=alpha)


def unguided(inputs: dict):
    """One attention to the prompt: what the model costs without a negative."""
    parts = [part for part in ("shared", "positive") if f"key_{part}" in inputs]
    key, value = (torch.cat([inputs[f"{kind}_{part}"] for part in parts], 1) for kind in ("key", "value"))
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (inputs["query"], key, value))).transpose(1, 2)


class Clock:
    """Milliseconds of a call: by events on a GPU, by the clock on a CPU."""

    def __init__(self, device: str):
        self.on_gpu = device == "cuda"

    def time(self, call) -> tuple:
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


def measure(providers: dict, copies: list[dict], seconds: float, clock: Clock) -> dict[str, list[float]]:
    """Milliseconds of single calls, the providers in turns; the first fifth of the time is warm-up."""
    times: dict[str, list[float]] = {name: [] for name in providers}
    start, turn = time.perf_counter(), 0
    while time.perf_counter() < start + seconds or min(map(len, times.values())) < 5:
        warm, pairs = time.perf_counter() < start + seconds / 5, []
        for name, run in providers.items():
            pairs.append((name, clock.time(functools.partial(run, copies[turn % len(copies)]))))
        turn += 1
        clock.wait()
        if not warm:
            for name, pair in pairs:
                times[name].append(clock.milliseconds(pair))
    return times


def memory(run, inputs: dict) -> float:
    """MiB that one call takes beyond what was there, its output included."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out = run(inputs)
    torch.cuda.synchronize()
    del out
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def main() -> None:
    names = [w.name for w in WORKLOADS]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workload", nargs="+", choices=names, default=names, metavar="NAME", help=f"of: {', '.join(names)}"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="time per workload (default: 3)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shrink", type=int, default=1, help="divide image tokens by this (default: 1)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/gpu"), help="folder of the CSV")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this torch sees no GPU; --device cpu --shrink 32 runs the same code on a CPU")

    (sha, dirty), clock = commit(), Clock(options.device)
    on_gpu = options.device == "cuda"
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    served = "triton" if on_gpu and backends.refusal("triton", "cuda") is None else "reference" if on_gpu else "cpu"
    common = {
        "device": device, "backend": served, "torch": torch.__version__, "cuda": torch.version.cuda or "",
        "git_sha": sha, "dirty": dirty, "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip
    print(", ".join(f"{name} {value}" for name, value in common.items()))
    if on_gpu and served == "reference":
        print("the Triton kernels are off, so the operation is the reference: NAG_BACKEND=triton turns them on")
    providers = {"sdpa_x2+eager": eager, "sdpa_x2+compiled": compiled(), "ours": ours, "unguided": unguided}
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "attention.csv"
    rows = 0
    with torch.inference_mode(), open(file, "w", newline="") as opened:
        for workload in tqdm([w for w in WORKLOADS if w.name in options.workload], desc="workloads"):
            shape = workload.inputs()
            shape["length"] = max(1, shape["length"] // options.shrink)
            shape["shared"] //= options.shrink
            inputs = testing.make_inputs(dtype=torch.bfloat16, device=options.device, **shape)
            part = {**inputs, "query": inputs["query"][:, : max(64, shape["length"] // 16)]}
            able = {}
            for name, run in providers.items():
                try:
                    if name != "unguided":
                        verify("cpu" if name == "ours" else name, run, part)
                    run(inputs)
                    able[name] = run
                except (RuntimeError, torch.OutOfMemoryError) as error:
                    tqdm.write(f"{workload.name}: {name} is not timed: {str(error).splitlines()[0][:160]}")
            size = sum(x.numel() * x.element_size() for x in inputs.values())
            copies = [inputs] + [
                {name: x.clone() for name, x in inputs.items()} for _ in range(min(16, math.ceil(CACHE / size)) - 1)
            ]
            times = measure(able, copies if on_gpu else [inputs], options.seconds, clock)
            flops = (
                4.0
                * shape["batch"]
                * shape["length"]
                * shape["heads"]
                * shape["size"]
                * (2 * workload.text + shape["shared"])
            )
            middle = {name: statistics.median(t) for name, t in times.items()}
            for name, t in times.items():
                p20, _, _, p80 = statistics.quantiles(t, n=5, method="inclusive")
                row = {
                    "workload": workload.name, "group": workload.group, **shape, "provider": name, "calls": len(t),
                    "p20_ms": f"{p20:.5f}", "p50_ms": f"{middle[name]:.5f}", "p80_ms": f"{p80:.5f}",
                    "tflops": f"{flops / middle[name] / 1e9:.2f}",
                    "peak_mib": f"{memory(able[name], inputs):.1f}" if on_gpu else "", **common,
                }  # fmt: skip
                writer = csv.DictWriter(opened, fieldnames=list(row), lineterminator="\n")
                if rows == 0:
                    writer.writeheader()
                writer.writerow(row)
                opened.flush()
                rows += 1
            said = ", ".join(f"{name} {ms:.4f} ms" for name, ms in middle.items())
            ratios = ", ".join(
                f"{name} {ms / middle['ours']:.2f}x"
                for name, ms in middle.items()
                if name != "ours" and "ours" in middle
            )
            tqdm.write(f"{workload.name}: {said}; of ours: {ratios}")
            del inputs, copies, part
    print(f"{rows} rows in {file}")


if __name__ == "__main__":
    main()
