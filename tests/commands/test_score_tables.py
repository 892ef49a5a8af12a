# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The scores of `python -m nag_kernels.evaluate` as a file and as a table."""

import csv
import re

import pytest

pytest.importorskip("rich")

from rich.console import Console

from nag_kernels import score_tables
from nag_kernels.scores import Score


def test_the_table_is_readable_at_80_columns(capsys):
    methods = ["none", "cfg:4.5+nag:5:2.5:0.125", "vsf:3.5:-0.1"]
    names = ["clip_score", "fid", "pfid", "frechet_clip", "image_reward", "hpsv2", "shows_negative", "clean_match"]
    found = {x: [Score(name, 5000, 31.2, 30.1, 32.3) for name in names] for x in methods}
    Console(width=80).print(score_tables.table(found, "a/model, 4 steps"))
    said = capsys.readouterr().out
    assert all(re.search(rf"\b{name} +│ none +│ +31.200 │ 30.100 to 32.300 │ +5000 │", said) for name in names)
    assert said.count("vsf:3.5:-0.1") == len(names)
    assert "cfg:4.5+nag:5" in said


def test_a_score_without_value_is_an_empty_field(tmp_path):
    score_tables.write_scores({"none": [Score("fid", 0, note="missing: no")]}, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"method": "none", "metric": "fid", "value": "", "low": "", "high": "",
                                               "samples": "0", "note": "missing: no"}  # fmt: skip


def test_a_score_of_another_environment_stays(tmp_path):
    path, there = tmp_path / "scores.csv", Score("hpsv2", 6, 31.5, 30.0, 33.0, "v2.0")
    here = [Score("clip_score", 6, 1.0, 0.5, 1.5), Score("hpsv2", 0, note="missing: no")]
    assert score_tables.kept_scores({"none": here}, path) == {"none": here}
    score_tables.write_scores({"none": [Score("clip_score", 6, 9.0), there]}, path)
    assert score_tables.kept_scores({"none": here, "nag": here}, path) == {"none": [here[0], there], "nag": here}
    more = [Score("clip_score", 7, 1.0), here[1]]  # of other pictures
    assert score_tables.kept_scores({"none": more}, path) == {"none": more}
