# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""From measurements to table rows, without a GPU: the measuring itself runs on one."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.tune_gpu import CLASSES, WORKLOADS, Measured, best_tile, choices
from nag_kernels import gpu_table

ROOT = Path(__file__).parents[2]


def test_the_best_tile_is_best_over_all_workloads():
    found = [
        Measured("a", "fast on one", 1.0, "x:1"), Measured("b", "fast on one", 9.0, "x:2"),
        Measured("a", "even", 2.0, "x:3"), Measured("b", "even", 2.0, "x:4"),
        Measured("a", "ran on one alone", 0.1, "x:5"),
    ]  # fmt: skip
    assert best_tile(found) == "even"


def test_choices_are_rows_that_the_chooser_reads(tmp_path):
    found = [
        Measured("sdxl_64x64", "triton", 0.05, "r:1"), Measured("sdxl_64x64", "cuda text", 0.02, "r:2"),
        Measured("sdxl_32x32", "cuda text", 0.02, "r:3"), Measured("wan_14b_480p", "triton", 5.0, "r:4"),
        Measured("wan_14b_480p", "cuda branches", 6.0, "r:5"), Measured("flux_1024px", "triton finish cudnn", 1.0, "r:6"),
    ]  # fmt: skip
    gpu_table.write(choices(90, found), tmp_path / "table.csv")
    rows = gpu_table.read(tmp_path / "table.csv")

    def first(**call):
        return next(row for row in rows if row.fits(gpu_table.Call(chip=90, heads=10, **call)))

    sdxl = first(length=4096, size=64, positive=77, negative=77)
    assert (sdxl.plans, sdxl.source) == ("cuda text > triton", "r:2")
    assert first(length=1000, size=64, positive=77, negative=77).source == "r:3"
    assert first(length=32760, size=128, positive=512, negative=512).plans == "triton > cuda branches"
    assert first(length=99999, size=256, positive=900, negative=9).source == "r:4", "the row without limits"
    assert first(length=4096, size=128, positive=512, negative=512, shared=4096).source == "r:6"
    assert all(":" in row.source for row in rows)


def test_its_workloads_are_there():
    assert all(WORKLOADS[name].size <= size for size, names in CLASSES.items() for name in names)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run([sys.executable, "-m", "benchmarks.tune_gpu"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "tune_gpu needs a GPU" in done.stderr


def test_the_committed_compile_report_has_no_spills_and_every_chip():
    with (ROOT / "benchmarks" / "results" / "compile_check.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for chip in ("80", "86", "89", "90", "100", "120"):
        kernels = [row["kernel"] for row in rows if row["chip"] == chip]
        assert len(kernels) == len(set(kernels))
        for part, count in (("triton branches", 17), ("triton blend", 3), ("cuda text", 14), ("cuda branches", 10)):
            assert sum(name.startswith(part) for name in kernels) == count, (chip, part)
        assert sum(name.startswith("cuda cluster") for name in kernels) == (2 if chip == "90" else 0)
    for row in rows:
        assert int(row["registers"]) <= 255, row
        assert row["stack"] == row["local"] == "0", row
        if "guidance" not in row["kernel"] and "blend" not in row["kernel"] and "float32" not in row["kernel"]:
            assert "MMA" in row["matrix_instructions"], row
    own = {"90": "HGMMA", "100": "UTCHMMA"}  # Hopper's and Blackwell's matrix instructions for the long sequences
    for row in rows:
        long = row["kernel"].startswith(("triton branches, joint, bfloat16", "cuda cluster"))
        if row["chip"] in own and long and "256" not in row["kernel"]:
            assert own[row["chip"]] in row["matrix_instructions"], row
