# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Commands that are folders of a checkout and no part of the installed package."""

import importlib
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


def run(folder: str, arguments: list[str] | None) -> None:
    """Run `main` of a folder that lies beside the package. Ends with a sentence where the package is an installed one."""
    if not ((CHECKOUT / folder / "__main__.py").exists() and (CHECKOUT / "pyproject.toml").exists()):
        sys.exit(
            f"nag_kernels: the folder {folder} is in a checkout of the repository, not in an installed package: "
            f"clone the repository and run `python -m {folder}` there"
        )
    sys.path.insert(0, str(CHECKOUT))
    importlib.import_module(f"{folder}.__main__").main(arguments)
