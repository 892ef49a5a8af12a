# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is drawn: prompts with their negatives, methods with their settings, and the cells of every table.

Everything here was fixed before the first cell was drawn. The settings are the same in every table and for every pair.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

ARCHITECTURES = ("cross", "joint")
REAL = (
    "renders",
    "decoded renders",
)  # in the place of a variant: real pictures, as they are and through the autoencoder
VARIANTS_OF = {"cross": ("few", "teacher", "student"), "joint": ("joint_few", "joint_teacher", "joint_student")}


@dataclass(frozen=True)
class Pair:
    """A prompt, what is to stay away, and what of the picture the prompt leaves open."""

    prompt: str
    negative: str
    open: str  # "colour", "background", "shape" or "size"; "" where the prompt settles what the negative names


# In open pairs the negative is one of the values that the prompt leaves open, so the model draws it now and then. In the last
# four it contradicts the prompt: there is nothing to remove, and whatever a method changes is damage.
PAIRS = (
    Pair("a large star", "red", "colour"),
    Pair("a medium square", "blue", "colour"),
    Pair("a large triangle on black", "green", "colour"),
    Pair("a circle above a cross", "yellow", "colour"),
    Pair("a green circle", "on white", "background"),
    Pair("a large red cross", "on black", "background"),
    Pair("a small purple star", "on gray", "background"),
    Pair("a yellow square right of a blue triangle", "on pink", "background"),
    Pair("blue", "circle", "shape"),
    Pair("on gray", "square", "shape"),
    Pair("a red triangle", "large", "size"),
    Pair("an orange star on white", "small", "size"),
    Pair("a large red circle on white", "blue", ""),
    Pair("a small green square on black", "star", ""),
    Pair("a medium yellow cross on pink", "on black", ""),
    Pair("a purple circle left of an orange square on gray", "red", ""),
)


@dataclass(frozen=True)
class Steering:
    """How a sample is steered; the default is the prompt alone."""

    cfg: float = 1.0  # classifier-free guidance, 1 = none
    empty: bool = False  # the other text of CFG is "" in place of the negative
    pag: float = 0.0  # perturbed-attention guidance, 0 = none
    rule: str = ""  # guidance inside attention: "nag", "nasa", "vsf" or none
    scale: float = 0.0
    tau: float = 2.5
    alpha: float = 0.25
    end: float = 1.0  # the guided share of the steps
    formula: str = "full"  # of NAG: a name of ablation.FORMULAS

    @property
    def label(self) -> str:
        parts = []
        if self.cfg > 1:
            parts.append(f"CFG {self.cfg:g}" + (" (empty)" if self.empty else ""))
        if self.pag:
            parts.append(f"PAG {self.pag:g}")
        if self.rule == "nag":
            parts.append(f"NAG {self.scale:g} / {self.tau:g} / {self.alpha:g}")
        elif self.rule:
            parts.append(f"{self.rule.upper()} {self.scale:g}")
        label = " + ".join(parts) or "no negative"
        label += f", {self.formula}" if self.formula != "full" else ""
        return label + (f", first {self.end:g} of the steps" if self.end < 1 else "")


@dataclass(frozen=True)
class Cell:
    """One variant of the model, steered by one method: one line of a table."""

    variant: str
    steps: int
    method: Steering = Steering()

    @property
    def name(self) -> str:
        """As it is said; no two cells have one name."""
        steps = f"{self.steps} step{'s' * (self.steps > 1)}"
        return (
            f"{self.variant} (beside {steps})"
            if self.variant in REAL
            else f"{self.variant}, {steps}, {self.method.label}"
        )

    @property
    def stem(self) -> str:
        """The name as that of a file."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")

    def with_(self, **changes: object) -> "Cell":
        return replace(self, method=replace(self.method, **changes))

    @property
    def forwards(self) -> float:
        """Forward passes of the denoiser per sample, about."""
        return self.steps * ((2 if self.method.cfg > 1 else 1) + (1 if self.method.pag else 0))


@dataclass(frozen=True)
class Size:
    """How much is drawn. `per_pair` samples of each pair up to 8 steps, `per_pair_many` beyond."""

    name: str
    per_pair: int
    per_pair_many: int
    replicates: int  # of the bootstrap
    reference: int  # renders per pair that the Frechet distances are taken to

    def samples(self, cell: Cell) -> int:
        """Per pair."""
        return self.per_pair if cell.steps <= 8 else self.per_pair_many


FULL = Size("full", per_pair=64, per_pair_many=16, replicates=1000, reference=512)  # 1024 and 256 samples a cell
QUICK = Size("quick", per_pair=4, per_pair_many=2, replicates=50, reference=32)

NONE = Steering()
CFG = tuple(Steering(cfg=scale) for scale in (1.5, 2.0, 3.0))
NASA = tuple(Steering(rule="nasa", scale=scale) for scale in (0.2, 0.5))  # published for SD2.1 and for PixArt-alpha
# Published for Flux (phi 4 = scale 5, tau 2.5, alpha 0.25), and twice its alpha, that of SDXL.
NAG = tuple(Steering(rule="nag", scale=5.0, alpha=alpha) for alpha in (0.25, 0.5))
VSF = tuple(Steering(rule="vsf", scale=scale) for scale in (1.0, 2.0))  # the plain change of sign, and twice it
METHODS = (NONE, *CFG, *NASA, *NAG, *VSF)
FEW_STEPS = (1, 2, 4, 8)
MANY = 25
CFG_MANY = (2.0, 3.0)  # scales of CFG that NAG is added to
PAG = 1.0
SCALES, TAUS, ALPHAS = (2.0, 3.0, 5.0, 8.0, 11.0), (1.0, 1.5, 2.5, 5.0, float("inf")), (0.125, 0.25, 0.5, 0.75, 1.0)
PARTS = ("no normalisation", "no clip", "no refinement", "no normalisation, no refinement", "L2 norm", "per-head norm")
PART_SCALES = (5.0, 11.0)  # phi 4 (published for Flux) and 10, where the paper's Figure 8 has the gap at its widest
ENDS = (0.25, 0.5)
# For the curves alone, so that every method is seen from weak to strong.
MORE = (*(Steering(rule="nasa", scale=scale) for scale in (0.1, 0.3, 0.8)), Steering(cfg=1.25), Steering(cfg=5.0),
        Steering(rule="vsf", scale=0.5), Steering(rule="vsf", scale=4.0))  # fmt: skip


def few_steps(few: str, teacher: str, student: str) -> Iterator[Cell]:
    """Every method at 1, 2, 4 and 8 steps of the distilled model and 25 of the one it was distilled from."""
    for steps in FEW_STEPS:
        yield from (Cell(few, steps, method) for method in METHODS)
    yield from (Cell(teacher, MANY, method) for method in METHODS)


def curves(few: str, teacher: str, student: str) -> Iterator[Cell]:
    """More scales of every method at four steps."""
    yield from (Cell(few, 4, method) for method in MORE)


def with_guidance(few: str, teacher: str, student: str) -> Iterator[Cell]:
    """CFG, and CFG with PAG, with and without NAG."""
    for scale in CFG_MANY:
        for empty in (False, True):
            for pag in (0.0, PAG):
                plain = Cell(teacher, MANY, Steering(cfg=scale, empty=empty, pag=pag))
                yield plain
                yield plain.with_(rule="nag", scale=NAG[0].scale)
    yield Cell(teacher, MANY)
    yield Cell(teacher, MANY, Steering(pag=PAG))
    yield Cell(teacher, MANY, NAG[0])


def ablation(few: str, teacher: str, student: str) -> Iterator[Cell]:
    """NAG without one of its parts, at two scales."""
    yield Cell(few, 4)
    for scale in PART_SCALES:
        for formula in ("full", *PARTS):
            yield Cell(few, 4, replace(NAG[0], scale=scale, formula=formula))


def sweeps(few: str, teacher: str, student: str) -> Iterator[Cell]:
    """One of scale, tau and alpha varied, the others as published for Flux."""
    yield Cell(few, 4)
    for name, values in (("scale", SCALES), ("tau", TAUS), ("alpha", ALPHAS)):
        yield from (Cell(few, 4, replace(NAG[0], **{name: value})) for value in values)


def early_stopping(few: str, teacher: str, student: str) -> Iterator[Cell]:
    """NAG in the first quarter, the first half and all of the steps."""
    for plain in (Cell(few, 4), Cell(teacher, MANY, Steering(cfg=CFG_MANY[0]))):
        yield plain
        for end in (*ENDS, 1.0):
            yield plain.with_(rule="nag", scale=NAG[0].scale, end=end)


def one_step(few: str, teacher: str, student: str) -> Iterator[Cell]:
    """Every method on the one-step student."""
    yield from (Cell(student, 1, method) for method in METHODS)


TABLES = {
    "few_steps": few_steps, "curves": curves, "with_guidance": with_guidance, "ablation": ablation, "sweeps": sweeps,
    "early_stopping": early_stopping, "one_step": one_step,
}  # fmt: skip


def cells_of(tables: list[str] | tuple[str, ...], architectures: tuple[str, ...] = ARCHITECTURES) -> list[Cell]:
    """The cells of these tables, each once, in an order that stays with one variant as long as it can."""
    found = {Cell(variant, steps): None for variant in REAL for steps in (4, MANY)}  # the floors
    found |= {cell: None for name in tables for kind in architectures for cell in TABLES[name](*VARIANTS_OF[kind])}
    variants = [*REAL, *(variant for kind in ARCHITECTURES for variant in VARIANTS_OF[kind])]
    return sorted(found, key=lambda cell: variants.index(cell.variant))
