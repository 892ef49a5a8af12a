# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of what `python -m nag_kernels.prove --report FILE` found on a user's GPU: a row for each plan and layer.

python -m benchmarks verdicts FILE     takes a report in, as benchmarks/results/gpu_verdicts-<GPU>.csv
"""

import csv
import json
import re
from pathlib import Path

from benchmarks.machine import RESULTS
from nag_kernels.prove.layers import Layer, layer_of
from nag_kernels.prove.verdicts import STATES
from nag_kernels.whole_file import whole_file

FACTS = ("gpu", "multiprocessors", "capability", "driver", "torch", "cuda", "triton", "kernels")
LAYER = tuple(Layer.__dataclass_fields__)
COLUMNS = (
    "plan",
    "state",
    "why",
    "cases",
    *LAYER,
    "microseconds",
    "sdpa_microseconds",
    *FACTS,
    "nag_kernels",
    "system",
)
Row = dict[str, object]


def rows(report: dict) -> dict[str, list[Row]]:
    """Of each GPU of a report. Raises: ValueError or KeyError where it is none."""
    found: dict[str, list[Row]] = {}
    for verdict in report["verdicts"]:
        common = {name: verdict["facts"][name] for name in FACTS}
        common |= {name: report[name] for name in ("nag_kernels", "system")}
        for plan, what in verdict["plans"].items():
            if what["state"] not in STATES:
                raise ValueError(f"state must be one of {', '.join(STATES)}, got {what['state']!r}")
            row = {"plan": plan, "state": what["state"], "why": what["why"], "cases": what["cases"]} | common
            timed = [
                row | layer_of(verdict["layers"][name]).facts() | {"microseconds": ours, "sdpa_microseconds": sdpa}
                for name, (ours, sdpa) in what["times"].items()
            ]
            found.setdefault(common["gpu"], []).extend(timed or [row])
    return found


def take_in(path: Path, results: Path = RESULTS) -> list[Path]:
    """Write the rows; a file of the same GPU is replaced."""
    written = []
    for gpu, each in rows(json.loads(path.read_text())).items():
        to = results / f"gpu_verdicts-{re.sub('[^a-z0-9]+', '-', gpu.lower()).strip('-')}.csv"
        with whole_file(to) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(each)
        written.append(to)
    return written


def section(stem: str, found: list[dict[str, str]]) -> str:
    """A table of one file: states, and each layer's time beside torch's attention and the plain formula."""
    first = found[0]
    head = f"### {first['gpu']}, driver {first['driver']}, torch {first['torch']}, Triton {first['triton']}"
    lines = ["| plan | state | layer | us | times as fast as sdpa |", "| --- | --- | --- | --- | --- |"]
    for row in found:
        layer, time, gain = "", "", ""
        if row["microseconds"]:
            sizes = {name: int(row[name]) for name in LAYER if name != "dtype"}
            layer = Layer(**sizes, dtype=row["dtype"]).name()
            time = f"{float(row['microseconds']):.1f}"
            gain = f"{float(row['sdpa_microseconds']) / float(row['microseconds']):.2f}x"
        why = f" ({row['why']})" if row["why"] else ""
        lines.append(f"| {row['plan']} | {row['state']}{why} | {layer} | {time} | {gain} |")
    return f"{head}\n\n" + "\n".join(lines)
