# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.tune_gpu`: measure on this GPU, and rewrite the tables from what was measured.

First the tiles of the Triton kernels, one class of head sizes after the other, then which plan serves which layer. Each
measurement is a row of benchmarks/results/tune-<gpu>.csv; a table row names the row that it came from. Rows of other chips
stay as they are. Wrong candidates (against float64) are not timed. `--what tiles` or `choices` does one half.
"""

import argparse
import csv
import dataclasses
import itertools
import re
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.bench_attention import Clock, measure, rotated, spread
from benchmarks.machine import describe
from benchmarks.providers import SETTINGS
from benchmarks.workloads import GPU, Workload
from nag_kernels import gpu, gpu_table, testing

RESULTS = Path(__file__).parent / "results"
# Head size classes of the tile table, each with a layer that stands for it.
CLASSES = {64: ("sdxl_64x64", "sd35_1024px"), 128: ("wan_1.3b_4096", "flux_1024px"), 256: ("sd15_32x32",)}
CANDIDATES = [
    {"BLOCK_M": m, "BLOCK_N": n, "num_warps": warps, "num_stages": stages}
    for m, n, warps, stages in itertools.product((32, 64, 128), (32, 64, 128), (4, 8), (2, 3))
]
WORKLOADS = {w.name: w for w in GPU}


# --- from measurements to rows: pure, tested without a GPU ------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Measured:
    """One measurement: `what` was tried on a workload; its place in the file is its source."""

    workload: str
    what: str
    milliseconds: float
    source: str


def best_tile(found: list[Measured]) -> str:
    """The candidate with the least geometric mean over the workloads that all of its rivals ran on as well."""
    workloads = {m.workload for m in found}
    times: dict[str, dict[str, float]] = {}
    for m in found:
        times.setdefault(m.what, {})[m.workload] = m.milliseconds
    complete = {what: each for what, each in times.items() if set(each) == workloads}

    def product(each: dict[str, float]) -> float:
        total = 1.0
        for x in each.values():
            total *= x
        return total

    return min(complete, key=lambda what: product(complete[what]))


def choices(chip: int, found: list[Measured]) -> list[gpu_table.Choice]:
    """A row per workload, those of the narrowest limits first, then rows without limits from the largest workloads."""
    rows = []
    for name in dict.fromkeys(m.workload for m in found):
        w = WORKLOADS[name]
        ranked = sorted((m for m in found if m.workload == name), key=lambda m: m.milliseconds)
        plans = " > ".join(m.what for m in ranked)
        size = next(x for x in (64, 128, 256) if w.size <= x)
        rows.append(gpu_table.Choice(chip, int(w.shared > 0), size, w.length, w.text, plans, ranked[0].source))
    merged: dict[tuple, gpu_table.Choice] = {}
    for row in rows:  # of two layers with the same limits the first, which is the smaller model, stays
        merged.setdefault((row.shared, row.size_to, row.length_to, row.text_to), row)
    rows = sorted(merged.values(), key=lambda row: (row.shared, row.size_to, row.length_to, row.text_to))
    for shared in (0, 1):
        some = [row for row in rows if row.shared == shared]
        if some:
            widest = max(some, key=lambda row: row.length_to * row.text_to)
            rows.append(dataclasses.replace(widest, size_to=256, length_to=0, text_to=0))
    return rows


# --- measuring ----------------------------------------------------------------------------------------------------------


class File:
    """The CSV of this run; `add` returns what a table row cites."""

    def __init__(self, about: dict):
        name = re.sub(r"[^a-z0-9]+", "-", str(about.get("machine", torch.cuda.get_device_name())).lower()).strip("-")
        self.path, self.about = RESULTS / f"tune-{name}.csv", about
        self.rows = 0
        self.file = self.path.open("w", newline="")
        self.writer = csv.writer(self.file, lineterminator="\n")
        self.writer.writerow(["row", "workload", "what", "p50_ms", "p20_ms", "p80_ms", *about])

    def add(self, workload: str, what: str, times: list[float]) -> Measured:
        low, middle, high = spread(times)
        self.rows += 1
        self.writer.writerow(
            [self.rows, workload, what, f"{middle:.5f}", f"{low:.5f}", f"{high:.5f}", *self.about.values()]
        )
        self.file.flush()
        return Measured(workload, what, middle, f"results/{self.path.name}:{self.rows}")


def make(workload: Workload, dtype: torch.dtype) -> dict:
    return testing.make_inputs(dtype=dtype, device="cuda", **workload.inputs())


def right(run, inputs: dict) -> bool:
    """Whether a candidate runs, and agrees with float64 on the first 64 queries."""
    few = inputs | {"query": inputs["query"][:, :64].contiguous()}
    try:
        out = run(few)
    except Exception as error:  # too much shared memory, say: a candidate less
        print(f"not timed: {str(error).splitlines()[0]}")
        return False
    exact = testing.truth(few, *SETTINGS)
    return testing.error(out, exact) <= testing.limit(few, exact, SETTINGS, "nag")


def timed(runs: dict, inputs: dict, seconds: float) -> dict[str, list[float]]:
    runs = {name: run for name, run in runs.items() if right(run, inputs)}
    return measure(runs, rotated(inputs, "cuda"), seconds, Clock("cuda")) if runs else {}


def tune_tiles(chip: int, file: File, seconds: float, deadline: float) -> None:
    from nag_kernels.triton_kernels import attention, configs

    kept = [row for row in configs.read() if row.chip != chip or row.bits != 16]
    before, rows = attention.tiles, []
    try:
        for size_to, names in CLASSES.items():
            found = []
            for name in tqdm(names, desc=f"tiles to head size {size_to}"):
                inputs = make(WORKLOADS[name], torch.bfloat16)
                for candidate in CANDIDATES:  # one at a time: the rivals of a whole group would not fit a turn
                    if time.monotonic() > deadline:
                        break
                    attention.tiles = lambda *_, c=candidate: c
                    run = lambda x: gpu.run_plan("triton", **testing.with_settings(x, SETTINGS))  # noqa: E731
                    what = " ".join(map(str, candidate.values()))
                    for times in timed({what: run}, inputs, seconds).values():
                        found.append(file.add(name, what, times))
            if found:
                what = best_tile(found)
                source = next(m.source for m in found if m.what == what)
                rows.append(configs.Tile(chip, 16, size_to, *map(int, what.split()), source))
    finally:
        attention.tiles = before
    known = {row.size_to for row in rows}
    rows += [dataclasses.replace(configs.find(x, 16, chip), chip=chip) for x in CLASSES if x not in known]
    configs.write(sorted([*kept, *rows], key=lambda r: (r.chip, r.bits, r.size_to)))
    configs.find.cache_clear()


def tune_choices(chip: int, file: File, seconds: float, deadline: float) -> None:
    found = []
    for workload in tqdm(GPU, desc="choices"):
        if time.monotonic() > deadline:
            break
        inputs = make(workload, torch.bfloat16)
        call = gpu_table.Call(
            chip, workload.length, workload.heads, workload.size, workload.text, workload.text, workload.shared
        )
        runs = {
            plan: lambda x, p=plan: gpu.run_plan(p, **testing.with_settings(x, SETTINGS))
            for plan in gpu_table.PLANS
            if plan.split()[0] in gpu.turned_on() and gpu_table.refusal(plan, call) is None
        }
        found += [file.add(workload.name, plan, times) for plan, times in timed(runs, inputs, seconds).items()]
    if found:
        kept = [row for row in gpu_table.read() if row.chip != chip]
        gpu_table.write(sorted([*kept, *choices(chip, found)], key=lambda row: row.chip))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tune_gpu", description=__doc__)
    parser.add_argument("--what", choices=("tiles", "choices", "both"), default="both")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    parser.add_argument("--minutes", type=float, default=8, help="after which no new measurement begins")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.exit(1, "tune_gpu needs a GPU\n")
    if not gpu.turned_on():
        parser.exit(1, "tune_gpu needs the kernels: set NAG_BACKEND=gpu\n")
    chip = gpu.call_of(*(make(WORKLOADS["sd15_8x8"], torch.bfloat16)[k] for k in ("query", "key_positive", "key_negative")),
                       None, None, "nag").chip  # fmt: skip
    deadline = time.monotonic() + 60 * options.minutes
    file = File(describe("cuda", torch.get_num_threads()))
    with torch.inference_mode():
        if options.what != "choices" and "triton" in gpu.turned_on():
            tune_tiles(chip, file, options.seconds, deadline)
        if options.what != "tiles":
            tune_choices(chip, file, options.seconds, deadline)
    print(f"{file.rows} measurements in {file.path}; tables: {gpu_table.TABLE}")


if __name__ == "__main__":
    main()
