# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Distil a text-to-image model to one step: SwiftBrush (a fixed guidance scale) or PG-SB (a random one).

    python -m nag_kernels.distill                             the UNet of shapes, PG-SB, on two cores
    python -m nag_kernels.distill --variant joint_teacher     its joint-attention transformer
    python -m nag_kernels.distill --kappa 2                   SwiftBrush
    accelerate launch -m nag_kernels.distill --model ID --prompts prompts.txt --kappa 0.5:4 --batch 64

A run that was cut goes on from --out with the same bits.
"""

import argparse
import os
import socket
from dataclasses import fields, replace
from pathlib import Path

import torch

from .train import Distillation, Settings

JUDGED = 96  # pictures of each kind, now and then


def scale(text: str) -> float | tuple[float, float]:
    """ "2" is fixed, "0.5:4" a range."""
    parts = [float(part) for part in text.split(":")]
    if len(parts) > 2 or (len(parts) == 2 and parts[0] > parts[1]):
        raise argparse.ArgumentTypeError(f"must be a number or low:high, got {text!r}")
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m nag_kernels.distill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, default = parser.add_argument, Settings()
    add("--model", default="shapes", help="shapes, or the id or folder of a StableDiffusionPipeline")
    add("--variant", default="teacher", help="of shapes: teacher (default) or joint_teacher")
    add(
        "--student",
        type=Path,
        help="folder of the denoiser that the student starts from (default: the teacher's weights)",
    )
    add("--prompts", type=Path, help="a file with one prompt a line (shapes: captions of its world)")
    add(
        "--kappa",
        type=scale,
        default=default.kappa,
        help="guidance scale of the frozen teacher: 2 or 0.5:4 (default 0.5:4)",
    )
    add("--kappa-lora", type=scale, help="of the LoRA teacher (default: the very same draw)")
    add("--nasa", action="store_true", help="train the student under NASA, its scale drawn from U(0, 1)")
    add("--negative", help="what NASA leads away from (shapes: a colour that the prompt does not name)")
    for name in ("seed", "steps", "batch", "lora_steps", "rank", "save_every", "warmup"):
        add(
            f"--{name.replace('_', '-')}",
            type=int,
            default=getattr(default, name),
            help=f"(default {getattr(default, name)})",
        )
    for name in ("student_rate", "lora_rate", "average", "text_dropped"):
        add(
            f"--{name.replace('_', '-')}",
            type=float,
            default=getattr(default, name),
            help=f"(default {getattr(default, name)})",
        )
    add("--weight", default=default.weight, choices=("variance", "one", "difference"), help="w(t): see Settings")
    add(
        "--workers",
        type=int,
        help="processes of one thread each on this machine's CPU (default for shapes: its cores, up to 2)",
    )
    add("--judge-every", type=int, default=100, help="steps between two looks at the student of shapes (default 100)")
    add(
        "--out",
        type=Path,
        default=Path("out/distill"),
        help="folder of the run; the student is in its folder `student`",
    )
    return parser.parse_args(arguments)


def work(options: argparse.Namespace) -> None:
    """One process of the run."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    from .models import source

    if options.model == "shapes":
        from nag_kernels.shapes.pipeline import load, load_denoiser

        pipe = load(variant=options.variant)
    else:
        from diffusers import StableDiffusionPipeline

        pipe = StableDiffusionPipeline.from_pretrained(options.model)
        pipe.to(accelerator.device)
    pipe.set_progress_bar_config(disable=True)
    prompts = options.prompts and [line.strip() for line in options.prompts.read_text().splitlines() if line.strip()]
    found = source(pipe, prompts, options.negative)
    student, judge = None, None
    if options.student:
        if options.model == "shapes":
            (student,) = load_denoiser(options.student).values()
        else:
            student = type(pipe.unet).from_pretrained(options.student)
    if options.model == "shapes":
        judge = shapes_judge(options.variant) if accelerator.is_main_process else (lambda module: {})
    names = {field.name for field in fields(Settings)} & vars(options).keys()
    settings = replace(Settings(), **{name: getattr(options, name) for name in names})
    run = Distillation(
        found.teacher, found.texts, found.shape, settings, student, options.out, judge, options.judge_every, accelerator
    )
    module = run.run()
    if accelerator.is_main_process:
        module.save_pretrained(str(options.out / "student"))
        print(f"student: {options.out / 'student'}")


def shapes_judge(variant: str):
    """A look at a student of shapes: the classifier's shares of pictures drawn in one step."""
    from nag_kernels.shapes.classifier import load_classifier
    from nag_kernels.shapes.evaluate import evaluate
    from nag_kernels.shapes.pipeline import ShapesPipeline, load

    parts, classifier = load(variant=variant).components, load_classifier()

    def judge(module: torch.nn.Module) -> dict[str, float]:
        place = "unet" if parts["transformer"] is None else "transformer"
        return evaluate(ShapesPipeline(**parts | {place: module}), classifier, JUDGED, seed=11, steps=1)

    return judge


def _enter(rank: int, workers: int, port: int, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers}
    where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    os.environ.update({name: str(value) for name, value in where.items()})
    work(options)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.workers is None:
        here = options.model == "shapes" and not torch.cuda.is_available() and "WORLD_SIZE" not in os.environ
        options.workers = min(2, os.cpu_count() or 1) if here else 0
    if not options.workers:
        work(options)
        return
    from nag_kernels.shapes.parallel import KEEP_MEMORY

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name, value in KEEP_MEMORY.items() | {("OMP_NUM_THREADS", "1")}:
        os.environ.setdefault(name, value)
    torch.multiprocessing.spawn(_enter, (options.workers, port, options), nprocs=options.workers)
