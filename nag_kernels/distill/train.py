# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Variational score distillation of a many-step denoiser to a student that draws in one step.

The student turns noise z into a sample x = x_0(z), its prediction at the highest noise level. Its gradient is

    w(t) (eps_frozen(kappa) - eps_lora(kappa)) dx / dtheta,
    eps(kappa) = (1 - kappa) eps(x_t, t, no text) + kappa eps(x_t, t, text),      x_t = a x + s e

where the frozen teacher knows what pictures look like, and the LoRA teacher, trained all along on the student's own samples,
what the student's look like. SwiftBrush (arXiv 2312.05239) fixes kappa; PG-SB (SNOOPI, arXiv 2412.02687) draws it afresh in
every step, one draw for both teachers. No pictures are needed, prompts are enough.

Every random number of step n comes from (seed, n) alone, for the batch of all processes together. So a run that was cut goes
on with the same bits, and p processes draw what one would.
"""

import contextlib
import copy
import csv
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from tqdm import tqdm

from .denoiser import Denoiser, guided
from .nasa import Steered

Kappa = float | tuple[float, float]  # fixed, or drawn uniformly from a range


@dataclass(frozen=True)
class Settings:
    """What decides a student.

    batch: of all processes together.
    kappa: the guidance scale of the frozen teacher; kappa_lora: of the LoRA teacher, None for the very same draw.
    weight: w(t). "variance" is s^2 (DreamFusion, arXiv 2209.14988); "one" is 1; "difference" makes the gradient
        (x_lora - x_frozen) / mean |x - x_frozen|, x being the samples that the teachers predict (DMD, arXiv 2311.18828, eq. 8).
    levels: shares of the way from sample to noise, between which t is drawn uniformly.
    text_dropped: share of the LoRA teacher's steps without text.
    lora_steps: steps of the LoRA teacher for one of the student.
    rank, lora_scale: of the adapters on every linear and convolution; the scale is lora_alpha / rank.
    average: decay of the student's moving average, which is what is kept.
    nasa: the student's own step is steered away from a negative text by NASA, its scale drawn from U(0, 1) in every step.
    """

    seed: int = 1
    steps: int = 1000
    batch: int = 64
    kappa: Kappa = (0.5, 4.0)
    kappa_lora: Kappa | None = None
    weight: str = "variance"
    levels: tuple[float, float] = (0.02, 0.98)
    text_dropped: float = 0.1
    student_rate: float = 1e-4
    lora_rate: float = 1e-3
    lora_steps: int = 1
    rank: int = 32
    lora_scale: float = 1.0
    average: float = 0.98
    warmup: int = 20
    nasa: bool = False
    save_every: int = 200

    def __post_init__(self):
        if self.weight not in ("variance", "one", "difference"):
            raise ValueError(f"weight must be variance, one or difference, got {self.weight!r}")
        if not 0 <= self.levels[0] < self.levels[1] <= 1:
            raise ValueError(f"levels must be two rising numbers in [0, 1], got {self.levels}")
        for name in ("kappa", "kappa_lora"):
            value = getattr(self, name)
            if isinstance(value, tuple) and not (len(value) == 2 and value[0] <= value[1]):
                raise ValueError(f"{name} must be a number or a range of two rising numbers, got {value}")


@dataclass(frozen=True)
class Texts:
    """Where the prompts come from.

    draw: (generator, count) to prompts. encode: prompts to a text of the denoiser, a tuple of tensors [count, ...].
    negatives: (generator, prompts) to the texts that NASA leads away from, where it is trained with.
    """

    draw: Callable[[np.random.Generator, int], list[str]]
    encode: Callable[[list[str]], tuple[Tensor, ...]]
    negatives: Callable[[np.random.Generator, list[str]], list[str]] | None = None


def drawn(kappa: Kappa, chance: float) -> float:
    """kappa itself, or the place in its range that `chance`, uniform in [0, 1), names."""
    return kappa[0] + (kappa[1] - kappa[0]) * chance if isinstance(kappa, tuple) else kappa


def gradient(
    teacher: Denoiser, adapters: Callable, x: Tensor, noise: Tensor, u: Tensor, text: tuple, no_text: tuple,
    kappa: float, kappa_lora: float, weight: str,
) -> Tensor:  # fmt: skip
    """w(t) (eps_frozen(kappa) - eps_lora(kappa)) at samples x [B, ...] noised by `noise` to the levels u [B]; no graph.

    adapters(on) is a context in which the teacher is the LoRA teacher, or not.
    """
    with torch.no_grad():
        x = x.detach()
        noised = teacher.noised(x, noise, u)
        both = tuple(torch.cat(pair) for pair in zip(no_text, text, strict=True))
        outs = []
        for on, scale in ((False, kappa), (True, kappa_lora)):
            with adapters(on):
                without, with_text = teacher(torch.cat([noised, noised]), torch.cat([u, u]), both).chunk(2)
            outs.append(guided(without, with_text, scale))
        if weight == "difference":
            frozen, lora = (teacher.sample(out, noised, u) for out in outs)
            rest = tuple(range(1, x.ndim))
            return (lora - frozen) / (x - frozen).abs().mean(rest, keepdim=True).clamp_min(1e-8)
        frozen, lora = (teacher.noise(out, noised, u) for out in outs)
        _, s = teacher.levels(u, x)
        return (s * s if weight == "variance" else 1.0) * (frozen - lora)


class Distillation:
    """One run. `student` is the module that is trained, `averaged` the weights that are kept.

    teacher: its module gets adapters (by peft) and is not otherwise changed.
    student: a module like the teacher's; None starts from a copy of the teacher's.
    shape: of one sample, without the batch.
    folder: for `state.pt` and `metrics.csv`; a run that was cut goes on from there. None keeps nothing.
    judge: what to note of the averaged student, now and then, in `judged.csv`.
    Raises ValueError for a batch that the processes cannot share, or a folder that holds a run with other settings.
    """

    def __init__(
        self,
        teacher: Denoiser,
        texts: Texts,
        shape: tuple[int, ...],
        settings: Settings,
        student: nn.Module | None = None,
        folder: Path | None = None,
        judge: Callable[[nn.Module], dict[str, float]] | None = None,
        judge_every: int = 200,
        accelerator: Accelerator | None = None,
    ):
        self.accelerator = accelerator or Accelerator()
        if settings.batch % self.accelerator.num_processes:
            raise ValueError(
                f"batch must be a multiple of the {self.accelerator.num_processes} processes, got {settings.batch}"
            )
        if settings.nasa and texts.negatives is None:
            raise ValueError("nasa needs negative texts: texts.negatives is None")
        self.settings, self.texts, self.shape, self.folder = settings, texts, shape, folder
        self.judge, self.judge_every = judge, judge_every
        device = self.accelerator.device
        student = student if student is not None else copy.deepcopy(teacher.module)
        self.student = student.to(device).eval().requires_grad_(True)
        self.module = teacher.module.to(device).eval().requires_grad_(False)
        self._add_adapters()
        self.teacher = teacher
        self.one_step = Denoiser(self.student, teacher.arguments, teacher.prediction, teacher.schedule)
        self.steered = Steered(self.one_step) if settings.nasa else None
        self.trained = list(self.student.parameters())
        with self.adapters(True):
            self.lora = [each for each in self.module.parameters() if each.requires_grad]
        self.averaged = [each.detach().clone() for each in self.trained]
        fused = device.type in ("cpu", "cuda")
        self.optimizers = [
            torch.optim.AdamW(own, lr=rate, betas=(0.0, 0.99), weight_decay=0.0, fused=fused)
            for own, rate in ((self.trained, settings.student_rate), (self.lora, settings.lora_rate))
        ]
        self.done = 0
        if folder is not None and (folder / "state.pt").exists():
            self._load()

    def _add_adapters(self) -> None:
        names = [name for name, each in self.module.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)]
        config = LoraConfig(
            r=self.settings.rank, lora_alpha=self.settings.lora_scale * self.settings.rank, target_modules=names
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            inject_adapter_in_model(config, self.module)

    @contextlib.contextmanager
    def adapters(self, on: bool) -> Iterator[None]:
        """Within, the teacher is the LoRA teacher, or the frozen one."""
        for layer in self.module.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.enable_adapters(on)
        yield

    def run(self) -> nn.Module:
        """Train to the last step and return the student with its averaged weights."""
        first = self.accelerator.is_main_process
        bar = tqdm(total=self.settings.steps, initial=self.done, desc="distillation", disable=not first, mininterval=2)
        with bar:
            while self.done < self.settings.steps:
                began = time.monotonic()
                found = self.step()
                bar.update()
                last = self.done == self.settings.steps
                if first and self.folder is not None and (last or self.done % 10 == 0):
                    row = {name: float(value) for name, value in found.items()}
                    self._note("metrics.csv", {"step": self.done} | row | {"seconds": time.monotonic() - began})
                if self.judge is not None and (last or self.done % self.judge_every == 0):
                    if first:
                        self._judge()
                    self.accelerator.wait_for_everyone()
                if first and self.folder is not None and (last or self.done % self.settings.save_every == 0):
                    self.save()
        self.swap()
        return self.student

    def step(self) -> dict[str, float | Tensor]:
        """One step of the student, then of the LoRA teacher; what it found."""
        settings, device = self.settings, self.accelerator.device
        rng = np.random.default_rng([settings.seed, self.done])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        share = settings.batch // self.accelerator.num_processes
        mine = slice(self.accelerator.process_index * share, (self.accelerator.process_index + 1) * share)

        def noise() -> Tensor:
            return torch.randn(settings.batch, *self.shape, generator=generator)[mine].to(device)

        def level() -> Tensor:
            low, high = settings.levels
            return (low + (high - low) * torch.rand(settings.batch, generator=generator))[mine].to(device)

        chance, nasa = rng.random(), rng.random()
        kappa = drawn(settings.kappa, chance)
        kappa_lora = kappa if settings.kappa_lora is None else drawn(settings.kappa_lora, chance)
        prompts = self.texts.draw(rng, settings.batch)
        negatives = self.texts.negatives(rng, prompts)[mine] if self.steered else None
        with torch.no_grad():
            text = self.texts.encode(prompts[mine])
            no_text = self.texts.encode([""] * share)
        most = torch.ones(share, device=device)
        with self.accelerator.autocast():
            z = noise()
            z = self.one_step.levels(most, z)[1] * z
            if self.steered:
                with torch.no_grad():
                    negative = self.texts.encode(negatives)
                out = self.steered(z, most, text, negative, nasa)
            else:
                out = self.one_step(z, most, text)
            x = self.one_step.sample(out.float(), z, most)
            towards = gradient(
                self.teacher, self.adapters, x, noise(), level(), text, no_text, kappa, kappa_lora, settings.weight
            )
        (x * towards).mean().backward()
        norm = self._descend(0)
        x = x.detach()
        for _ in range(settings.lora_steps):
            seen = no_text if rng.random() < settings.text_dropped else text
            u, e = level(), noise()
            with self.adapters(True), self.accelerator.autocast():
                found = self.teacher(self.teacher.noised(x, e, u), u, seen)
                loss = (found.float() - self.teacher.target(x, e, u)).square().mean()
            loss.backward()
            self._descend(1)
        self.done += 1
        decay = min(settings.average, (1 + self.done) / (10 + self.done))
        torch._foreach_lerp_(self.averaged, [each.detach() for each in self.trained], 1 - decay)
        used = nasa if self.steered else 0.0
        return {
            "kappa": kappa, "kappa_lora": kappa_lora, "nasa": used, "lora_loss": loss.detach(),
            "difference": towards.abs().mean(), "gradient": norm,
        }  # fmt: skip

    def _descend(self, which: int) -> Tensor:
        """One step of an optimizer, with the gradients of all processes together, clipped to norm 1 by parameter size."""
        own, optimizer = ((self.trained, self.lora)[which], self.optimizers[which])
        grads = [torch.zeros_like(each) if each.grad is None else each.grad for each in own]
        flat = self.accelerator.reduce(torch.cat([each.reshape(-1) for each in grads]), reduction="mean")
        norm = flat.norm()
        flat = flat * (1.0 / (norm + 1e-6)).clamp(max=1.0)
        for each, part in zip(own, flat.split([each.numel() for each in own]), strict=True):
            each.grad = part.view_as(each).clone(memory_format=torch.preserve_format)
        settings, rate = self.settings, (self.settings.student_rate, self.settings.lora_rate)[which]
        fall = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * self.done / settings.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (self.done + 1) / settings.warmup) * fall
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def swap(self) -> None:
        """Exchange the student's weights and their average; a second call undoes the first."""
        for live, mean in zip(self.trained, self.averaged, strict=True):
            kept = live.detach().clone()
            live.data.copy_(mean)
            mean.copy_(kept)

    def _judge(self) -> None:
        self.swap()
        found = self.judge(self.student)
        self.swap()
        self._note("judged.csv", {"step": self.done} | found)
        tqdm.write(f"step {self.done}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))

    # --- what a run leaves, and goes on from ---------------------------------------------------------------------------

    def save(self) -> None:
        """Write `state.pt`: weights, both optimizers and the step, which settles all random numbers to come."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "settings": asdict(self.settings), "done": self.done, "student": [each.detach() for each in self.trained],
            "averaged": self.averaged, "lora": [each.detach() for each in self.lora],
            "optimizers": [each.state_dict() for each in self.optimizers],
        }  # fmt: skip
        torch.save(state, self.folder / "state.part")
        (self.folder / "state.part").replace(self.folder / "state.pt")

    def _load(self) -> None:
        state = torch.load(self.folder / "state.pt", map_location=self.accelerator.device, weights_only=True)
        if state["settings"] != asdict(self.settings):
            changed = [name for name, value in asdict(self.settings).items() if state["settings"].get(name) != value]
            raise ValueError(f"folder {self.folder} holds a run with other settings ({', '.join(changed)})")
        own = {"student": self.trained, "averaged": self.averaged, "lora": self.lora}
        for name, tensors in own.items():
            for mine, kept in zip(tensors, state[name], strict=True):
                mine.data.copy_(kept)
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        self.done = state["done"]
        if self.accelerator.is_main_process:
            for name in ("metrics.csv", "judged.csv"):
                self._forget(name)

    def _note(self, name: str, row: dict) -> None:
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / name
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row.keys())
            if new:
                writer.writeheader()
            writer.writerow({key: f"{value:.6g}" for key, value in row.items()})

    def _forget(self, name: str) -> None:
        """Drop the rows of steps that were lost with the run that was cut."""
        path = self.folder / name
        if path.exists():
            head, *rows = path.read_text().splitlines()
            path.write_text("\n".join([head, *(row for row in rows if int(row.split(",")[0]) <= self.done)]) + "\n")
