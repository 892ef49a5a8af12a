# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The training: student and LoRA teacher in turn, over any number of processes, resumed bit for bit.

All that is random in a step comes from (seed, step), not from a generator that is carried along, and is drawn for the whole
batch; each process takes its part. So a resumed run draws what an uninterrupted one would, and the number of processes
changes nothing but the rounding.

A checkpoint is that of one run alone: it says which settings, teacher and start (`Distillation.record`) and which texts it came
from, and is refused where any of them is another.

Of `accelerate` come processes, devices and autocast. Its `save_state` is not used: it would
write the frozen teacher into every checkpoint, and knows neither the averaged student nor which parameters of the teacher
are adapters. Nor is its `prepare`: DistributedDataParallel wants one forward for each backward, and the teacher here runs with
its adapters off, on without a gradient, and on with one.
"""

import contextlib
import csv
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from ..descent import Average, Descent
from ..user_errors import UserError, named
from ..whole_file import whole_file, write_text
from .models import Model, digest, rows, steered
from .settings import Settings, kappa_at
from .teachers import Teachers

Prompts = Callable[[int, int], list[str]]  # (step, count)
DRAWS = ("start", "level", "noise", "kappa", "nasa", "lora", "dropout")  # what is drawn in a step


def generator(seed: int, step: int, name: str, place: int = 0) -> torch.Generator:
    """Of what `name` draws in a step; on the CPU, so that every device draws the same."""
    words = np.random.SeedSequence((seed, step, DRAWS.index(name), place)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(words[0]) >> 1)


def refuse_another(kept: dict, asked: dict, where: str) -> None:
    """Raises ValueError that names what differs between two `Distillation.record`."""
    names = [name for name in asked | kept if name not in kept or name not in asked or kept[name] != asked[name]]
    if names:
        both = ((name, *(repr(x[name]) if name in x else "not recorded" for x in (kept, asked))) for name in names)
        said = "; ".join(f"{name} {held}, asked is {ours}" for name, held, ours in both)
        raise UserError(f"{where} holds a run with {said}: remove it or name another folder")


def chained(before: str, texts: list[str]) -> str:
    """A digest of the texts of a step and, by `before`, of those of all steps that it follows."""
    return hashlib.sha256((before + json.dumps(texts)).encode()).hexdigest()


class Distillation:
    """A student that learns to draw in one step.

        x_student = x_0 of student(z, t_max, text),  z ~ N(0, 1)

    Each step moves the student down `Teachers.gradient` at one noise level for each picture and one kappa for all, and then the
    LoRA teacher down its denoising loss on the same pictures, `lora_steps` times.

    Args:
        model: the teacher and how it is called.
        student: a module that is called alike; it predicts what the teacher does.
        prompts: `prompts(step, count)` gives the texts of a step; asked again for steps that a checkpoint has behind it.
        settings: see `Settings`.
        accelerator: of `accelerate`; its processes share the batch. None makes one.
    record: what decides the student's weights but the prompts, for a run's folder: the settings by name, and "teacher",
        "start_student", "text_encoders" (digests of weights; `Model.encoders`), "levels", "shape", "mixed_precision".
    texts: a digest of all texts so far.
    Raises: ValueError for a batch that the processes cannot share.
    """

    def __init__(self, model: Model, student: nn.Module, prompts: Prompts, settings: Settings,
                 accelerator: Accelerator | None = None):  # fmt: skip
        self.accelerator = accelerator or Accelerator()
        processes = self.accelerator.num_processes
        if settings.batch % processes:
            raise ValueError(f"batch must be a multiple of the {processes} processes, got {settings.batch}")
        self.model, self.student, self.prompts, self.settings = model, student, prompts, settings
        each = settings.batch // processes
        first = self.accelerator.process_index * each
        self.part = slice(first, first + each)
        self.device = self.accelerator.device
        teacher = digest(model.module)  # before it gets its adapters
        self.teachers = Teachers(model, settings)
        student.requires_grad_(True)
        total = self.total = settings.lora_warmup + settings.steps
        names = ("warmup", "final", "clip", "beta2")
        same: dict[str, Any] = {name: getattr(settings, name) for name in names}
        self.descent = Descent(list(student.parameters()), settings.student_rate, settings.steps, **same)
        lora, steps = list(self.teachers.lora.values()), total * settings.lora_steps
        self.lora_descent = Descent(lora, settings.lora_rate, steps, **same)
        self.average = Average([student], settings.average) if settings.average else None
        self.no_text = model.encode([""])
        self.negative = None if settings.nasa_negative is None else model.encode([settings.nasa_negative])
        origin = {
            "teacher": teacher, "start_student": digest(student), "text_encoders": digest(*model.encoders),
            "levels": str(model.levels), "shape": model.shape, "mixed_precision": self.accelerator.mixed_precision,
        }  # fmt: skip
        self.record = json.loads(json.dumps(asdict(settings) | origin))
        self.done, self.texts = 0, ""

    def _drawn(self, name: str, kind: Callable, place: int = 0, shape: tuple[int, ...] = ()) -> Tensor:
        """This process's part of what is drawn for the whole batch."""
        whole = kind((self.settings.batch, *shape), generator=generator(self.settings.seed, self.done, name, place))
        return whole[self.part].to(self.device)

    def _levels(self, name: str, place: int = 0) -> Tensor:
        low, high = self.settings.t_low, self.settings.t_high
        return low + (high - low) * self._drawn(name, torch.rand, place)

    def _one(self, name: str) -> float:
        """A number that is the same in all processes."""
        return float(torch.rand((), generator=generator(self.settings.seed, self.done, name)))

    def pictures(self, noise: Tensor, text: dict[str, Tensor], nasa_scale: float | None = None) -> Tensor:
        """The student's x_0 [B, ...] from pure noise; steered away from the negative text by `nasa_scale`, if given."""
        timestep, alpha, sigma = self.model.levels.at(torch.ones(len(noise), device=noise.device))
        if nasa_scale is None:
            output = self.model.output(self.student, noise, timestep, text)
        else:
            assert self.negative is not None
            negative = rows({k: v.to(noise.device) for k, v in self.negative.items()}, len(noise))
            with steered(self.student, text, negative, torch.tensor(nasa_scale, device=noise.device)):
                output = self.model.output(self.student, noise, timestep, text, negative)
        return self.model.levels.picture(noise, output, alpha, sigma)

    def step(self) -> dict[str, float]:
        """One step; returns its numbers."""
        s, shape = self.settings, self.model.shape
        # Only a model with dropout draws from it.
        torch.manual_seed(generator(s.seed, self.done, "dropout", self.accelerator.process_index).initial_seed())
        texts = self.prompts(self.done, s.batch)
        text = self.model.encode(texts[self.part])
        learns = self.done >= s.lora_warmup
        place, nasa = self._one("kappa"), None
        if self.negative is not None:
            nasa = s.nasa_scale[0] + self._one("nasa") * (s.nasa_scale[1] - s.nasa_scale[0])
        kappas = kappa_at(s.kappa_frozen, place), kappa_at(s.kappa_lora, place)
        numbers = {"kappa_frozen": kappas[0], "kappa_lora": kappas[1], "nasa_scale": nasa or 0.0}
        with self.accelerator.autocast(), contextlib.nullcontext() if learns else torch.no_grad():
            pictures = self.pictures(self._drawn("start", torch.randn, shape=shape), text, nasa)
        fixed = pictures.detach()
        if learns:
            with self.accelerator.autocast():
                noise = self._drawn("noise", torch.randn, shape=shape)
                gradient = self.teachers.gradient(fixed, noise, self._levels("level"), text, self.no_text, kappas)
            numbers["gradient"] = float(gradient.square().mean().sqrt())
            numbers["student_norm"] = self.descent.step((gradient * pictures).mean())
            if self.average is not None:
                self.average.update()
        for k in range(s.lora_steps):
            noise = self._drawn("lora", torch.randn, 3 * k, shape)
            kept = self._drawn("lora", torch.rand, 3 * k + 1) >= s.text_dropped
            with self.accelerator.autocast():
                loss = self.teachers.loss(fixed, noise, self._levels("lora", 3 * k + 2), text, self.no_text, kept)
            numbers["lora_norm"] = self.lora_descent.step(loss)
            numbers["lora_loss"] = float(loss.detach())
        self.done, self.texts = self.done + 1, chained(self.texts, texts)
        return numbers

    def state_dict(self) -> dict:
        """All that a step changes, and what run it belongs to."""
        return {
            "record": self.record,
            "texts": self.texts,
            "student": self.student.state_dict(),
            "average": None if self.average is None else [self.average.count, self.average.mean],
            "lora": {name: each.detach() for name, each in self.teachers.lora.items()},
            "optimizers": [x.optimizer.state_dict() for x in (self.descent, self.lora_descent)],
            "done": [self.done, self.descent.done, self.lora_descent.done],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict`, with the same bits.

        Raises: ValueError, which names what differs, for that of a run with another `record`, or where `prompts` does not give
            the steps that it has behind it the texts that they had. (With prompts that differ only later, what follows is
            what a run with these from the start would do.)
        """
        refuse_another(state.get("record", {}), self.record, "the checkpoint")
        texts = ""
        for step in range(state["done"][0]):
            texts = chained(texts, self.prompts(step, self.settings.batch))
        if texts != state["texts"]:
            raise UserError(
                f"prompts must give the {state['done'][0]} steps that the checkpoint has behind it the texts that they had, got "
                "others: is the file, or the number of its lines, another? Give the same, or name another folder"
            )
        self.texts = texts
        self.student.load_state_dict(state["student"])
        if self.average is not None:
            self.average.count, means = state["average"]
            for own, mean in zip(self.average.mean, means, strict=True):
                own.copy_(mean)
        for name, each in self.teachers.lora.items():
            each.copy_(state["lora"][name])
        for descent, kept in zip((self.descent, self.lora_descent), state["optimizers"], strict=True):
            descent.optimizer.load_state_dict(kept)
        self.done, self.descent.done, self.lora_descent.done = state["done"]

    @contextlib.contextmanager
    def averaged(self):
        """Within the block the student is the averaged one."""
        if self.average is not None:
            self.average.swap()
        try:
            yield self.student
        finally:
            if self.average is not None:
                self.average.swap()


def distil(run: Distillation, folder: Path, watch: Callable[[nn.Module], dict[str, float]] | None = None,
           watch_every: int = 100, save_every: int = 200, until: int | None = None) -> None:  # fmt: skip
    """Train to the end, or `until` a step, going on from what `folder` holds.

    folder: gets settings.json (`run.record`), state.pt (the checkpoint), metrics.csv (one row a step) and watch.csv: what
        `watch` says of the averaged student every `watch_every` steps, and before the first.
    Raises: ValueError, which names what differs, where folder holds a run with other settings, models or prompts.
    """
    main = run.accelerator.is_main_process
    state, known = folder / "state.pt", folder / "settings.json"
    if (kept := _record(known)) is not None:
        refuse_another(kept, run.record, str(folder))
    if state.exists():
        with named(f"the checkpoint {state} cannot be read; without it the run begins again", Exception):
            run.load_state_dict(torch.load(state, map_location=run.device, weights_only=True))
    run.accelerator.wait_for_everyone()
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(known, json.dumps(run.record, indent=1))
        for name in ("metrics.csv", "watch.csv"):
            _cut(folder / name, run.done or -1)  # the look before the first step comes again
    last = run.total if until is None else min(until, run.total)

    def look():
        if main and watch is not None:
            with run.averaged() as student:
                _add(folder / "watch.csv", {"step": run.done} | watch(student))

    if run.done == 0:
        look()
    with tqdm(total=run.total, initial=run.done, desc="distillation", disable=not main, mininterval=5) as bar:
        while run.done < last:
            began = time.perf_counter()
            numbers = run.step()
            numbers["seconds"] = time.perf_counter() - began
            if main:
                _add(folder / "metrics.csv", {"step": run.done} | numbers)
                bar.set_postfix(
                    {k: f"{numbers[k]:.3g}" for k in ("gradient", "lora_loss") if k in numbers}, refresh=False
                )
            bar.update()
            if run.done % watch_every == 0 or run.done == run.total:
                look()
            if main and (run.done % save_every == 0 or run.done == last):
                with whole_file(state) as part:
                    torch.save(run.state_dict(), part)
    run.accelerator.wait_for_everyone()


FIELDS = (
    "step",
    "kappa_frozen",
    "kappa_lora",
    "nasa_scale",
    "gradient",
    "student_norm",
    "lora_norm",
    "lora_loss",
    "seconds",
)


def _add(path: Path, row: dict[str, float]) -> None:
    fields = FIELDS if path.name == "metrics.csv" else list(row)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields)
        if new:
            writer.writeheader()
        writer.writerow({name: f"{value:.6g}" for name, value in row.items()})


def _record(path: Path) -> dict | None:
    """What settings.json says; None where it is not there or damaged, as the checkpoint says the same."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _cut(path: Path, done: int) -> None:
    """Drop the rows after step `done`, which a run wrote that was interrupted before its next checkpoint, and torn ones."""
    if not path.exists():
        return
    head, *lines = path.read_text().splitlines() or [""]

    def stays(line: str) -> bool:
        try:
            return line.count(",") == head.count(",") and float(line.split(",")[0]) <= done
        except ValueError:
            return False

    if not head.startswith("step,"):
        path.unlink()
        return
    write_text(path, "\n".join([head, *filter(stays, lines)]) + "\n")
