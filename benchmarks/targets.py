# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What this project wants of its speed on a CPU, beside what was measured on each machine."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.report_rows import Row, grouped, means, milliseconds, read, table
from benchmarks.workloads import GRADIENT_TARGETS

CROSS_MEAN, JOINT_MEAN = 3.5, 2.5
PEAK_SHARES = {("sdxl_64x64", "float32"): 0.72, ("sd15_64x64", "float32"): 0.65, ("sd15_8x8", "float32"): 0.70}
AMX_SHARE = 0.30
JOINT_LAYER = 1.25
GUIDED_STEP, AFTER_THE_END_MS = 0.8, 0.2
OUTSIDE, FIXED_MS = 1.05, 6.0

# Why a target is missed, by the beginning of what was measured. docs/speed.md has the profiles behind these sentences.
REASONS = {
    "one operation, cross": "torch's own attention takes over half of the peak with 300 keys and more, which bounds the ratio.",
    "one operation, joint": "torch's own attention takes over half of the peak here, which bounds the ratio.",
    "share of the peak, sd15_8x8": "64 queries: packing the keys takes as long as a third of the products.",
    "share of the peak": "Exponentials (15 % with 64 channels), norms and the blend run beside no product.",
    "AMX": "Scores and accumulators pass through the first-level cache between the two products, and exponentials run alone.",
    "a joint layer": "Its arithmetic alone is above the target where the text has half as many tokens as the image.",
    "a guided step": "Dispatch of the projections and norms, which both have, is nearly all of a step of this width.",
    "what a step after the end": "The denoiser's call passes through this package, which looks at the step's place.",
    "fixed cost": "The beginning of the pipeline's call runs once more, and each layer's processor is set in each step.",
    "outside of the denoiser": "The same fixed cost.",
    "memory of a forward": "Z+ and Z- are held in the accumulator's type.",
}


@dataclass(frozen=True)
class Line:
    what: str
    found: str
    target: str
    reached: bool


def at_most(what: str, found: float, target: float, form: str) -> Line:
    return Line(what, form.format(found), f"at most {form.format(target)}", found <= target)


def at_least(what: str, found: float, target: float, form: str) -> Line:
    return Line(what, form.format(found), f"at least {form.format(target)}", found >= target)


def of_attention(rows: list[Row]) -> Iterator[Line]:
    found = means(rows)
    for group, target in (("cross", CROSS_MEAN), ("joint", JOINT_MEAN)):
        if (group, "eager") in found:
            yield at_least(f"one operation, {group}: the published form's time over ours", found[group, "eager"][0], target,
                           "{:.2f}x")  # fmt: skip
    for row in rows:
        if row["provider"] == "ours" and row["peak_gflops"]:
            share, where = float(row["gflops"]) / float(row["peak_gflops"]), (row["workload"], row["dtype"])
            if where in PEAK_SHARES:
                yield at_least(f"share of the peak, {' '.join(where)}", share, PEAK_SHARES[where], "{:.0%}")
            if (
                row["path"] == "amx"
                and row["dtype"] == "bfloat16"
                and row["workload"].startswith(("wan", "flux", "sd35"))
            ):
                yield at_least(f"AMX, share of the tiles' peak, {row['workload']}", share, AMX_SHARE, "{:.0%}")


def of_gradient(rows: list[Row]) -> Iterator[Line]:
    for (workload, dtype), by in grouped(rows, "workload", "dtype").items():
        if not {"ours", "eager"} <= set(by):
            continue
        of_time, of_memory = GRADIENT_TARGETS[workload]
        share = milliseconds(by["ours"]) / milliseconds(by["eager"])
        yield at_most(
            f"time of a forward and its backward over autograd's, {workload} {dtype}", share, of_time, "{:.2f}x"
        )
        if of_memory and by["ours"]["peak_mib"] and by["eager"]["peak_mib"]:
            share = float(by["ours"]["peak_mib"]) / float(by["eager"]["peak_mib"])
            yield at_most(f"memory of a forward and its backward, {workload} {dtype}", share, of_memory, "{:.2f}x")


def of_joint(rows: list[Row]) -> Iterator[Line]:
    for (workload, dtype), by in grouped(rows, "workload", "dtype").items():
        if dtype == "float32":
            over, least = milliseconds(by["ours"]) / milliseconds(by["unguided"]), float(by["ours"]["arithmetic"])
            what = f"a joint layer over one unguided attention by torch, {workload} {dtype} (arithmetic {least:.2f}x)"
            yield at_most(what, over, JOINT_LAYER, "{:.2f}x")


def of_steps(rows: list[Row]) -> Iterator[Line]:
    for (name,), by in grouped(rows, "pipeline").items():
        share = milliseconds(by["guided"]) / milliseconds(by["published"])
        yield at_most(f"a guided step over one of NAG as published, tiny {name}", share, GUIDED_STEP, "{:.2f}x")
        more = milliseconds(by["after the end"]) - milliseconds(by["stock"])
        yield at_most(f"what a step after the end adds, tiny {name}", more, AFTER_THE_END_MS, "{:.2f} ms")


def of_pipeline(rows: list[Row]) -> Iterator[Line]:
    for (name,), by in grouped(rows, "pipeline").items():
        fixed = milliseconds(by["both ready-made"]) - milliseconds(by["prompt ready-made"])
        yield at_most(f"fixed cost of a guided call, {name}", fixed, FIXED_MS, "{:.1f} ms")
        outside = milliseconds(by["negative ready-made"]) / milliseconds(by["unguided"])
        what = f"outside of the denoiser, with encode_negative, over an unguided call, {name}"
        yield at_most(what, outside, OUTSIDE, "{:.2f}x")


KINDS = {
    "gradient": of_gradient, "attention": of_attention, "joint": of_joint, "pipeline": of_pipeline, "steps": of_steps,
}  # fmt: skip


def why(line: Line) -> str:
    if line.reached:
        return ""
    return next((says for start, says in REASONS.items() if line.what.startswith(start)), "not looked into yet")


def section() -> list[str]:
    """One table for each processor and path that has been measured."""
    machines: dict[str, list[Line]] = {}
    for kind, lines in KINDS.items():
        for rows in read(kind).values():
            machine = f"{rows[0]['device']}, path {rows[0]['path']}"
            machines.setdefault(machine, []).extend(lines(rows))
    parts = []
    for machine, lines in machines.items():
        body = [[x.what, x.found, x.target, "yes" if x.reached else "no", why(x)] for x in lines]
        parts += [f"### {machine}", table(["what", "measured", "target", "reached", "why not"], body)]
    return parts
