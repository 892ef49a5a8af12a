# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""docs/evidence.md, whole, from the CSV files beside it."""

import math
from pathlib import Path
from statistics import mean

from nag_kernels.whole_file import write_text

from .ablation import __doc__ as FORMULAS_TEXT
from .cells import ARCHITECTURES, FULL, MANY, PAIRS, QUICK, REAL, TABLES, VARIANTS_OF, Cell
from .claims import SNOOPI, Claim, claims_of, outcome, verdict
from .measures import MEASURES
from .prose import FIGURES, HEAD, METHOD, PROMPTS, READING, STUDENTS, TABLE_TEXT, TITLES
from .rows import load_rows
from .students import spread, welch

SHARES = ("shows", "match", "clean", "clean_match")
COLUMNS = {"shows": "shows the negative", "clean_match": "clean match", "match": "match", "clean": "clean",
           "frechet": "Frechet", "patches": "patches", "diversity": "diversity"}  # fmt: skip
WITH_INTERVAL = ("shows", "clean_match", "frechet")


def _number(name: str, value: str) -> str:
    found = float(value)
    return (
        "-" if math.isnan(found) else f"{100 * found:.1f}" if name.removeprefix("nasa_") in SHARES else f"{found:.3f}"
    )


def _entry(row: dict[str, str], name: str) -> str:
    """A value, its interval where there is room, and a star where it differs from no negative."""
    text = _number(name, row[name])
    if name in WITH_INTERVAL:
        text += f" [{_number(name, row[f'{name}_low'])}, {_number(name, row[f'{name}_high'])}]"
    gain = row.get(f"{name}_gain")
    if gain and outcome(float(row[f"{name}_gain_low"]), float(row[f"{name}_gain_high"])) != "open":
        text += "\\*"
    return text


def _table(header: list[str], lines: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(header) + " |", "|" + "---|" * len(header),
            *("| " + " | ".join(line) + " |" for line in lines), ""]  # fmt: skip


def _cells_table(cells: list[Cell], rows: dict[str, dict[str, str]]) -> list[str]:
    """One line per cell that was measured."""
    found = [(cell, rows[cell.name]) for cell in cells if cell.name in rows]
    several = len({(cell.variant, cell.steps) for cell, _ in found}) > 1
    lines = []
    for cell, row in found:
        label = (
            "real renders" if cell.variant == REAL[0] else cell.variant if cell.variant in REAL else cell.method.label
        )
        place = [cell.variant if cell.variant not in REAL else "", str(cell.steps)] if several else []
        lines.append([*place, label, *(_entry(row, name) for name in COLUMNS)])
    header = [*(["variant", "steps"] if several else []), "method", *COLUMNS.values()]
    return _table(header, lines)


def _counts(outcomes: list[str]) -> str:
    return ", ".join(f"{outcomes.count(kind)} {kind}" for kind in ("for", "open", "against") if kind in outcomes)


def _verdicts(claims: list[dict[str, str]]) -> dict[tuple[str, str], list[dict[str, str]]]:
    """Rows of claims.csv by architecture and claim."""
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in claims:
        found.setdefault((row["architecture"], row["claim"]), []).append(row)
    return found


def _complete(claim: Claim, rows: list[dict[str, str]]) -> str:
    """The verdict, or how much is missing: a claim that is measured in part has none."""
    if rows and len(rows) < len(claim.contrasts):
        return f"not measured whole ({len(rows)} of {len(claim.contrasts)})"
    return verdict([row["outcome"] for row in rows])


def _claim_lines(claim: Claim, found: dict[tuple[str, str], list[dict[str, str]]]) -> list[str]:
    """What the paper says, what came out, and every contrast that did not go its way."""
    lines = [f"- **{claim.says}.** {claim.published}."]
    for architecture in ARCHITECTURES:
        rows = found.get((architecture, claim.key), [])
        outcomes = [row["outcome"] for row in rows]
        said = _complete(claim, rows)
        lines.append(f"  - {architecture}: **{said}**" + (f" ({_counts(outcomes)})" if outcomes else ""))
        for row in rows:
            if row["outcome"] != "for":
                unit = 100 if row["measure"] in SHARES else 1
                numbers = [
                    f"{unit * float(row[name]):+.{1 if unit == 100 else 3}f}" for name in ("value", "low", "high")
                ]
                what = COLUMNS[row["measure"]]
                lines.append(
                    f"    - {row['outcome']}: {what}, {row['contrast']}: {numbers[0]} [{numbers[1]}, {numbers[2]}]"
                )
    return lines


def _summary(found: dict[tuple[str, str], list[dict[str, str]]]) -> list[str]:
    lines = []
    for claim, other in zip(*(claims_of(architecture) for architecture in ARCHITECTURES), strict=True):
        each = [_complete(one, found.get((kind, one.key), [])) for kind, one in
                zip(ARCHITECTURES, (claim, other), strict=True)]  # fmt: skip
        lines.append([claim.says, claim.published.split(":")[0].split(" (")[0], *each])
    return _table(["claim", "source", *ARCHITECTURES], lines)


def _missing(cells: dict[str, dict[str, str]]) -> list[str]:
    """Which variants have no rows at all, or not all of them."""
    lines = []
    for architecture in ARCHITECTURES:
        wanted = {cell: None for table in TABLES.values() for cell in table(*VARIANTS_OF[architecture])}
        for variant in VARIANTS_OF[architecture]:
            own = [cell for cell in wanted if cell.variant == variant]
            there = sum(cell.name in cells for cell in own)
            if there == 0:
                lines.append(f"- `{variant}`: not shipped, or not measured yet; its {len(own)} cells are missing.")
            elif there < len(own):
                lines.append(f"- `{variant}`: {there} of {len(own)} cells measured; the others are missing.")
    return ["Missing from this page:", "", *lines, ""] if lines else []


def _students(path: Path) -> list[str]:
    rows = load_rows(path)
    lines = [STUDENTS, ""]
    if not rows:
        return [*lines, "No student has been measured yet (`students.csv` is not there).", ""]
    names = ("shows", "clean_match", "frechet", "patches", "diversity", "nasa_shows", "nasa_clean_match")
    header = [
        "architecture",
        "kappa",
        "seeds",
        *(COLUMNS.get(name, name.replace("nasa_", "NASA 0.5: ")) for name in names),
    ]
    header = [
        name.replace("clean_match", "clean match").replace("0.5: shows", "0.5: shows the negative") for name in header
    ]
    groups: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault((row["architecture"], row["kappa"]), []).append(row)
    table = []
    for (architecture, kappa), group in groups.items():
        entries = []
        for name in names:
            values = [float(row[name]) for row in group]
            text = _number(name, str(mean(values)))
            entries.append(text if len(values) < 2 else f"{text} ± {_number(name, str(spread(values)))}")
        table.append([architecture, kappa, str(len(group)), *entries])
    lines += _table(header, table)
    lines += [
        f"- **Random kappa gives a better student than fixed kappa.** {SNOOPI} (v1, 2024), ablation of the guidance scale: "
        "FID 10.72 with fixed kappa in both teachers, 10.81 and 9.51 with random kappa in one, 9.03 in both."
    ]
    for architecture in ARCHITECTURES:
        own = [row for row in rows if row["architecture"] == architecture]
        fixed = [float(row["frechet"]) for row in own if row["kappa"].startswith("fixed")]
        drawn = [float(row["frechet"]) for row in own if row["kappa"].startswith("random")]
        found = welch(fixed, drawn)
        said = verdict([] if found is None else [outcome(*found[1:])])
        numbers = (
            "" if found is None else f": Frechet, fixed less random {found[0]:+.3f} [{found[1]:+.3f}, {found[2]:+.3f}]"
        )
        lines.append(f"  - {architecture}: **{said}**{numbers} ({len(fixed)} fixed, {len(drawn)} random)")
    return [*lines, ""]


def write(folder: Path, page: Path) -> None:
    """Make `page` from cells.csv, claims.csv, students.csv and the pictures in `folder`."""
    cells = {row["name"]: row for row in load_rows(folder / "cells.csv")}
    found = _verdicts(load_rows(folder / "claims.csv"))
    size = next((row["size"] for row in cells.values()), FULL.name)
    sizes = QUICK if size == QUICK.name else FULL
    counts = f"{sizes.per_pair * len(PAIRS)} samples up to 8 steps and {sizes.per_pair_many * len(PAIRS)} at {MANY}"
    contrasts = sum(len(claim.contrasts) for architecture in ARCHITECTURES for claim in claims_of(architecture))
    lines = ["# The papers' claims, measured here", ""]
    if size == QUICK.name:
        lines += [
            f"**This is a quick run ({counts} in a cell): it shows that everything works, its numbers mean little.**",
            "",
        ]
    lines += [
        HEAD,
        "",
        *_summary(found),
        *_missing(cells),
        READING.format(contrasts=contrasts),
        "",
        "## What is drawn",
        "",
        PROMPTS,
        "",
    ]
    lines += _table(["prompt", "negative", "leaves open"],
                    [[pair.prompt, pair.negative, pair.open or "nothing"] for pair in PAIRS])  # fmt: skip
    lines += [METHOD.format(counts=counts, replicates=sizes.replicates, reference=sizes.reference * len(PAIRS)), ""]
    lines += _table(["measure", "what it is"], [[COLUMNS[name], text] for name, text in MEASURES.items()])
    for name, table in TABLES.items():
        lines += [f"## {TITLES[name]}", "", TABLE_TEXT[name], ""]
        if name == "ablation":
            lines += [*FORMULAS_TEXT.strip().splitlines()[2:], ""]
        for architecture in ARCHITECTURES:
            own = list(dict.fromkeys(table(*VARIANTS_OF[architecture])))
            if any(cell.name in cells for cell in own):
                floors = [Cell(variant, steps) for variant in REAL
                          for steps in dict.fromkeys(4 if cell.steps <= 8 else MANY for cell in own)]  # fmt: skip
                lines += [f"### {architecture} attention", "", *_cells_table([*own, *floors], cells)]
            else:
                lines += [f"### {architecture} attention", "", "Not shipped, or not measured yet.", ""]
            for stem, text in FIGURES.get(name, ()):
                if (folder / f"{stem}_{architecture}.png").exists():
                    lines += [f"![{text}]({folder.name}/{stem}_{architecture}.png)", ""]
        own = [claim for claim in claims_of(ARCHITECTURES[0]) if claim.table == name]
        if own:
            lines += ["### Beside the papers", "", *(line for claim in own for line in _claim_lines(claim, found)), ""]
    lines += [f"## {TITLES['students']}", "", *_students(folder / "students.csv")]
    write_text(page, "\n".join(lines).rstrip() + "\n")
