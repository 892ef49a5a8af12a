# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What guidance costs a step beside its arithmetic, on one thread.

The denoisers are those of `bench_pipeline.py`: real depth, tiny width, so that a step is mostly Python and dispatch.

"stock" and "after the end" are the times from the end of one forward to the beginning of the next in a pipeline's call:
without guidance, and in the steps that follow the guided ones, whose forward is the stock one. "published" and "guided" are
one forward of the denoiser with NAG as published (`benchmarks/published.py`) and with ours. The two of a pair take turns.
Pictures are compared before anything is timed.
"""

import argparse
import itertools
import statistics
import sys
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.bench_attention import Clock, measure, spread
from benchmarks.bench_model import Model, Step
from benchmarks.bench_pipeline import NEGATIVE, PIPELINES, PROMPT, made, timed_forward
from benchmarks.machine import Rows, describe, sentence

STEPS, GUIDED = 16, 2
PAIRS = (("stock", "after the end"), ("published", "guided"))
SETTINGS = (5.0, 2.5, 0.25)


def inputs_of(name: str) -> dict[str, Any]:
    """Arguments of one forward of a denoiser of `bench_pipeline.py`."""
    if name == "SDXL":
        return {
            "sample": torch.randn(1, 4, 8, 8), "timestep": torch.full((1,), 500.0),
            "encoder_hidden_states": torch.randn(1, 77, 2048),
            "added_cond_kwargs": {"text_embeds": torch.randn(1, 1280), "time_ids": torch.ones(1, 6)},
        }  # fmt: skip
    return {
        "hidden_states": torch.randn(1, 16, 16), "encoder_hidden_states": torch.randn(1, 512, 1024),
        "pooled_projections": torch.randn(1, 768), "timestep": torch.full((1,), 0.5), "img_ids": torch.randn(16, 3),
        "txt_ids": torch.zeros(512, 3),
    }  # fmt: skip


def between_forwards(
    pipe: Any, denoiser: torch.nn.Module, options: dict[str, Any], rounds: int
) -> dict[str, list[float]]:
    """Milliseconds between two forwards where nothing is guided: of stock calls, and of guided calls after their end."""
    from nag_kernels.diffusers import encode_negative, guided

    text, negative = (encode_negative(pipe, x, **options) for x in (PROMPT, NEGATIVE))
    steered = guided(pipe, negative, nag_scale=5.0, end=GUIDED / STEPS)
    times: dict[str, list[float]] = {"stock": [], "after the end": []}

    def draw(function: Any) -> torch.Tensor:
        return function(num_inference_steps=STEPS, output_type="latent", generator=torch.Generator().manual_seed(0),
                        **text, **options).images  # fmt: skip

    with timed_forward(denoiser) as taken:
        if torch.equal(draw(pipe), draw(steered)):
            raise SystemExit("guidance changed nothing; nothing is timed")
        for turn in range(rounds):
            for which in sorted(times, reverse=turn % 2 == 1):
                taken.clear()
                draw(pipe if which == "stock" else steered)
                gaps = [1e3 * (begin - end) for (_, end), (begin, _) in itertools.pairwise(taken[-STEPS:])]
                times[which] += gaps[GUIDED + 1 :]
    return times


def forwards(name: str, denoiser: torch.nn.Module, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of a forward with NAG as published, and with ours."""
    with torch.inference_mode():
        step = Step(
            Model(lambda *_: denoiser, lambda _: inputs_of(name), None, None, 1, SETTINGS), 1, 1, "cpu", torch.float32
        )
        step.check()
        runs = {"published": lambda _: step.run("published"), "guided": lambda _: step.run("ours")}
        return measure(runs, [{}], seconds, Clock("cpu"))


def help_text() -> str:
    return "pipelines:  " + " ".join(PIPELINES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pipeline", nargs="+", choices=PIPELINES, metavar="NAME", help="default: all")
    parser.add_argument("--rounds", type=int, default=12, help="calls of each kind (default: 12)")
    parser.add_argument("--seconds", type=float, default=16.0, help="time of the forwards of a pipeline (default: 16)")


def main(options: argparse.Namespace) -> None:
    if torch.device(options.device).type != "cpu":
        raise SystemExit("steps: this times Python and dispatch on the CPU; leave --device out")
    torch.set_num_threads(1)
    about = describe("cpu", 1)
    print(sentence(about))
    rows = Rows("steps", about, options.csv and not options.pipeline)
    table = Table(title="milliseconds of a step", title_justify="left")
    for column in ("pipeline", *(x for pair in PAIRS for x in pair)):
        table.add_column(column, justify="left" if column == "pipeline" else "right")
    try:
        for name in tqdm(options.pipeline or PIPELINES, desc="steps"):
            pipe, arguments, denoiser = made(name, 0.0, "cpu")
            times = between_forwards(pipe, denoiser, arguments, options.rounds) | forwards(
                name, denoiser, options.seconds
            )
            for which, each in times.items():
                p20, p50, p80 = spread(each)
                rows.add(pipeline=name, provider=which, steps=len(each), p20_ms=f"{p20:.3f}", p50_ms=f"{p50:.3f}",
                         p80_ms=f"{p80:.3f}")  # fmt: skip
            table.add_row(name, *(f"{statistics.median(times[x]):.2f}" for pair in PAIRS for x in pair))
    finally:
        Console(width=None if sys.stdout.isatty() else 120).print(table)
    rows.close()
