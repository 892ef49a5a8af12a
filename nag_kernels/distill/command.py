# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the command line runs: prompts, models, processes."""

import argparse
import copy
import functools
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from nag_kernels.prompt_files import read_rows
from nag_kernels.shapes.loading import load_model
from nag_kernels.shapes.parallel import free_port, one_thread_each
from nag_kernels.shapes.pipeline import save_denoiser
from nag_kernels.shapes.whole_weights import DIFFUSERS, refuse_missing_tensors
from nag_kernels.user_errors import UserError, named

from .models import Model, model_of
from .settings import Settings
from .train import Distillation, distil

PRESETS = {"cross": ("teacher", "student"), "joint": ("joint_teacher", "joint_student")}


def shapes_prompts(seed: int, two_share: float = 0.25, full_share: float = 0.5):
    """Captions of scenes that nobody draws."""
    from nag_kernels.shapes.scenes import caption, draw_scenes

    def prompts(step: int, count: int) -> list[str]:
        rng = np.random.default_rng((seed, step))
        return caption(draw_scenes(count, rng, two_share), rng, full_share=full_share)

    return prompts


def file_prompts(path: Path, seed: int):
    """The prompts of a file, each once before any comes again, in an order that `seed` decides."""
    lines = [row["prompt"] for row in read_rows(path)]

    @functools.lru_cache(maxsize=2)
    def order(time: int) -> np.ndarray:
        return np.random.default_rng((seed, time)).permutation(len(lines))

    def prompts(step: int, count: int) -> list[str]:
        places = range(step * count, (step + 1) * count)
        return [lines[order(place // len(lines))[place % len(lines)]] for place in places]

    return prompts


def shapes_watch(pipe, samples: int):
    """The classifier's shares of one-step pictures on fixed noise: a function of the student."""
    from nag_kernels.shapes.classifier import load_classifier
    from nag_kernels.shapes.evaluate import evaluate
    from nag_kernels.shapes.pipeline import ShapesPipeline

    classifier = load_classifier()

    def watch(student: torch.nn.Module) -> dict[str, float]:
        place = "unet" if pipe.transformer is None else "transformer"
        own = ShapesPipeline(**pipe.components | {place: student})
        return evaluate(own, classifier, samples, seed=1, steps=1)

    return watch


def read_model(options: argparse.Namespace) -> tuple[Model, Any]:
    """The teacher, and its pipeline."""
    if options.preset:
        from nag_kernels.shapes.pipeline import WEIGHTS, load

        with named("the teacher cannot be loaded", Exception):
            pipe: Any = load(options.weights or WEIGHTS, variant=options.teacher or PRESETS[options.preset][0])
    else:
        pipe = load_model(options.model, "cpu")
    with named("the teacher cannot be distilled", ValueError):
        return model_of(pipe), pipe


def run(options: argparse.Namespace, settings: Settings) -> None:
    """One process of the distillation."""
    accelerator = Accelerator(cpu=options.cpu, mixed_precision=options.mixed_precision)
    model, pipe = read_model(options)
    pipe.to(accelerator.device)
    student: Any = copy.deepcopy(model.module)
    if options.student:
        cannot = named(f"student {options.student} cannot be loaded", Exception)
        with cannot, refuse_missing_tensors(options.student, DIFFUSERS):
            student = type(student).from_pretrained(options.student, low_cpu_mem_usage=False)
        student = student.to(accelerator.device)
    student.float().eval()
    watch = shapes_watch(pipe, options.watch_samples) if options.preset and options.watch_every else None
    prompts = shapes_prompts(settings.seed) if options.preset else file_prompts(options.prompts, settings.seed)
    work = Distillation(model, student, prompts, settings, accelerator)
    began = time.monotonic()
    distil(work, options.out, watch, options.watch_every or 100, options.save_every)
    if accelerator.is_main_process:
        with work.averaged() as best:
            kept = copy.deepcopy(best)
        print(f"{(time.monotonic() - began) / 60:.1f} minutes of training by the clock")
        folder = options.out / "student"
        save_denoiser(kept.half() if options.preset else kept, folder)
        print(f"{folder}: the student")


def become(rank: int, workers: int, port: int) -> None:
    """Make this process one of several on the cores of this machine, one thread each, as accelerate understands it."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers), "LOCAL_WORLD_SIZE": str(workers),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip


def enter(rank: int, workers: int, port: int, options: argparse.Namespace, settings: Settings) -> None:
    become(rank, workers, port)
    run(options, settings)


def launch(options: argparse.Namespace, settings: Settings) -> None:
    """Run in `options.workers` processes on this machine's CPU, or in this one."""
    one_thread_each()
    options.cpu = True
    try:
        torch.multiprocessing.spawn(enter, (options.workers, free_port(), options, settings), nprocs=options.workers)
    except torch.multiprocessing.ProcessRaisedException as error:  # its text is a traceback, which ends with the error
        _, ours, sentence = str(error).rstrip().rpartition(f"\n{UserError.__module__}.{UserError.__name__}: ")
        if not ours or "\n" in sentence:
            raise
        raise UserError(sentence) from error
