# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The numbers of a distillation."""

import math
from dataclasses import dataclass, fields

Kappa = float | tuple[float, float]  # fixed, or drawn uniformly from a range in every step

WEIGHTS = ("sigma2", "x0", "dmd")
TARGETS = ("all", "attention")


@dataclass(frozen=True)
class Settings:
    """Everything that decides the student's weights, but the models and the prompts.

    A run's folder records both (`train.Distillation.record`).

    steps: student steps.  batch: pictures a step, over all processes together.
    kappa_frozen, kappa_lora: guidance scale of each teacher. A number is SwiftBrush's; a range is PG-SB's, where one draw
        per step serves both (its place in the one range and in the other). The paper's FID with a range for neither, the
        frozen, the LoRA, both teachers: 10.72, 10.81, 9.51, 9.03 (arXiv 2412.02687).
    weight: w(t) of `teachers.weight`.
    t_low, t_high: the noise levels at which teachers are asked, drawn uniformly, as fractions of the schedule.
    student_rate, lora_rate: of AdamW (betas 0.9 and `beta2`), risen to over `warmup` steps and, by a cosine, fallen to
        `final` of it at the last.
    lora_steps: steps of the LoRA teacher for each of the student.  lora_warmup: those that it takes before the first.
    lora_rank, lora_alpha, lora_targets: its adapters; "attention" is the linear layers of attention, "all" every linear
        and convolution layer.
    text_dropped: the share of pictures that the LoRA teacher learns without their text.
    clip: largest norm of a gradient.
    average: decay of the averaged student, which is what is kept; 0 keeps the student itself.
    nasa_negative: a text that the student is steered away from as it learns (NASA, scale uniform in `nasa_scale`); None: plain.
    """

    seed: int = 0
    steps: int = 1000
    batch: int = 64
    kappa_frozen: Kappa = (0.5, 4.0)
    kappa_lora: Kappa = (0.5, 4.0)
    weight: str = "sigma2"
    t_low: float = 0.02
    t_high: float = 0.98
    student_rate: float = 1e-5
    lora_rate: float = 1e-3
    beta2: float = 0.99
    warmup: int = 20
    final: float = 1.0
    lora_steps: int = 1
    lora_warmup: int = 0
    lora_rank: int = 64
    lora_alpha: float = 64.0
    lora_targets: str = "attention"
    text_dropped: float = 0.1
    clip: float = 1.0
    average: float = 0.99
    nasa_negative: str | None = None
    nasa_scale: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        for each in fields(self):
            value = getattr(self, each.name)
            numbers = value if isinstance(value, (tuple, list)) else (value,)
            if not all(math.isfinite(x) for x in numbers if isinstance(x, float)):
                raise ValueError(f"{each.name} must be finite, got {value}")
        for name in ("kappa_frozen", "kappa_lora"):
            value = getattr(self, name)
            if isinstance(value, (tuple, list)) and not (len(value) == 2 and value[0] <= value[1]):
                raise ValueError(f"{name} must be a number or a range (low, high), got {value}")
        for name, choices in (("weight", WEIGHTS), ("lora_targets", TARGETS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not 0 <= self.t_low <= self.t_high <= 1:
            raise ValueError(f"t_low and t_high must be 0 <= t_low <= t_high <= 1, got {self.t_low}, {self.t_high}")
        for name in ("text_dropped", "average"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        for name in ("steps", "batch", "lora_steps", "lora_rank", "warmup"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def kappa_at(kappa: Kappa, place: float) -> float:
    """The guidance scale at a `place` in [0, 1] of its range; the number itself where it is fixed."""
    if isinstance(kappa, (tuple, list)):
        return kappa[0] + place * (kappa[1] - kappa[0])
    return kappa


# Teachers are asked at noise that is drawn apart from the picture, while those of shapes learned noise and places in pairs
# (docs/shapes.md): so only where the picture shows through, at fractions up to 0.6 (noise levels up to 0.75).
SHAPES = Settings(
    steps=100, batch=32, student_rate=1e-4, lora_rate=1e-3, lora_steps=2, lora_targets="all", weight="x0", t_high=0.6,
    lora_warmup=20, final=0.1,
)  # fmt: skip
