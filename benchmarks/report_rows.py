# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The rows of benchmarks/results/ as a report reads them."""

import csv
import math
import statistics
from collections.abc import Iterable

from benchmarks import machine

Row = dict[str, str]


def read(kind: str) -> dict[str, list[Row]]:
    """The rows of each CSV of a kind, by the file's stem."""
    files = sorted(file for file in machine.RESULTS.glob(f"{kind}-*.csv") if not file.name.endswith(".partial.csv"))
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


def means(rows: list[dict]) -> dict[tuple[str, str], tuple[float, float]]:
    """(group, rival) to the geometric mean and the least of rival's time over ours."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for by in grouped(rows, "workload", "dtype").values():
        for name, row in by.items():
            if name != "ours" and "ours" in by:
                ratios.setdefault((row["group"], name), []).append(milliseconds(row) / milliseconds(by["ours"]))
    return {key: (math.exp(statistics.fmean(map(math.log, x))), min(x)) for key, x in ratios.items()}
