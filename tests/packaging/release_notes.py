# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""A release's text: its section of the changelog, and its wheels with their checksums.

python release_notes.py VERSION CHANGELOG SHA256SUMS
"""

import re
import sys
from pathlib import Path


def section(changelog: str, version: str) -> tuple[str, str]:
    """What stands behind the version in its heading ("2026-03-01" or "unreleased"), and the lines below it.

    Raises: ValueError where there is no such section, or nothing in it."""
    found = re.search(rf"^## {re.escape(version)} \(([^)\n]+)\)\n(.*?)(?=^## |\Z)", changelog, re.M | re.S)
    if found is None:
        raise ValueError(f'the changelog has no section "## {version} (...)"')
    if not found[2].strip():
        raise ValueError(f"the changelog's section of {version} is empty")
    return found[1], found[2].strip()


def notes(changelog: str, version: str, sums: str) -> str:
    date, changes = section(changelog, version)
    wheels = "\n".join(f"| `{name}` | `{checksum}` |" for checksum, name in map(str.split, sums.splitlines()))
    return f"# nag_kernels {version} ({date})\n\n{changes}\n\n| wheel | SHA-256 |\n|---|---|\n{wheels}\n"


if __name__ == "__main__":
    version, changelog, sums = sys.argv[1], Path(sys.argv[2]).read_text(), Path(sys.argv[3]).read_text()
    try:
        print(notes(changelog, version, sums), end="")
    except ValueError as error:
        sys.exit(str(error))
    if section(changelog, version)[0] == "unreleased":
        print(f"The changelog has no date for {version} yet: set it before the release.", file=sys.stderr)
