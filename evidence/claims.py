# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the papers say, each claim as differences of cells that it says are above zero, and the rule of the verdicts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .cells import (
    ALPHAS,
    CFG,
    CFG_MANY,
    FEW_STEPS,
    MANY,
    NAG,
    NASA,
    NONE,
    PAG,
    SCALES,
    VARIANTS_OF,
    VSF,
    Cell,
    Steering,
)

NAG_PAPER, SNOOPI, VSF_PAPER = "NAG, arXiv 2505.21179", "SNOOPI, arXiv 2412.02687", "VSF, arXiv 2508.10931"


@dataclass(frozen=True)
class Contrast:
    """The claim says that the weighted sum of `measure` over these cells is above zero."""

    says: str
    measure: str
    terms: tuple[tuple[float, Cell], ...]


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, its figures, and what it would have to look like here."""

    table: str
    key: str
    says: str
    published: str
    contrasts: tuple[Contrast, ...]


def outcome(low: float, high: float) -> str:
    """Of one contrast, by its 95 % interval: "for" above zero, "against" below, "open" where zero is inside."""
    return "for" if low > 0 else "against" if high < 0 else "open"


def verdict(outcomes: list[str]) -> str:
    """Of a claim. All "for": shown. Any "against": contradicted. Else: not shown at this scale. None: not measured."""
    if not outcomes:
        return "not measured"
    if "against" in outcomes:
        return "contradicted"
    return "shown" if set(outcomes) == {"for"} else "not shown at this scale"


def _more(measure: str, more: Cell, less: Cell, says: str = "") -> Contrast:
    """`measure` is larger for the one cell than for the other."""
    where = f"{more.steps} step{'s' * (more.steps > 1)}: " if more.steps == less.steps else ""
    return Contrast(
        says or f"{where}{more.method.label} above {less.method.label}", measure, ((1.0, more), (-1.0, less))
    )


def claims_of(architecture: str) -> list[Claim]:
    """Every claim, for one architecture."""
    few, teacher, student = VARIANTS_OF[architecture]
    return [
        *_few_steps(few, teacher), *_with_guidance(teacher), *_ablation(few), *_sweeps(few),
        *_early_stopping(few, teacher), *_one_step(student),
    ]  # fmt: skip


def _few_steps(few: str, teacher: str) -> Iterator[Claim]:
    places = [*((few, steps) for steps in FEW_STEPS), (teacher, MANY)]

    def at(place: tuple[str, int], method: Steering) -> Cell:
        return Cell(*place, method)

    yield Claim(
        "few_steps", "NAG removes in few steps",
        "NAG makes negative prompts work in few-step models, and in a 25-step one without CFG",
        f"{NAG_PAPER}, Table 1: CLIP +0.4 to +0.7 in all seven models",
        tuple(_more("shows", at(place, NONE), at(place, NAG[0])) for place in places),
    )  # fmt: skip
    yield Claim(
        "few_steps", "NAG raises fidelity", "and raises fidelity with it",
        f"{NAG_PAPER}, Table 1: FID -0.18 to -2.93, PFID -1.50 to -4.27",
        tuple(_more(measure, at(place, NONE), at(place, NAG[0])) for measure in ("frechet", "patches") for place in places),
    )  # fmt: skip
    yield Claim(
        "few_steps", "CFG collapses in few steps", "CFG spoils the picture in few steps, where NAG keeps it",
        f"{NAG_PAPER}, abstract and Figure 1 (no table)",
        tuple(_more("clean_match", at((few, steps), NAG[0]), at((few, steps), CFG[1])) for steps in FEW_STEPS),
    )  # fmt: skip
    yield Claim(
        "few_steps", "CFG works in many steps", "CFG works well in standard settings",
        f"{NAG_PAPER}, abstract (in words)",
        (_more("shows", at(places[-1], NONE), at(places[-1], CFG[1])),
         _more("clean_match", at(places[-1], CFG[1]), at(places[-1], NONE))),
    )  # fmt: skip
    compared = [(few, steps) for steps in (1, 4, 8)]
    yield Claim(
        "few_steps", "NAG above NASA", "NAG is better than NASA in alignment and fidelity",
        f"{NAG_PAPER}, Table 7 (UNets at 1, 4 and 8 steps): CLIP +0.2 to +0.4, FID -1.12 to -1.88; in words, NASA fails "
        "on transformers",
        tuple(each for place in compared for each in (
            _more("clean_match", at(place, NAG[0]), at(place, NASA[1])),
            _more("frechet", at(place, NASA[1]), at(place, NAG[0])))),
    )  # fmt: skip
    yield Claim(
        "few_steps", "VSF removes most", "VSF removes more than NAG and NASA in few steps, and than CFG in many",
        f"{VSF_PAPER}, abstract (in words)",
        (*(_more("shows", at((few, steps), other), at((few, steps), VSF[0])) for steps in (4, 8)
           for other in (NAG[0], NASA[1])),
         _more("shows", at(places[-1], CFG[1]), at(places[-1], VSF[0]))),
    )  # fmt: skip


def _with_guidance(teacher: str) -> Iterator[Claim]:
    for pag, named, published in (
        (0.0, "CFG", "CLIP +0.2 and +0.8, ImageReward +0.101 and +0.115; FID +0.35 and -2.35"),
        (PAG, "CFG with PAG", "CLIP +0.3 and +0.8, ImageReward +0.124 and +0.166; FID -0.14 and -2.72"),
    ):
        contrasts = []
        for scale in CFG_MANY:
            for empty in (False, True):
                plain = Cell(teacher, MANY, Steering(cfg=scale, empty=empty, pag=pag))
                both = plain.with_(rule="nag", scale=NAG[0].scale)
                contrasts += [_more("shows", plain, both), _more("clean_match", both, plain)]
        yield Claim(
            "with_guidance", f"NAG adds to {named}", f"NAG added to {named} improves alignment and what people like",
            f"{NAG_PAPER}, Table 2 (SD3.5-Large and SDXL, 25 steps): {published}", tuple(contrasts),
        )  # fmt: skip


def _ablation(few: str) -> Iterator[Claim]:
    def at(scale: float, formula: str) -> Cell:
        return Cell(few, 4, replace(NAG[0], scale=scale, formula=formula))

    def worse(scale: float, formula: str) -> tuple[Contrast, Contrast]:
        return (_more("clean_match", at(scale, "full"), at(scale, formula)),
                _more("frechet", at(scale, formula), at(scale, "full")))  # fmt: skip

    missing = ("no refinement", "no normalisation", "no normalisation, no refinement")
    yield Claim(
        "ablation", "every part is needed",
        "Without refinement, and more so without normalisation, quality falls fast beyond phi = 5",
        f"{NAG_PAPER}, Figure 8 (curves over phi = 0 to 10, no numbers printed)",
        tuple(each for formula in missing for each in worse(11.0, formula)),
    )  # fmt: skip
    yield Claim(
        "ablation", "L1 rather than L2", "The L1 norm keeps small components that an L2 norm would shrink",
        f"{NAG_PAPER}, section 4 (in words; not measured there)",
        tuple(each for scale in (5.0, 11.0) for each in worse(scale, "L2 norm")),
    )  # fmt: skip


def _sweeps(few: str) -> Iterator[Claim]:
    none = Cell(few, 4)
    base = Cell(few, 4, NAG[0])
    scaled = [base.with_(scale=scale) for scale in SCALES]
    yield Claim(
        "sweeps", "stronger scale removes more", "A larger scale strengthens the negative prompt steadily",
        f"{NAG_PAPER}, Figures 9 and 10 (CLIP rises monotonically with phi; curves)",
        tuple(_more("shows", less, more) for less, more in zip([none, *scaled], scaled, strict=False)),
    )  # fmt: skip
    yield Claim(
        "sweeps", "moderate scales are best", "Fidelity is best at moderate scales, phi 4 to 8",
        f"{NAG_PAPER}, Figure 10 (curves)",
        (_more("frechet", none, base), _more("frechet", scaled[-1], base)),
    )  # fmt: skip
    yield Claim(
        "sweeps", "tau", "A low tau restricts guidance, a high one risks artifacts",
        f"{NAG_PAPER}, Figure 13 and appendix F (pictures)",
        (_more("shows", base.with_(tau=1.0), base), _more("clean_match", base, base.with_(tau=float("inf")))),
    )  # fmt: skip
    yield Claim(
        "sweeps", "alpha", "A low alpha is robust but weak, a high one strong but risks collapse",
        f"{NAG_PAPER}, Figure 13 and appendix F (pictures)",
        (_more("shows", base.with_(alpha=ALPHAS[0]), base.with_(alpha=0.5)),
         _more("clean_match", base.with_(alpha=ALPHAS[0]), base.with_(alpha=1.0))),
    )  # fmt: skip


def _early_stopping(few: str, teacher: str) -> Iterator[Claim]:
    contrasts = []
    for plain in (Cell(few, 4), Cell(teacher, MANY, Steering(cfg=CFG_MANY[0]))):
        full = plain.with_(rule="nag", scale=NAG[0].scale)
        early = full.with_(end=0.25)
        says = (
            f"{plain.steps} steps, {plain.method.label}: more than half of what NAG removes goes in the first quarter"
        )
        contrasts.append(Contrast(says, "shows", ((0.5, plain), (0.5, full), (-1.0, early))))
    yield Claim(
        "early_stopping", "the first quarter is enough", "NAG in the first quarter of the steps keeps most of the gain",
        f"{NAG_PAPER}, Table 9: of the gain in CLIP 0.6 of 0.6 (Flux-Schnell, 4 steps), 0.5 of 0.6 (DMD2-SDXL, 4), 0.2 of "
        "0.3 (PixArt-Sigma, 25) and 0.6 of 0.8 (SDXL, 25)",
        tuple(contrasts),
    )  # fmt: skip


def _one_step(student: str) -> Iterator[Claim]:
    def at(method: Steering) -> Cell:
        return Cell(student, 1, method)

    table_2 = f"{SNOOPI} (v3, 2025), Table 2"
    yield Claim(
        "one_step", "NASA removes in one step", "NASA removes what CFG cannot",
        f"{table_2}: removed in 25 to 44 % of the pictures without a negative, in 0 % with CFG, in 99 to 100 % with NASA "
        "(FLUX.1-schnell and SDXL-DMD2, one step)",
        (_more("shows", at(NONE), at(NASA[1])), _more("shows", at(CFG[1]), at(NASA[1]))),
    )  # fmt: skip
    yield Claim(
        "one_step", "CFG does not remove in one step", "CFG in one step leaves the negative in more pictures than no negative",
        f"{table_2}: removed in 0 % with CFG, in 25 to 44 % without a negative",
        tuple(_more("shows", at(method), at(NONE)) for method in CFG),
    )  # fmt: skip
    yield Claim(
        "one_step", "CFG spoils one-step pictures", "CFG degrades the output of one-step models",
        f"{SNOOPI} (v3), Table 3: HPSv2 28.71 without, 28.38 with CFG 1.5, 25.10 with CFG 2.5 (DMD, PixArt-alpha)",
        tuple(_more("clean_match", at(NONE), at(method)) for method in CFG),
    )  # fmt: skip
    yield Claim(
        "one_step", "NASA keeps the picture", "NASA raises the quality of every one-step model",
        f"{SNOOPI} (v3), Table 3: HPSv2 +0.01 to +0.64, CLIP to the prompt unchanged, to the negative -0.01 to -0.03",
        tuple(_more("clean_match", at(method), at(NONE)) for method in NASA),
    )  # fmt: skip
    yield Claim(
        "one_step", "NAG works in one step", "NAG improves alignment and fidelity at one step",
        f"{NAG_PAPER}, Table 1 (NitroSD-Realism, 1 step): CLIP +0.6, FID -2.23, PFID -1.80",
        (_more("shows", at(NONE), at(NAG[0])), _more("frechet", at(NONE), at(NAG[0])),
         _more("patches", at(NONE), at(NAG[0]))),
    )  # fmt: skip
