# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`make test-torch`: nag_kernels installed beside several versions of torch, each in an environment of its own, from source
(what `pip install .` builds) and from one wheel, which the last version named builds; then tests/packaging/installed_check.py.

    python tests/packaging/torch_versions.py 2.10.0@python3.10 2.11.0 2.15.0

A version is the torch of that number which the package index has for this machine (for Linux on x86-64 a CUDA build of about
5 GB, which needs no GPU here), `@` names the Python of its environment. Rows go to docs/versions.csv, one for each torch and
Python, and to the table in README. Environments stay in .venv-torch/ with --keep, and are used again.
"""

import argparse
import csv
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from source_files import source_files  # beside this file, which is run by its path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "versions.csv"
BEGIN, END = "<!-- versions: written by make test-torch -->\n", "<!-- end of versions -->"
COLUMNS = [
    "torch", "CUDA of torch", "Python", "triton", "diffusers", "transformers", "source cpu", "source cuda", "wheel cpu",
    "wheel cuda", "date", "commit",
]  # fmt: skip
EXTRAS = ["numpy", "diffusers", "transformers"]


def run(*command, **options) -> str:
    print("+", *command, file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode:
        sys.exit(f"{done.stdout[-6000:]}\nfailed: {' '.join(map(str, command))}")
    return done.stdout


def copied(folder: Path) -> Path:
    """The tracked and new files, so that no build of another version is taken along."""
    for name in source_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    return folder


def environment(version: str, python: str) -> Path:
    """The Python of an environment with this torch."""
    folder = ROOT / ".venv-torch" / version
    inside = folder / "bin" / "python"
    if not inside.exists():
        run(python, "-m", "venv", folder)
    run(inside, "-m", "pip", "install", "-q", "--no-cache-dir", f"torch=={version}", *EXTRAS)
    return inside


def built(python: Path, source: Path, folder: Path) -> Path:
    """The wheel that `pip install .` makes and installs, in the isolation that pip builds in; torch must not be fetched."""
    folder.mkdir()
    said = run(python, "-m", "pip", "wheel", "-v", "--no-cache-dir", "--no-deps", "-w", folder, source)
    assert "Downloading torch-" not in said, said
    return next(folder.glob("*.whl"))


def installed(python: Path, wheel: Path) -> dict[str, str]:
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel)
    return check(python)


def check(python: Path) -> dict[str, str]:
    done = subprocess.run([python, ROOT / "tests" / "packaging" / "installed_check.py"], stdout=subprocess.PIPE, text=True,
                          cwd=tempfile.gettempdir())  # fmt: skip
    if done.returncode:
        sys.exit(f"failed: tests/packaging/installed_check.py with {python}")
    return json.loads(done.stdout.splitlines()[-1])


def rows() -> list[dict[str, str]]:
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def cuda(state: str) -> str:
    return "no CUDA in this torch" if state == "this torch is built without CUDA" else f"CUDA kernels {state}"


def table(found: list[dict[str, str]]) -> str:
    """README's table of the rows."""
    lines = ["| torch | Python | triton | diffusers, transformers | built from source | one wheel for all | tried |"]
    lines.append("|" + "---|" * 7)
    for row in found:
        states = [f"CPU kernels {row[f'{way} cpu']}, {cuda(row[f'{way} cuda'])}" for way in ("source", "wheel")]
        libraries = f"{row['diffusers']}, {row['transformers']}"
        cells = [row["torch"], row["Python"], row["triton"], libraries, *states, row["date"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(new: list[dict[str, str]]) -> None:
    def key(row: dict[str, str]) -> tuple:
        return ([int(x) for x in row["torch"].split("+")[0].split(".")], [int(x) for x in row["Python"].split(".")])

    kept = {(row["torch"], row["Python"]): row for row in [*rows(), *new]}
    found = sorted(kept.values(), key=key)
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    readme.write_text(before + BEGIN + table(found) + END + rest.split(END, 1)[1])
    print(table(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+", metavar="VERSION[@PYTHON]")
    parser.add_argument("--keep", action="store_true", help="leave the environments in .venv-torch/")
    arguments = parser.parse_args()
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "9.0+PTX")  # that it builds and loads is asked, not for which GPUs
    commit = run("git", "rev-parse", "--short", "HEAD", cwd=ROOT).strip()
    wheel = None
    with tempfile.TemporaryDirectory() as folder:
        for version in reversed(arguments.versions):  # the newest builds the wheel
            number, _, python = version.partition("@")
            inside = environment(number, python or sys.executable)
            own = built(inside, copied(Path(folder, number)), Path(folder, f"{number}-wheel"))
            wheel = wheel or own
            from_source, from_wheel = installed(inside, own), installed(inside, wheel)
            facts = {name: value for name, value in from_source.items() if name in COLUMNS}
            states = {f"source {x}": from_source[x] for x in ("cpu", "cuda")}
            states |= {f"wheel {x}": from_wheel[x] for x in ("cpu", "cuda")}
            write([{**facts, **states, "date": datetime.date.today().isoformat(), "commit": commit}])
            if not arguments.keep:
                shutil.rmtree(ROOT / ".venv-torch" / number)


if __name__ == "__main__":
    main()
