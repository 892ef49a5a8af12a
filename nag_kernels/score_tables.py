# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The scores of several methods as a file and as a table."""

import csv
import sys
from pathlib import Path

from rich.table import Table

from .scores import Score
from .whole_file import whole_file


def write_scores(scores: dict[str, list[Score]], path: Path) -> None:
    """One row for each method and metric; a metric that is missing has no value and says why."""
    with whole_file(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["method", "metric", "value", "low", "high", "samples", "note"])
        for method, each in scores.items():
            for x in each:
                numbers = ("" if y is None else f"{y:.6g}" for y in (x.value, x.low, x.high))
                rows.writerow([method, x.metric, *numbers, x.samples, x.note])


def kept_scores(scores: dict[str, list[Score]], path: Path) -> dict[str, list[Score]]:
    """The same; what is missing now and was written before, for as many pictures, stays (it may need another environment)."""
    if not path.exists():
        return scores

    def number(text: str) -> float | None:
        return float(text) if text else None

    try:
        with path.open(newline="", encoding="utf-8") as file:
            before = {(row["method"], row["metric"]): row for row in csv.DictReader(file) if row["value"]}
        for row in before.values():
            _ = [number(row[name]) for name in ("value", "low", "high")], int(row["samples"]), row["note"]
    except (ValueError, KeyError, TypeError, csv.Error):
        print(f"{path} is damaged: what it held is not kept", file=sys.stderr)
        return scores
    merged: dict[str, list[Score]] = {}
    for method, each in scores.items():
        samples = str(max(x.samples for x in each))
        merged[method] = []
        for x in each:
            old = before.get((method, x.metric))
            if x.value is None and old is not None and samples in (old["samples"], "0"):
                value, low, high = (number(old[name]) for name in ("value", "low", "high"))
                x = Score(x.metric, int(old["samples"]), value, low, high, old["note"])
            merged[method].append(x)
    return merged


def reasons(scores: dict[str, list[Score]]) -> list[str]:
    """Why values are not there, each reason once with the methods that it holds for."""
    found: dict[tuple[str, str], list[str]] = {}
    for method, each in scores.items():
        for x in each:
            if x.value is None:
                found.setdefault((x.metric, x.note), []).append(method)
    return [
        f"{metric}: {note}" + (f" ({', '.join(methods)})" if len(methods) < len(scores) else "")
        for (metric, note), methods in found.items()
    ]


def table(scores: dict[str, list[Score]], title: str) -> Table:
    """A section for each metric, a line for each method: it fits 80 columns, whatever the number of either."""
    found = Table(title=title)
    found.add_column("metric", no_wrap=True)
    found.add_column("method", overflow="fold")
    for name in ("value", "95 % interval", "pictures"):
        found.add_column(name, justify="right", no_wrap=True)
    for each in zip(*scores.values(), strict=True):
        for place, (method, x) in enumerate(zip(scores, each, strict=True)):
            value = x.note.partition(":")[0] if x.value is None else f"{x.value:.3f}"  # missing, or failed
            bounds = "" if x.low is None else f"{x.low:.3f} to {x.high:.3f}"
            found.add_row("" if place else x.metric, method, value, bounds, str(x.samples or ""))
        found.add_section()
    return found
