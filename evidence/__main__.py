# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Measure the papers' claims on the small model that ships with this repository, and write docs/evidence.md.

Every cell (a variant of the model, a number of steps, a method) is drawn once and kept in the work folder; a run that was cut
goes on where it was, and `--only` draws a part. Then the CSV files, plots, picture grids and the page are written from all
that is kept. Variants whose weights are not shipped are skipped, and the page says so.
"""

import argparse
from pathlib import Path

from nag_kernels.user_errors import check_folder, in_one_sentence, named

from .cells import ARCHITECTURES, FULL, PAIRS, QUICK, TABLES, cells_of
from .plots import grids, plot_all
from .report import write
from .rows import load_rows, update
from .run import missing_variants, row_of, run
from .students import add_student, measure_student

EPILOG = """\
tables:
{tables}

examples:
  python -m nag_kernels.evidence                              everything; the bar says how long
  python -m nag_kernels.evidence --quick                      a few samples of everything, into the work folder, minutes
  python -m nag_kernels.evidence --only ablation,sweeps --architecture cross
  python -m nag_kernels.evidence report                       the page again from what is kept, nothing drawn
  python -m nag_kernels.evidence student --unet out/distill/cross/student --kappa "random 0.5-4" --seed 3
                                                              measure one student, add its row to students.csv
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    tables = "\n".join(f"  {name:16}{table.__doc__}" for name, table in TABLES.items())
    parser = argparse.ArgumentParser(prog="python -m nag_kernels.evidence", description=__doc__,
                                     epilog=EPILOG.format(tables=tables),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("what", nargs="?", choices=("run", "report", "student"), default="run",
                        help="run (default): draw and report; report: nothing drawn; student: measure one")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help=(
        f"{QUICK.per_pair * len(PAIRS)} samples a cell in place of {FULL.per_pair * len(PAIRS)}; the page goes into the work "
        "folder, never over the full one"))  # fmt: skip
    parser.add_argument("--only", metavar="TABLES", help="tables to draw, with commas between (default: all)")
    parser.add_argument("--architecture", choices=(*ARCHITECTURES, "both"), default="both", help="what to draw")
    parser.add_argument("--work", type=Path, help="where cells are kept (default: out/evidence, out/evidence-quick)")
    parser.add_argument(
        "--docs", type=Path, help="where evidence.md and evidence/ go (default: docs; --quick: the work folder)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (default: 2)")
    student = parser.add_argument_group("student")
    student.add_argument(
        "--unet", type=Path, help="folder of its denoiser (config.json and weights), of either architecture"
    )
    student.add_argument("--kappa", help='how it was trained: "fixed 2", "random 0.5-4"')
    student.add_argument("--seed", type=int, help="of its training")
    options = parser.parse_args(arguments)
    options.only = tuple(options.only.split(",")) if options.only else tuple(TABLES)
    unknown = [name for name in options.only if name not in TABLES]
    if unknown:
        parser.error(f"--only must name tables among {', '.join(TABLES)}, got {', '.join(unknown)}")
    if options.workers < 1:
        parser.error(f"--workers must be at least 1, got {options.workers}")
    if options.what == "student" and None in (options.unet, options.kappa, options.seed):
        parser.error("student needs --unet, --kappa and --seed")
    if options.what == "student" and not options.kappa.startswith(("fixed", "random")):
        parser.error(f"--kappa must begin with 'fixed' or 'random', got {options.kappa!r}")
    if options.what == "student" and not (options.unet / "config.json").is_file():
        parser.error(f"--unet must be a folder with config.json and weights, there is none at {options.unet}")
    options.size = QUICK if options.quick else FULL
    options.work = options.work or Path("out/evidence-quick" if options.quick else "out/evidence")
    options.docs = options.docs or (options.work if options.quick else Path("docs"))
    check_folder(parser, options.work, "--work")
    check_folder(parser, options.docs, "--docs")
    return options


@in_one_sentence("nag_kernels.evidence")
def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    folder, page = options.docs / "evidence", options.docs / "evidence.md"
    if options.what == "student":
        with named(f"the student in {options.unet} cannot be measured", OSError, ValueError, KeyError):
            row = measure_student(options.unet, options.kappa, options.seed, options.size, options.work)
        add_student(row, folder / "students.csv")
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    if options.what == "run":
        architectures = ARCHITECTURES if options.architecture == "both" else (options.architecture,)
        cells = cells_of(options.only, architectures)
        for variant in missing_variants(cells):
            print(f"{variant}: not shipped, its cells are skipped")
        try:
            run(cells, options.size, options.work, options.workers)
        except KeyboardInterrupt:
            print("cut; the same command goes on from here")
        kept = sum(row_of(cell, options.size, options.work) is not None for cell in cells)
        print(f"{kept} of {len(cells)} cells are kept in {options.work}")
    if options.what != "student":
        if options.work.exists():
            update(options.size, options.work, folder)
        rows = {row["name"]: row for row in load_rows(folder / "cells.csv")}
        for architecture in ARCHITECTURES:
            plot_all(rows, architecture, folder)
            grids(options.work, architecture, folder)
    write(folder, page)
    print(f"page: {page}")


if __name__ == "__main__":
    main()
