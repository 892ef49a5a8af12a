# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Distil a text-to-image model to one step, without a single picture: prompts are all the data.

Variational score distillation: a frozen teacher says what pictures of the prompt look like, a LoRA teacher what the student's
pictures look like, and the student moves from the second to the first. Both are guided by a scale kappa:

    a number  --kappa 2        fixed, as in SwiftBrush
    a range   --kappa 0.5 4    drawn afresh in every step, the same for both teachers, as in PG-SB (SNOOPI)

Presets of the small model in this repository; the bar says how long, and the last line how long it was:

    python -m nag_kernels.distill cross            "teacher" to a student with cross-attention
    python -m nag_kernels.distill joint            "joint_teacher" to a student with joint attention

Another model (a StableDiffusionPipeline, by folder or name) and a file with one prompt a line:

    python -m nag_kernels.distill --model FOLDER --prompts FILE --steps 5000 --batch 16
    accelerate launch -m nag_kernels.distill --model FOLDER --prompts FILE        one process for each GPU

--out gets the student (student/, to load as any diffusers model), metrics.csv, watch.csv and a checkpoint. The same command
again goes on where it was, with the same weights in the end, bit for bit.
"""

import argparse
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from .. import user_errors
from .settings import SHAPES, TARGETS, WEIGHTS, Settings

try:
    from .command import PRESETS, file_prompts, launch, run
except ImportError as error:
    raise user_errors.missing("nag_kernels.distill", __name__, error) from error


def parser() -> argparse.ArgumentParser:
    known = argparse.ArgumentParser(
        prog="python -m nag_kernels.distill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known.add_argument("preset", nargs="?", choices=PRESETS, help="distil a teacher of shapes")
    known.add_argument("--teacher", help="with a preset: another variant of shapes as the teacher")
    known.add_argument("--weights", type=Path, help="with a preset: folder of shapes (default: the shipped one)")
    known.add_argument("--model", help="folder or name of a diffusers pipeline")
    known.add_argument("--prompts", type=Path, help="with --model: a file, one prompt a line")
    known.add_argument("--student", help="folder of weights to start from (default: the teacher's own)")
    known.add_argument("--out", type=Path, help="folder of the run (default: out/distill/PRESET)")
    known.add_argument("--workers", type=int, default=0, help="processes on this machine's CPU, one thread each "
                       "(default: 2 with a preset on a machine without a GPU; 0: this process, or accelerate's)")  # fmt: skip
    known.add_argument("--cpu", action="store_true", help="not on a GPU")
    known.add_argument("--mixed-precision", choices=("no", "bf16"), help="of accelerate")
    known.add_argument("--watch-every", type=int, default=100, help="steps between looks at the student (0: never)")
    known.add_argument("--watch-samples", type=int, default=128, help="pictures of each kind in such a look")
    known.add_argument("--save-every", type=int, default=200, help="steps between checkpoints")
    known.add_argument("--kappa", type=float, nargs="+", metavar="K", help="guidance scale of both teachers: one "
                       "number, or a range")  # fmt: skip
    for teacher in ("frozen", "lora"):
        known.add_argument(
            f"--kappa-{teacher}", type=float, nargs="+", metavar="K", help=f"of the {teacher} teacher alone"
        )
    known.add_argument(
        "--weight", choices=WEIGHTS, help="w(t): sigma^2, or sigma / alpha, or that normalised as in DMD"
    )
    known.add_argument("--lora-targets", choices=TARGETS, help="layers that get an adapter")
    known.add_argument(
        "--nasa-negative", help="steer the student away from this text as it learns (scale from U(0, 1))"
    )
    asked = {action.dest for action in known._actions}
    for each in fields(Settings):
        if each.name not in asked and each.type in (int, float):
            known.add_argument(f"--{each.name.replace('_', '-')}", type=each.type, help=f"(default: {each.default}; "
                               f"of the presets {getattr(SHAPES, each.name)})")  # fmt: skip
    return known


def settings_of(options: argparse.Namespace) -> Settings:
    """The preset's settings, or the general ones, with what was given."""
    given: dict[str, Any] = {x.name: getattr(options, x.name, None) for x in fields(Settings)}
    for name in ("kappa_frozen", "kappa_lora"):
        value = given[name] or options.kappa
        if value is not None and len(value) > 2:
            raise ValueError(f"{name} must be one number or two, got {value}")
        given[name] = value and (value[0] if len(value) == 1 else tuple(value))
    given = {name: value for name, value in given.items() if value is not None}
    return replace(SHAPES if options.preset else Settings(), **given)


@user_errors.in_one_sentence("nag_kernels.distill")
def main(arguments: list[str] | None = None) -> None:
    known = parser()
    options = known.parse_args(arguments)
    if bool(options.preset) == bool(options.model):
        known.error(f"name a preset ({', '.join(PRESETS)}) or a --model")
    if options.model and not options.prompts:
        known.error("--model needs --prompts, a file with one prompt a line")
    options.out = options.out or Path("out/distill") / (options.preset or Path(options.model).name)
    user_errors.check_folder(known, options.out)
    for name in ("watch_every", "workers"):
        user_errors.check_at_least(known, options, 0, name)
    user_errors.check_at_least(known, options, 1, "watch_samples", "save_every")
    try:
        settings = settings_of(options)
        if options.prompts:
            file_prompts(options.prompts, settings.seed)  # it is read again in each process
        for each in (options.weights, options.student):
            if each is not None and not Path(each).is_dir():
                raise user_errors.UserError(f"there is no folder {each}")
    except user_errors.UserError:
        raise
    except ValueError as error:
        known.error(str(error))
    if options.preset and not options.workers and not torch.cuda.is_available() and "WORLD_SIZE" not in os.environ:
        options.workers = 2
    launch(options, settings) if options.workers else run(options, settings)


if __name__ == "__main__":
    main()
