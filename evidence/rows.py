# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The CSV files that the report is made from: a row per cell, and a row per contrast of a claim."""

import csv
import hashlib
from pathlib import Path

from nag_kernels.whole_file import whole_file

from .cells import ARCHITECTURES, TABLES, Cell, Size, cells_of
from .claims import claims_of, outcome
from .measures import MEASURES, contrast, interval
from .run import digest, replicates_of, row_of

CELL_COLUMNS = ("name", "variant", "steps", "method", "size", "samples", "weights",
                *(f"{name}{part}" for name in MEASURES for part in ("", "_low", "_high")),
                *(f"{name}_gain{part}" for name in MEASURES for part in ("", "_low", "_high")))  # fmt: skip
CLAIM_COLUMNS = (
    "architecture",
    "table",
    "claim",
    "contrast",
    "measure",
    "size",
    "weights",
    "value",
    "low",
    "high",
    "outcome",
)


def load_rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def save_rows(path: Path, columns: tuple[str, ...], rows: list[dict[str, str]]) -> None:
    with whole_file(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _numbers(prefix: str, values: tuple[float, float, float]) -> dict[str, str]:
    return {f"{prefix}{part}": f"{value:.5f}" for part, value in zip(("", "_low", "_high"), values, strict=True)}


def cell_row(cell: Cell, size: Size, work: Path) -> dict[str, str] | None:
    """The row of a kept cell; `_gain` columns are its differences to the same variant and steps without a negative, by the
    same seeds. None for a cell that is not kept."""
    if row_of(cell, size, work) is None:
        return None
    found, plain = replicates_of(cell, work), Cell(cell.variant, cell.steps)
    row = {"name": cell.name, "variant": cell.variant, "steps": str(cell.steps), "method": cell.method.label,
           "size": size.name, "samples": str(row_of(cell, size, work)["samples"]), "weights": digest(cell.variant)}  # fmt: skip
    for name in MEASURES:
        row |= _numbers(name, interval(found.values[name], name))
    if plain != cell and row_of(plain, size, work) is not None:
        without = replicates_of(plain, work)
        for name in MEASURES:
            row |= _numbers(f"{name}_gain", contrast([(1.0, found), (-1.0, without)], name))
    return row


def claim_rows(architecture: str, size: Size, work: Path) -> list[dict[str, str]]:
    """A row for each contrast whose cells are all kept."""
    rows = []
    for claim in claims_of(architecture):
        for each in claim.contrasts:
            cells = [cell for _, cell in each.terms]
            if any(row_of(cell, size, work) is None for cell in cells):
                continue
            terms = [(weight, replicates_of(cell, work)) for weight, cell in each.terms]
            value, low, high = contrast(terms, each.measure)
            row = {"architecture": architecture, "table": claim.table, "claim": claim.key, "contrast": each.says,
                   "measure": each.measure, "size": size.name, "weights": _weights(cells),
                   "value": f"{value:.5f}", "low": f"{low:.5f}", "high": f"{high:.5f}"}  # fmt: skip
            rows.append(row | {"outcome": outcome(float(row["low"]), float(row["high"]))})
    return rows


def _weights(cells: list[Cell]) -> str:
    """Of all variants in `cells`."""
    found = sorted({f"{cell.variant} {digest(cell.variant)}" for cell in cells})
    return hashlib.sha256(" ".join(found).encode()).hexdigest()[:12]


def update(size: Size, work: Path, folder: Path) -> None:
    """Bring `cells.csv` and `claims.csv` in `folder` up to what is kept in `work`.

    Rows of what is not kept stay as they are, as long as they were measured with the weights that are shipped now.
    """
    old = {row["name"]: row for row in load_rows(folder / "cells.csv") if row["size"] == size.name}
    rows = []
    for cell in cells_of(tuple(TABLES)):
        row = cell_row(cell, size, work) or old.get(cell.name)
        if row is not None and row["weights"] == digest(cell.variant):
            rows.append(row)
    save_rows(folder / "cells.csv", CELL_COLUMNS, rows)

    def key(row: dict[str, str]) -> tuple[str, ...]:
        return row["architecture"], row["claim"], row["contrast"], row["measure"]

    old = {key(row): row for row in load_rows(folder / "claims.csv") if row["size"] == size.name}
    rows = []
    for architecture in ARCHITECTURES:
        fresh = {key(row): row for row in claim_rows(architecture, size, work)}
        for claim in claims_of(architecture):
            for each in claim.contrasts:
                place = architecture, claim.key, each.says, each.measure
                row = fresh.get(place) or old.get(place)
                if row is not None and row["weights"] == _weights([cell for _, cell in each.terms]):
                    rows.append(row)
    save_rows(folder / "claims.csv", CLAIM_COLUMNS, rows)
