# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The files of the project: what git tracks and what is new, or, in an unpacked source distribution, all that is there."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
MADE = {"build", "dist", "out", "__pycache__"}  # of which git knows that they are made


def source_files(*folders: str) -> list[str]:
    """By their names from the root; of `folders` alone, where some are named."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-co", "--exclude-standard", *folders]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
        return [name for name in listed if name and (ROOT / name).is_file()]
    found = []
    for folder in folders or (".",):
        for at, inner, names in os.walk(ROOT / folder):
            inner[:] = [x for x in inner if x not in MADE and not x.startswith((".venv", ".comfyui", ".torch-headers"))
                        and not x.endswith((".egg-info", "_cache"))]  # fmt: skip
            found += [(Path(at) / x).relative_to(ROOT).as_posix() for x in names if not x.endswith((".so", ".pyc"))]
    return found
