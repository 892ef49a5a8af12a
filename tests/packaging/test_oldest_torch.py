# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Every host source read by the C++ compiler with the headers of the oldest torch that pyproject.toml takes. `make test`
fetches those headers into .torch-headers/ (from the smallest wheel of that release); other headers than torch's are this
machine's."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import torch_versions  # noqa: E402

import cuda_build  # noqa: E402

pytestmark = pytest.mark.slow  # it compiles

OLDEST = re.search(r'^dependencies = \["torch>=([\d.]+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
HEADERS = next(iter((ROOT / ".torch-headers").glob(f"{OLDEST}.*/torch/include")), None)
SOURCES = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "csrc").rglob("*.cpp"))]
COMPILER = shlex.split(os.environ.get("CXX") or "c++")


@pytest.mark.skipif(HEADERS is None, reason="the oldest torch is not here: no headers (make test fetches them)")
@pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="the oldest torch is not here: no C++ compiler")
@pytest.mark.parametrize("source", [name for name in SOURCES if "/kernels_" not in name])  # those know nothing of torch
def test_the_sources_compile_with_the_headers_of_the_oldest_torch(source):
    include = [ROOT / "csrc", HEADERS, sysconfig.get_path("include")]
    macros = ["-DPy_LIMITED_API=0x030A0000", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    if "/cuda/" in source:
        if cuda_build.nvcc() is None:
            pytest.skip("cuda compile is not here: no nvcc, which brings the headers of the CUDA runtime")
        include += [ROOT / "csrc" / "cuda", *cuda_build.include_dirs()]
        macros += ["-DUSE_CUDA=1"]
    read = subprocess.run([*COMPILER, "-std=c++20", "-fsyntax-only", *macros, *(f"-I{x}" for x in include), ROOT / source],
                          capture_output=True, text=True)  # fmt: skip
    assert read.returncode == 0, read.stderr


def test_the_sources_that_are_left_out_know_nothing_of_torch():
    for name in SOURCES:
        if "/kernels_" in name:
            said = subprocess.run([*COMPILER, "-std=c++20", "-MM", f"-I{ROOT / 'csrc'}", ROOT / name],
                                  capture_output=True, text=True)  # fmt: skip
            assert said.returncode == 0, said.stderr
            assert "torch" not in said.stdout.replace(str(ROOT), "")


def test_readme_shows_the_versions_that_were_tried():
    assert (
        torch_versions.BEGIN + torch_versions.table(torch_versions.rows()) + torch_versions.END
        in (ROOT / "README.md").read_text()
    )
