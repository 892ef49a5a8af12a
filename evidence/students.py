# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""How far one-step students spread: one row per student, and random kappa against fixed."""

import math
from pathlib import Path
from statistics import mean, stdev, variance

from nag_kernels.shapes.pipeline import load, load_denoiser

from .cells import NASA, NONE, Size
from .measures import MEASURES, judge, measure
from .methods import draw
from .rows import load_rows, save_rows
from .run import judges, reference_file, write_reference

STUDENT_COLUMNS = ("architecture", "kappa", "seed", "size", *MEASURES, *(f"nasa_{name}" for name in MEASURES))
# Student's t, 97.5 % quantile, for 1, 2, ... degrees of freedom.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
     2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)  # fmt: skip


def measure_student(folder: Path, kappa: str, seed: int, size: Size, work: Path) -> dict[str, str]:
    """The row of a one-step student whose denoiser is in `folder`: without a negative, and with NASA 0.5."""
    found = load_denoiser(folder)
    pipe = load()
    pipe.register_modules(**({"unet": None, "transformer": None} | found))
    pipe.denoiser.float()
    work.mkdir(parents=True, exist_ok=True)
    write_reference(size, work)
    classifier, features, against = judges(reference_file(size, work))
    row = {
        "architecture": "joint" if "transformer" in found else "cross",
        "kappa": kappa,
        "seed": str(seed),
        "size": size.name,
    }
    for prefix, method in (("", NONE), ("nasa_", NASA[1])):
        samples = judge(classifier, features, draw(pipe, method, 1, size.per_pair))
        row |= {f"{prefix}{name}": f"{values[0]:.5f}" for name, values in measure(samples, against, 1).items()}
    return row


def add_student(row: dict[str, str], path: Path) -> None:
    """Put a row into students.csv, in the place of an older one of the same student."""
    key = ("architecture", "kappa", "seed", "size")
    rows = [old for old in load_rows(path) if any(old[name] != row[name] for name in key)]
    save_rows(path, STUDENT_COLUMNS, sorted([*rows, row], key=lambda each: tuple(each[name] for name in key)))


def welch(left: list[float], right: list[float]) -> tuple[float, float, float] | None:
    """mean(left) - mean(right) with its 95 % interval by Welch's t; None with fewer than two values on a side."""
    if min(len(left), len(right)) < 2:
        return None
    a, b = variance(left) / len(left), variance(right) / len(right)
    difference = mean(left) - mean(right)
    if a + b == 0:
        return difference, difference, difference
    freedom = (a + b) ** 2 / (a**2 / (len(left) - 1) + b**2 / (len(right) - 1))
    half = T[min(max(math.floor(freedom), 1), len(T)) - 1] * math.sqrt(a + b)
    return difference, difference - half, difference + half


def spread(values: list[float]) -> float:
    """Standard deviation; nan for one value."""
    return stdev(values) if len(values) > 1 else math.nan
