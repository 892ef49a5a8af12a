# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Writes benchmarks/RESULTS.md and the plots from the CSVs in benchmarks/results/: every number of README comes from there."""

import csv
import math
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from .machine import RESULTS

REPORT = RESULTS.with_name("RESULTS.md")
RIVALS = ("eager", "compiled", "composed")
Row = dict[str, str]


def read(kind: str) -> dict[str, list[Row]]:
    """The rows of each CSV of a kind, by the file's stem."""
    files = sorted(RESULTS.glob(f"{kind}-*.csv"))
    return {file.stem: list(csv.DictReader(file.open(newline=""))) for file in files}


def milliseconds(row: Row) -> float:
    return float(row["p50_ms"])


def grouped(rows: list[Row], *names: str) -> dict[tuple[str, ...], dict[str, Row]]:
    """Rows by provider for each value of the columns."""
    found: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), {})[row["provider"]] = row
    return found


def table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    head = list(head)
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def about(rows: list[Row]) -> str:
    row = rows[0]
    path = f", path {row['path']}, {row['threads']} threads" if row["path"] else ""
    changed = " with changes" if row["dirty"] == "True" else ""
    return f"{row['device']}{path}; torch {row['torch']}; commit {row['git_sha']}{changed}; {row['timestamp'][:10]}"


def means(rows: list[Row]) -> dict[tuple[str, str], tuple[float, float]]:
    """(group, rival) to the geometric mean and the least of rival's time over ours."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for by in grouped(rows, "workload", "dtype").values():
        for name, row in by.items():
            if name != "ours" and "ours" in by:
                ratios.setdefault((row["group"], name), []).append(milliseconds(row) / milliseconds(by["ours"]))
    return {key: (math.exp(statistics.fmean(map(math.log, x))), min(x)) for key, x in ratios.items()}


def attention(stem: str, rows: list[Row]) -> str:
    rivals = [name for name in ("unguided", "cfg", *RIVALS, "flex") if any(row["provider"] == name for row in rows)]
    lines, lost = [], []
    for (workload, dtype), by in grouped(rows, "workload", "dtype").items():
        if "ours" not in by:
            continue
        own = by["ours"]
        shape = f"{own['batch']} x {own['length']} x {own['heads']} x {own['size']}, {own['text']}, {own['shared']}"
        ratios = {name: milliseconds(by[name]) / milliseconds(own) for name in rivals if name in by}
        lost += [f"{workload} {dtype} ({name} {r:.2f}x)" for name, r in ratios.items() if name in RIVALS and r < 1]
        rate = float(own["gflops"])
        share = f"{rate / float(own['peak_gflops']):.0%}" if own["peak_gflops"] else ""
        cells = [f"{ratios[name]:.2f}x" if name in ratios else "" for name in rivals]
        lines.append([workload, shape, dtype, f"{milliseconds(own):.2f}", *cells, f"{rate:.0f}", share])
    head = ["layer", "B x S x H x D, text, shared", "dtype", "ours, ms", *rivals, "GFLOP/s", "of peak"]
    found = means(rows)
    groups = list(dict.fromkeys(group for group, _ in found))
    mean = table(["geometric mean (least)", *rivals], [
        [group, *(f"{found[group, n][0]:.2f}x ({found[group, n][1]:.2f}x)" if (group, n) in found else "" for n in rivals)]
        for group in groups
    ])  # fmt: skip
    verdict = f"Slower than a rival: {', '.join(lost)}." if lost else "No layer is slower than any rival."
    return "\n\n".join([
        f"### {about(rows)}", "How many times longer each takes than ours (`unguided` and `cfg` are bounds, without the "
        "formula; p50, providers in turns):", table(head, lines), mean, verdict, f"![time over ours](results/{stem}.png)",
    ])  # fmt: skip


def overhead(stem: str, rows: list[Row]) -> str:
    lines = []
    for (model,), by in grouped(rows, "model").items():
        row = by["ours"]
        cells = [_percent(by[name]["overhead"]) for name in ("cfg", "published", "ours", "ours_kept")]
        for at, name in enumerate(("cfg", "published")):
            if by[name]["overhead_in_paper"]:
                cells[at] += f" ({100 * float(by[name]['overhead_in_paper']):+.0f} %)"
        shares = (_percent(row[x]).lstrip("+") for x in ("attention_share", "attention_share_real_size"))
        lines.append([model, row["scale"], row["dtype"], *shares, f"{milliseconds(by['unguided']):.1f}", *cells])
    head = [
        "model",
        "scale",
        "dtype",
        "attention's share",
        "at real size",
        "unguided, ms",
        "CFG",
        "NAG as published",
        "NAG ours",
    ]
    said = (
        "Overhead over the unguided model; `later steps` is ours where keys and values of the texts stay from the first"
    )
    said += ", in brackets the paper's (Table 4, A100):" if any(row["overhead_in_paper"] for row in rows) else ":"
    return "\n\n".join([f"### {about(rows)}", said, table(head, lines), f"![overhead](results/{stem}.png)"])


def _percent(share: str) -> str:
    return f"{100 * float(share):+.1f} %"


def plot_attention(path: Path, rows: list[Row]) -> None:
    """Roofline of ours on the left, time over ours on the right."""
    from matplotlib import pyplot

    by = {key: each for key, each in grouped(rows, "workload", "dtype").items() if "ours" in each}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5))
    for dtype, marker in (("float32", "o"), ("bfloat16", "s"), ("float16", "^")):
        points = [each["ours"] for (_, kind), each in by.items() if kind == dtype]
        if points:
            # operations per byte = (GFLOP/s) / (GB/s), both of the same call
            density = [float(row["gflops"]) / float(row["gbytes"]) for row in points]
            left.scatter(density, [float(row["gflops"]) for row in points], marker=marker, label=dtype)
            for x, row in zip(density, points, strict=True):
                left.annotate(row["workload"], (x, float(row["gflops"])), fontsize=6, xytext=(3, 3),
                              textcoords="offset points")  # fmt: skip
    peak = rows[0]["peak_gflops"]
    if peak:
        left.axhline(float(peak), color="gray", linestyle="--", label="float32 multiply-add peak, measured")
    left.set(xscale="log", xlabel="FLOP per byte of inputs and output", ylabel="GFLOP/s", title="ours")
    left.set_ylim(bottom=0)
    left.legend(fontsize=7)
    names = [name for name in RIVALS if any(row["provider"] == name for row in rows)]
    for place, name in enumerate(names):
        found = [(at, milliseconds(each[name]) / milliseconds(each["ours"])) for at, each in enumerate(by.values())
                 if name in each]  # fmt: skip
        right.bar([at + 0.27 * (place - 1) for at, _ in found], [ratio for _, ratio in found], 0.25, label=name)
    right.axhline(1, color="black", linewidth=0.8)
    right.set_xticks(range(len(by)), [f"{w} {d[0]}{d.rstrip('0123456789')[-1]}{d[-2:]}" for w, d in by], rotation=90,
                     fontsize=6)  # fmt: skip
    right.set(ylabel="time over ours", title="rivals")
    right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def plot_overhead(path: Path, rows: list[Row]) -> None:
    from matplotlib import pyplot

    by = grouped(rows, "model")
    figure, axes = pyplot.subplots(figsize=(9, 4.5))
    for place, (name, label) in enumerate(
        (("cfg", "CFG"), ("published", "NAG as published"), ("ours_kept", "NAG ours"))
    ):
        heights = [100 * float(each[name]["overhead"]) for each in by.values()]
        bars = axes.bar([at + 0.27 * (place - 1) for at in range(len(by))], heights, 0.25, label=label)
        axes.bar_label(bars, fmt="%+.0f", fontsize=7)
    axes.set_xticks(range(len(by)), [model for (model,) in by])
    axes.set(ylabel="overhead over unguided, %")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


SECTIONS: tuple[tuple[str, str, Callable, Callable], ...] = (
    ("attention", "One operation", attention, plot_attention),
    ("layer", "One attention layer: projections, norms, rotary embedding, attention", overhead, plot_overhead),
    ("model", "One denoising step", overhead, plot_overhead),
)


def main() -> None:
    parts = [
        "# Results", "Written by `python -m benchmarks report` from the CSVs in `benchmarks/results/`; `make bench` measures and "
        "writes all of it on the machine at hand. Nothing here is typed by hand.",
    ]  # fmt: skip
    for kind, title, text, plot in SECTIONS:
        parts.append(f"## {title}")
        for stem, rows in read(kind).items():
            parts.append(text(stem, rows))
            plot(RESULTS / f"{stem}.png", rows)
    REPORT.write_text("\n\n".join(parts) + "\n")
    print(f"{REPORT.relative_to(RESULTS.parents[1])} and {len(list(RESULTS.glob('*.png')))} plots")
