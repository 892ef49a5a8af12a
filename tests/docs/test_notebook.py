# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The notebook: it is one, it holds no outputs, and its cells run from top to bottom."""

import ast
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

import numpy as np

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_steps.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def run(source, names):
    """Runs a cell; the value of its last line, which a notebook shows."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_it_is_a_notebook_without_outputs():
    whole = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (whole["nbformat"], whole["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    for cell in CELLS:
        assert cell["cell_type"] in ("code", "markdown")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
        for link in re.findall(r"\]\(([^)]+)\)", "".join(cell["source"])):
            assert (NOTEBOOK.parent / link).exists(), link


def test_every_cell_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    shown = [run("".join(cell["source"]), names) for cell in CELLS if cell["cell_type"] == "code"]
    assert shown[0] is None
    without, steered, strip, figure = shown[1:]
    # Three of the four circles are red without the negative, and none with it.
    seen = {name: [np.asarray(each, dtype=int) for each in names[name]] for name in ("without", "steered")}
    red = {
        name: [((x[..., 0] > 200) & (x[..., 1:] < 70).all(-1)).mean() > 0.1 for x in each]
        for name, each in seen.items()
    }
    assert (sum(red["without"]), sum(red["steered"])) == (3, 0)
    assert without.size == steered.size == (4 * 136 - 8, 128)
    assert without.tobytes() != steered.tobytes()
    assert strip.size == (5 * 136 - 8, 4 * 136 - 8)
    assert [x.tobytes() for x in names["sweep"][2]] == [x.tobytes() for x in names["steered"]]  # alpha 0.2
    assert figure.width > 1000
    assert "Suggestion(nag_scale=5.0, nag_tau=2.5" in capsys.readouterr().out
