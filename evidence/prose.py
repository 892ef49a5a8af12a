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
This page tests the claims of three papers on a small model: NAG (arXiv 2505.21179), SNOOPI with NASA and PG-SB (arXiv
2412.02687), and VSF (arXiv 2508.10931). The model is [shapes](shapes.md), which draws flat shapes in 32x32 pixels. The facts of
its world are known exactly, and it is far from the models of the papers. So a claim that holds here holds in one more place, and
a claim that does not hold here may still hold for the papers' models.

`make evidence` draws and measures everything on this page from the weights in this repository
(`python -m nag_kernels.evidence --help`). `python -m nag_kernels.evidence report` writes the page again from the CSV files in
[evidence/](evidence/)."""

READING = """\
A fixed rule gives each verdict. A cell is one method at one number of steps. A claim is written down as differences between
cells, which the claim says are above zero (`evidence/claims.py`). Each difference has a 95 % bootstrap interval, paired by seed.
An interval above zero speaks for the claim, an interval below zero speaks against it, and an interval that contains zero leaves
it open.

- **shown**: all differences speak for the claim.
- **contradicted**: at least one difference speaks against the claim. The page lists these differences.
- **not shown at this scale**: all other cases.

With {contrasts} differences a few will be against their claim by chance. All are in [claims.csv](evidence/claims.csv)."""

PROMPTS = """\
Every cell has the same sixteen pairs of prompt and negative prompt. They were chosen before anything was drawn, and none of them
is a pair of the demo. In twelve pairs the negative prompt is a value that the prompt leaves open. In the last four the prompt
already says something else, so there is nothing to remove, and any change by a method is damage. "Shows the negative" counts the
twelve pairs; all other measures count all sixteen."""

METHOD = """\
A cell has {counts}, the same number for each pair. Every cell has the same start noise. No setting was tuned for a table or a
pair:

- CFG at 1.5, 2 and 3. Its other text is the negative prompt, or, for "(empty)", the empty text.
- NASA at 0.2 and 0.5 (published for SD2.1 and PixArt-alpha).
- NAG at scale 5, tau 2.5, alpha 0.25 (published for Flux, as phi 4), and at twice that alpha (published for SDXL).
- VSF at 1, the plain change of sign, and at 2, without a bias.

`few` is the four-step model, `teacher` the many-step model, and `student` the one-step model.

Intervals are 95 %, from {replicates} bootstrap replicates drawn within each pair. A star marks a value whose paired difference
from "no negative" (same variant, steps and seeds) has an interval without zero.

Frechet distances are squared 2-Wasserstein distances of Gaussians in 64 features. The features are the classifier's last map,
averaged over the picture, and projected by a fixed random orthogonal matrix. For "patches", the PFID of this world, the map is
averaged over each quadrant. The distances are taken to {reference} renders of scenes in which the prompt is true and the negative
prompt is not. "Real renders" are other renders of that kind, as many as the samples of a cell; their distance is the lowest that
a method can reach. "Decoded renders" are renders that went through the autoencoder, as every method's pictures do. Distances grow
with fewer samples, so compare only lines with the same number of samples."""

TABLE_TEXT = {
    "few_steps": "Every method at 1, 2, 4 and 8 steps of the few-step model, and at 25 steps of its teacher.",
    "curves": "More scales of each method at four steps, so that no method is judged by one setting alone.",
    "with_guidance": """\
25 steps of the teacher, in all combinations of four choices: CFG at 2 or 3; the negative prompt or the empty text as CFG's other
text; with or without PAG; with or without NAG. Three more rows have no CFG. PAG (arXiv 2403.17377) has scale 1, and replaces
self-attention by the identity in the UNet's middle block or the transformer's second block, as diffusers does by default. PAG's
extra pass is not steered. Beside NAG it is subtracted from the prediction that NAG steers, so PAG's scale also amplifies the
effect of NAG.""",
    "ablation": """\
NAG at four steps, tau 2.5 and alpha 0.25, at scale 5 (phi 4) and 11 (phi 10). In each row one part of NAG is left out or
replaced. These are the exact formulas:""",
    "sweeps": "One setting of NAG varies at four steps; the other two keep their values of 5 / 2.5 / 0.25.",
    "early_stopping": "NAG (5 / 2.5 / 0.25) acts only in the first part of the steps.",
    "one_step": """\
The shipped students, distilled by PG-SB, draw in their one step. SNOOPI counts a picture as a success if it does not show the
negative prompt; this share is 100 less the first column.""",
}

STUDENTS = """\
These students were trained with kappa fixed (SwiftBrush), or with kappa drawn at random in every step (PG-SB), with several
seeds each. The table has means and standard deviations over the seeds, at one step, without a negative prompt and with NASA 0.5.
`python -m nag_kernels.evidence student` adds rows. The interval of the difference is Welch's, over students."""

FIGURES = {
    "few_steps": (("steps", "Frechet distance and clean match by steps"),
                  ("pictures_methods", "four steps, every method, the same seeds; red frame: shows the negative"),
                  ("pictures_many", "25 steps of the teacher, every method, the same seeds")),
    "curves": (("curves", "removal against clean match over the scale of each method"),),
    "ablation": (("pictures_ablation", "NAG at scale 11 without each of its parts, the same seeds"),),
    "sweeps": (("sweeps", "shares over scale, tau and alpha"),),
    "one_step": (("pictures_student", "one step, every method, the same seeds"),),
}  # fmt: skip
