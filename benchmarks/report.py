# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Writes benchmarks/RESULTS.md, the plots and the tables of docs/speed.md from the CSVs in benchmarks/results/."""

from collections.abc import Callable
from pathlib import Path

from benchmarks import gpu_verdicts, targets
from benchmarks.machine import RESULTS, sentence
from benchmarks.report_rows import Row, grouped, means, milliseconds, read, table
from benchmarks.workloads import GRADIENT_TARGETS
from nag_kernels.whole_file import write_text

REPORT = RESULTS.with_name("RESULTS.md")
PAGE = RESULTS.parents[1] / "docs" / "speed.md"
MARKS = ("<!-- speed: written by python -m benchmarks report -->\n\n", "\n\n<!-- /speed -->")
RIVALS = ("eager", "compiled", "composed")
SHAPE = "B x S x H x D, text, shared"


def _shape(row: Row) -> str:
    return f"{row['batch']} x {row['length']} x {row['heads']} x {row['size']}, {row['text']}, {row['shared']}"


def attention(stem: str, rows: list[Row]) -> str:
    rivals = [name for name in ("unguided", "cfg", *RIVALS, "flex") if any(row["provider"] == name for row in rows)]
    lines, lost, near = [], [], []
    for (workload, dtype), by in grouped(rows, "workload", "dtype").items():
        own = by.get("ours")
        if own is None or own["group"] in ("growth", "call"):
            continue
        ratios = {name: milliseconds(by[name]) / milliseconds(own) for name in rivals if name in by}
        lost += [f"{workload} {dtype} ({name} {r:.2f}x)" for name, r in ratios.items() if name in RIVALS and r < 1]
        rate = float(own["gflops"])
        share = rate / float(own["peak_gflops"]) if own["peak_gflops"] else None
        if share and "eager" in ratios:
            near.append(f"{workload} {dtype} {ratios['eager'] / share:.2f}x")
        memory = [by[name]["peak_mib"] for name in ("ours", "eager") if name in by and by[name]["peak_mib"]]
        times = [f"{milliseconds(own):.2f}", *(f"{ratios[name]:.2f}x" if name in ratios else "" for name in rivals)]
        peak = f"{share:.0%}" if share else ""
        mib = " / ".join(f"{float(x):.0f}" for x in memory)
        lines.append([workload, _shape(own), dtype, *times, f"{rate:.0f}", peak, mib])
    head = [
        "layer",
        SHAPE,
        "dtype",
        "ours, ms",
        *rivals,
        "GFLOP/s",
        "of peak",
        "MiB, ours / eager",
    ]
    found = means(rows)
    groups = list(dict.fromkeys(group for group, _ in found))
    mean = table(["geometric mean (least)", *rivals], [
        [group, *(f"{found[group, n][0]:.2f}x ({found[group, n][1]:.2f}x)" if (group, n) in found else "" for n in rivals)]
        for group in groups
    ])  # fmt: skip
    said = [
        f"### {sentence(rows[0])}", "How many times longer each takes than ours (`unguided` and `cfg` are bounds, without the "
        "formula; p50, providers in turns):", table(head, lines), mean,
        f"Slower than a rival: {', '.join(lost)}." if lost else "No layer is slower than any rival.",
    ]  # fmt: skip
    if near:
        said.append("What stands in the way of more: `eager` over ours if ours ran at the measured multiply-add peak of its "
                    f"dtype from end to end would be {', '.join(near)}.")  # fmt: skip
    return "\n\n".join([*said, *_growth(rows), *_calls(rows), f"![time over ours](results/{stem}.png)"])


def _growth(rows: list[Row]) -> list[str]:
    """Microseconds of one query, of one sample, as there are more of them."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["group"] == "growth":
            what = row["workload"].rsplit(" x", 1)[0]
            queries = int(row["batch"]) * int(row["length"])
            found.setdefault(what, []).append(f"{1e3 * milliseconds(row) / queries:.2f}")
    if not found:
        return []
    lines = [[what, *cost] for what, cost in found.items()]
    return ["Microseconds of one query (float32) where there are one, two and four times as many of them; flat is linear:",
            table(["layer", "x1", "x2", "x4"], lines)]  # fmt: skip


def _calls(rows: list[Row]) -> list[str]:
    found = [
        f"{row['workload'].split(', ')[1]} {1e3 * milliseconds(row):.1f}" for row in rows if row["group"] == "call"
    ]
    return [f"One call on one token, microseconds: {', '.join(found)}."] if found else []


def gradient(stem: str, rows: list[Row]) -> str:
    lines = []
    for (workload, dtype), by in grouped(rows, "workload", "dtype").items():
        if not {"ours", "eager"} <= set(by):
            continue
        own = by["ours"]
        share = milliseconds(own) / milliseconds(by["eager"])
        of_time, of_memory = GRADIENT_TARGETS[workload]
        compiled = f"{milliseconds(own) / milliseconds(by['compiled']):.2f}x" if "compiled" in by else ""
        memory = ""
        if own["peak_mib"] and by["eager"]["peak_mib"]:
            mine, theirs = float(own["peak_mib"]), float(by["eager"]["peak_mib"])
            memory = f"{mine / theirs:.2f}x ({of_memory}x), {mine:.0f} / {theirs:.0f}"
        lines.append(
            [workload, _shape(own), dtype, f"{milliseconds(own):.2f}", f"{share:.2f}x ({of_time}x)", compiled, memory]
        )
    head = ["layer", SHAPE, "dtype", "ours, ms", "of eager (target)", "of compiled",
            "memory of eager (target), MiB"]  # fmt: skip
    return "\n\n".join([
        f"### {sentence(rows[0])}", "Time and peak memory of ours as a share of those of the rival: autograd through torch's "
        "attention twice and the formula, in eager mode or compiled (p50, providers in turns):", table(head, lines),
    ])  # fmt: skip


def joint(stem: str, rows: list[Row]) -> str:
    lines = []
    for (workload, dtype), by in grouped(rows, "workload", "dtype").items():
        own, torchs, kernel = (by[name] for name in ("ours", "unguided", "unguided, our kernel"))
        least = float(own["arithmetic"])
        over = milliseconds(own) / milliseconds(kernel)
        lines.append([
            workload, _shape(own), dtype, f"{milliseconds(own):.1f}", f"{milliseconds(own) / milliseconds(torchs):.2f}x",
            f"{over:.2f}x", f"{least:.2f}x", f"{100 * (over / least - 1):+.0f} %",
        ])  # fmt: skip
    head = ["layer", SHAPE, "dtype", "ours, ms", "of one attention by torch", "of one attention by our kernel", "arithmetic",
            "above it"]  # fmt: skip
    return "\n\n".join([
        f"### {sentence(rows[0])}", "The three calls of a guided joint layer (the image, text+, text-) over one attention of "
        "[text+ ; image] without guidance (p50, in turns). \"Arithmetic\" is the same ratio of multiply-adds. \"Above it\" is "
        "what one operation in place of the three calls could save at most:", table(head, lines),
    ])  # fmt: skip


OVERHEAD_HEAD = ("scale", "dtype", "attention's share", "at real size", "unguided, ms")
OVERHEADS = {"cfg": "CFG", "published": "NAG as published", "ours": "NAG ours", "ours_kept": "NAG ours, later steps"}


ARITHMETIC = "arithmetic of ours"


def _overhead(by: dict[str, Row], name: str) -> float:
    return float(by[name]["p20_ms"]) / float(by["unguided"]["p20_ms"]) - 1


def overhead_cells(by: dict[str, Row]) -> list[str]:
    """One model: the cells under "model", OVERHEAD_HEAD and OVERHEADS, and for a whole model ARITHMETIC."""
    row = by["unguided"]
    cells = []
    for name in OVERHEADS:
        paper = by[name]["overhead_in_paper"]
        cells.append(_percent(_overhead(by, name)) + (f" ({100 * float(paper):+.0f} %)" if paper else ""))
    shares = (_percent(row[x]).lstrip("+") for x in ("attention_share", "attention_share_real_size"))
    counted = [_percent(by["ours"]["arithmetic"])] if "arithmetic" in row else []
    return [row["model"], row["scale"], row["dtype"], *shares, f"{milliseconds(row):.2f}", *cells, *counted]


def overhead(stem: str, rows: list[Row]) -> str:
    said = "Overhead over the unguided model, of p20 over p20 (neighbours on the machine only add time, and a step takes long "
    said += "enough to meet them); `later steps`: keys and values of the texts stay from the first"
    said += "; in brackets the paper's (Table 4, A100)." if any(row["overhead_in_paper"] for row in rows) else "."
    if float(rows[0]["scale"]) > 1:
        said += (" Width and tokens are divided by `scale`, which keeps attention's share of the arithmetic, but passes over "
                 "memory weigh `scale` times as much as at real size: most of all in NAG as published.")  # fmt: skip
    lines = [overhead_cells(by) for by in grouped(rows, "model").values()]
    head = ["model", *OVERHEAD_HEAD, *OVERHEADS.values(), *([ARITHMETIC] if "arithmetic" in rows[0] else [])]
    return "\n\n".join([f"### {sentence(rows[0])}", said, table(head, lines), f"![overhead](results/{stem}.png)"])


def pipeline(stem: str, rows: list[Row]) -> str:
    lines = []
    for (name,), by in grouped(rows, "pipeline").items():
        text = [milliseconds(by[x]) for x in ("unguided", "guided", "negative ready-made")]
        fixed = milliseconds(by["both ready-made"]) - milliseconds(by["prompt ready-made"])
        over = [f"{x:.0f} ({x / text[0]:.2f})" for x in text[1:]]
        lines.append([name, f"{text[0]:.0f}", *over, f"{fixed:.1f}"])
    head = [
        "pipeline", "unguided, ms", "guided, ms (over unguided; target: 1.05)",
        "guided, negative from encode_negative, ms (the same)",
        "guided less unguided where all text is ready-made, ms (target: 6)",
    ]  # fmt: skip
    says = (
        f"A call of {rows[0]['steps']} steps, half of them guided, without the denoiser's forward (p50, calls in turns). "
        "The denoiser has its real depth and a tiny width; text encoders have their real size, but for a T5 of 24 layers "
        "and width 1024:"
    )
    return "\n\n".join([f"### {sentence(rows[0])}", says, table(head, lines)])


def steps(stem: str, rows: list[Row]) -> str:
    lines = []
    for (name,), by in grouped(rows, "pipeline").items():
        time = {which: milliseconds(row) for which, row in by.items()}
        lines.append([
            name, f"{time['stock']:.2f}", f"{time['after the end'] - time['stock']:+.2f}", f"{time['published']:.2f}",
            f"{time['guided']:.2f}", f"{time['guided'] / time['published']:.2f}x",
        ])  # fmt: skip
    head = ["pipeline", "between two stock forwards, ms", "after the end, more", "NAG as published, ms", "guided, ms",
            "of NAG as published"]  # fmt: skip
    says = (
        "Steps of denoisers of real depth and tiny width, on one thread, so mostly Python and dispatch (p50, in turns):"
    )
    return "\n\n".join([f"### {sentence(rows[0])}", says, table(head, lines)])


def growth_lines(rows: list[Row]) -> dict[tuple[str, str, str, str], list[tuple[int, float, float | None]]]:
    """(layer, group, provider, threads) to (tokens, GFLOP/s, MiB beyond the inputs or None), tokens of the whole batch."""
    found: dict[tuple[str, str, str, str], list[tuple[int, float, float | None]]] = {}
    for row in rows:
        tokens = int(row["batch"]) * int(row["length"])
        keys = int(row["batch"]) * int(row["length"]) * int(row["heads"]) * int(row["size"])
        rate = 4e-6 * keys * (2 * int(row["text"]) + int(row["shared"])) / milliseconds(row)
        memory = float(row["peak_mib"]) if row["peak_mib"] else None
        key = row["workload"], row["group"], row["provider"], row["on_threads"]
        found.setdefault(key, []).append((tokens, rate, memory))
    return found


def growth(stem: str, rows: list[Row]) -> str:
    lines = []
    for (layer, group, provider, threads), points in growth_lines(rows).items():
        if provider == "ours":
            rates = [rate for _, rate, _ in points]
            low, high = min(points, key=lambda x: x[1]), max(points, key=lambda x: x[1])
            lines.append([layer, group, threads, f"{rates[0]:.0f}", f"{rates[-1]:.0f}",
                          f"{low[1]:.0f} at {low[0]}", f"{high[1]:.0f} at {high[0]}"])  # fmt: skip
    head = ["layer", "what grows", "threads", "GFLOP/s, smallest", "largest", "lowest, at tokens", "highest"]
    says = (
        "Multiply-adds a second as the image has 1024 to 131,072 tokens (joint: 16,384), or the batch 1 to 16 images of 1024. "
        "A flat rate is a time that grows as the arithmetic does:"
    )
    return "\n\n".join([f"### {sentence(rows[0])}", says, table(head, lines), f"![growth](results/{stem}.png)"])


def plot_growth(path: Path, rows: list[Row]) -> None:
    """Rate above, memory of a token below; one column for each layer and for what grows."""
    from matplotlib import pyplot

    lines = growth_lines(rows)
    columns = list(dict.fromkeys((layer, group) for layer, group, _, _ in lines))
    figure, axes = pyplot.subplots(2, len(columns), figsize=(4 * len(columns), 6.5), squeeze=False)
    for at, (layer, group) in enumerate(columns):
        rates, memories = axes[0][at], axes[1][at]
        for (of_layer, of_group, provider, threads), points in lines.items():
            if (of_layer, of_group) != (layer, group):
                continue
            color, style = ("C0" if provider == "ours" else "C1"), ("-" if threads != "1" else "--")
            label = f"{provider}, {threads} thread{'s' if threads != '1' else ''}"
            rates.plot(
                [x for x, _, _ in points], [y for _, y, _ in points], style, marker="o", color=color, label=label
            )
            kept = [(x, 1024 * y / x) for x, _, y in points if y is not None]
            if kept:
                memories.plot(*zip(*kept, strict=True), style, marker="o", color=color, label=label)
        rates.set(xscale="log", ylim=(0, None), title=f"{layer}, more {'tokens' if group == 'tokens' else 'images'}")
        memories.set(xscale="log", ylim=(0, None), xlabel="tokens of the whole batch")
    axes[0][0].set(ylabel="GFLOP/s")
    axes[1][0].set(ylabel="KiB a token beyond the inputs")
    axes[1][0].legend(*axes[0][0].get_legend_handles_labels(), fontsize=7, loc="center")
    figure.tight_layout()
    figure.savefig(path, dpi=90, metadata={"Software": None})
    pyplot.close(figure)


def _percent(share: str | float) -> str:
    return f"{100 * float(share):+.1f} %"


def plot_attention(path: Path, rows: list[Row]) -> None:
    """Roofline of ours on the left, time over ours on the right."""
    from matplotlib import pyplot

    rows = [row for row in rows if row["group"] not in ("growth", "call")]
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
    for dtype in ("bfloat16", "float32"):
        peak = next((each["ours"]["peak_gflops"] for (_, kind), each in by.items() if kind == dtype), None)
        if peak:
            left.axhline(float(peak), color="gray", linestyle="--", linewidth=0.8)
            left.annotate(f"multiply-add peak, {dtype}", (1, float(peak)), xycoords=("axes fraction", "data"), fontsize=6,
                          ha="right", va="bottom")  # fmt: skip
    left.set(xscale="log", yscale="log", xlabel="FLOP per byte of inputs and output", ylabel="GFLOP/s", title="ours")
    left.legend(fontsize=7)
    names = [name for name in RIVALS if any(row["provider"] == name for row in rows)]
    for place, name in enumerate(names):
        found = [(at, milliseconds(each[name]) / milliseconds(each["ours"])) for at, each in enumerate(by.values())
                 if name in each]  # fmt: skip
        right.bar([at + 0.27 * (place - 1) for at, _ in found], [ratio for _, ratio in found], 0.25, label=name)
    right.axhline(1, color="black", linewidth=0.8)
    right.set_xticks(range(len(by)), [" ".join(key) for key in by], rotation=90, fontsize=6)
    right.set(ylabel="time over ours", title="rivals")
    right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def plot_overhead(path: Path, rows: list[Row]) -> None:
    from matplotlib import pyplot

    by = grouped(rows, "model")
    figure, axes = pyplot.subplots(figsize=(9, 4.5))
    for place, (name, label) in enumerate(OVERHEADS.items()):
        heights = [100 * _overhead(each, name) for each in by.values()]
        bars = axes.bar([at + 0.2 * (place - 1.5) for at in range(len(by))], heights, 0.19, label=label)
        axes.bar_label(bars, fmt="%+.0f", fontsize=7)
    axes.set_xticks(range(len(by)), [model for (model,) in by])
    axes.set(ylabel="overhead over unguided, %")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


SECTIONS: tuple[tuple[str, str, Callable, Callable | None], ...] = (
    ("attention", "One operation", attention, plot_attention),
    ("gradient", "A forward and its backward", gradient, None),
    ("joint", "The attention of a whole joint layer", joint, None),
    ("growth", "Growth with the image and the batch", growth, plot_growth),
    ("layer", "One attention layer: projections, norms, rotary embedding, attention", overhead, plot_overhead),
    ("model", "One denoising step", overhead, plot_overhead),
    ("pipeline", "A pipeline's call outside of its denoiser", pipeline, None),
    ("steps", "A step beside its arithmetic", steps, None),
)


def summary() -> str:
    """The tables of docs/speed.md: the means of each machine, and one denoising step of each model."""
    shown = {"small": "SD1.5", "cross": "SDXL, SANA, PixArt, Wan", "joint": "FLUX.1, SD3.5"}
    lines = []
    for rows in read("attention").values():
        found = means(rows)
        for group in (g for g in shown if (g, "eager") in found):
            ratios = [found.get((group, rival)) for rival in RIVALS]
            lines.append([f"{rows[0]['device']}, {rows[0]['path']}", shown[group],
                          *(f"{ratio[0]:.2f}x ({ratio[1]:.2f}x)" if ratio else "" for ratio in ratios)])  # fmt: skip
    operation = table(["processor, path", "layers of", "attention twice, eager formula", "compiled formula",
                       "each key once, merged"], lines)  # fmt: skip
    lines = []
    for rows in read("model").values():
        for by in grouped(rows, "model").values():
            cells = dict(zip(("model", *OVERHEAD_HEAD, *OVERHEADS), overhead_cells(by), strict=False))
            lines.append(
                [f"{rows[0]['device']}, {rows[0]['path']}", cells["model"], *(cells[name] for name in OVERHEADS)]
            )
    step = table(["processor, path", "one step of", *OVERHEADS.values()], lines)
    return f"{operation}\n\n{step}"


def main() -> None:
    parts = [
        "# Results", "Written by `python -m benchmarks report` from the CSVs in `benchmarks/results/`; `make bench` measures and "
        "writes all of it on the machine at hand. Nothing here is typed by hand.",
        "## Targets", "What is wanted, and what was measured on each processor:", *targets.section(),
    ]  # fmt: skip
    for kind, title, text, plot in SECTIONS:
        parts.append(f"## {title}")
        for stem, rows in read(kind).items():
            parts.append(text(stem, rows))
            if plot is not None:
                plot(RESULTS / f"{stem}.png", rows)
    proven = read("gpu_verdicts")
    if proven:
        parts += [
            "## Plans on GPUs, as their users found them",
            *(gpu_verdicts.section(*each) for each in proven.items()),
        ]
    write_text(REPORT, "\n\n".join(parts) + "\n")
    print("\n\n".join(targets.section()))
    before, rest = PAGE.read_text().split(MARKS[0])
    write_text(PAGE, before + MARKS[0] + summary() + MARKS[1] + rest.split(MARKS[1])[1])
    print(f"{REPORT.relative_to(RESULTS.parents[1])} and {len(list(RESULTS.glob('*.png')))} plots")
