# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Writing files so that a reader, or the next run, finds the old one or the new one, and never half of one."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Where to write what is to be `path`: a place of the same name in a folder beside it, moved at the end of the block.

    What is written may also be a folder of files. An existing one keeps the files that are not written. Folders that lead to
    `path` are made. After an error `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".part", dir=path.parent) as folder:
        part = Path(folder) / path.name
        yield part
        if part.is_dir() and path.is_dir():
            for each in sorted(part.iterdir()):
                os.replace(each, path / each.name)
        else:
            os.replace(part, path)


def write_text(path: str | Path, text: str) -> None:
    """In UTF-8."""
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
