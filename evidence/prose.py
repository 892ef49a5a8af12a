# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The sentences of docs/evidence.md that are written by hand; every number in that page is in report.py or a CSV file."""

TITLES = {
    "few_steps": "Few steps",
    "curves": "Removal against fidelity, over the scale of each method",
    "with_guidance": "Together with CFG and perturbed-attention guidance",
    "ablation": "The parts of NAG",
    "sweeps": "Scale, tau and alpha",
    "early_stopping": "Early stopping",
    "one_step": "The one-step students",
    "students": "How far the students spread",
}

HEAD = """\
`make evidence` draws and measures everything on this page from the weights in this repository
(`python -m nag_kernels.evidence --help`); `python -m nag_kernels.evidence report` writes the page again from the CSV files in
[evidence/](evidence/). The model is [shapes](shapes.md), which draws flat shapes in 32x32 pixels; its facts are known exactly,
and it is far from the models of the papers. A claim that holds here holds in one more place, one that does not may still hold
there. Papers: NAG (arXiv 2505.21179), SNOOPI with NASA and PG-SB (arXiv 2412.02687), VSF (arXiv 2508.10931)."""

READING = """\
How a verdict comes about, without a hand in it: a claim is written down as differences between cells that it says are above
zero (`evidence/claims.py`). Each difference has a 95 % bootstrap interval, paired by seed. Above zero it speaks
for the claim, below zero against it, and it leaves the claim open where zero is inside. All for: **shown**. Any against:
**contradicted**, with the differences listed. Otherwise: **not shown at this scale**. With {contrasts} differences a few
will be against by chance. All of them are in [claims.csv](evidence/claims.csv)."""

PROMPTS = """\
Sixteen pairs, the same for every cell, chosen before anything was drawn; none of them is a pair of the demo. In twelve the
negative is a value that the prompt leaves open; in the last four the prompt says something else already, so that there is
nothing to remove and all that a method does is damage. "Shows the negative" counts the twelve, everything else all sixteen."""

METHOD = """\
A cell has {counts}, the same number for each pair, and the same start noise in every cell. Nothing was tuned for a table or a
pair: CFG at 1.5, 2 and 3; NASA at 0.2 and 0.5 (published for SD2.1 and PixArt-alpha); NAG at scale 5, tau 2.5, alpha 0.25
(published for Flux, where it is called phi 4) and at twice that alpha (published for SDXL); VSF at 1, the plain change of
sign, and 2, without a bias. `few` is the four-step model, `teacher` the many-step model it comes from, `student` the
one-step model. CFG has the negative as its other text, or, where it says "(empty)", none.

Intervals are 95 %, from {replicates} bootstrap replicates drawn within each pair. A star marks a value whose paired difference
from "no negative" (same variant, steps and seeds) has an interval without zero. Frechet distances are squared 2-Wasserstein
distances of Gaussians in 64 features: the classifier's last map, averaged over the picture (or over each of its quadrants, for
"patches": the PFID of this world) and projected by a fixed random orthogonal matrix. They are taken to {reference} renders of
scenes in which the prompt is true and the negative is not, by the scene's own facts. The lines "real renders" are other
renders of that kind, as many as in a cell: the floor. "Decoded renders" went through the autoencoder, which no method can
escape. Distances grow as samples get fewer, so only lines of one size compare."""

TABLE_TEXT = {
    "few_steps": "Every method at 1, 2, 4 and 8 steps of the few-step model and at 25 of its teacher.",
    "curves": "More scales at four steps, for the curves: no method is judged by one setting alone.",
    "with_guidance": """\
25 steps of the teacher with CFG 2 and 3, whose other text is the negative or empty, with PAG (arXiv 2403.17377; scale
1, self-attention replaced by the identity in the UNet's middle block or the transformer's second, as diffusers does by
default) or not, and each of them with NAG or not. PAG's extra pass is not steered: beside NAG it is subtracted
from the prediction that NAG steers, so that PAG's scale lengthens what NAG did as well.""",
    "ablation": """\
NAG at four steps, tau 2.5, alpha 0.25, with a part left out or replaced; at scale 5 (phi 4) and 11 (phi 10). The formulas,
exactly:""",
    "sweeps": "One setting of NAG varied at four steps, the other two at 5, 2.5 and 0.25.",
    "early_stopping": "NAG (5 / 2.5 / 0.25) in a first part of the steps only.",
    "one_step": """\
The students that ship (distilled by PG-SB) in their one step. SNOOPI counts a removal as a success when the picture does not
show the negative: 100 less the first column.""",
}

STUDENTS = """\
Students trained with kappa fixed (SwiftBrush) and drawn afresh for every step (PG-SB), several seeds each; means and standard
deviations over seeds, one step, no negative and with NASA 0.5. Rows are added
by `python -m nag_kernels.evidence student`. The interval of the difference is Welch's, over students."""

FIGURES = {
    "few_steps": (("steps", "Frechet distance and clean match by steps"),
                  ("pictures_methods", "four steps, every method, the same seeds; red frame: shows the negative"),
                  ("pictures_many", "25 steps of the teacher, every method, the same seeds")),
    "curves": (("curves", "removal against clean match over the scale of each method"),),
    "ablation": (("pictures_ablation", "NAG at scale 11 without each of its parts, the same seeds"),),
    "sweeps": (("sweeps", "shares over scale, tau and alpha"),),
    "one_step": (("pictures_student", "one step, every method, the same seeds"),),
}  # fmt: skip
