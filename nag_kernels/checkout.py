# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Commands that are folders of a checkout and no part of the installed package."""

import importlib
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


def run(folder: str, arguments: list[str] | None) -> None:
    """Run `main` of a folder that lies beside the package, or in the checkout that this process is in. Ends with a sentence where
    there is none."""
    here = next((x for x in (CHECKOUT, Path.cwd(), *Path.cwd().parents) if _has(x, folder)), None)
    if here is None:
        sys.exit(
            f"nag_kernels: the folder {folder} is in a checkout of the repository, not in an installed package: "
            f"clone the repository and run `python -m {folder}` there"
        )
    sys.path.insert(0, str(here))
    importlib.import_module(f"{folder}.__main__").main(arguments)


def _has(root: Path, folder: str) -> bool:
    project = root / "pyproject.toml"
    return (
        (root / folder / "__main__.py").exists() and project.exists() and 'name = "nag-kernels"' in project.read_text()
    )
