# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Every example, with tiny random weights."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from every_model import EXAMPLES, FULL_PIPELINES

pytest.importorskip("diffusers")


pytestmark = pytest.mark.usefixtures("one_thread")

path = Path(__file__).parents[2] / "examples" / "families.py"
spec = importlib.util.spec_from_file_location("example_families", path)
families = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = families  # dataclasses look their module up
spec.loader.exec_module(families)


@pytest.mark.parametrize(
    "family", [x for x, example in families.EXAMPLES.items() if example.tiny in FULL_PIPELINES | EXAMPLES]
)
def test_example(family, capsys):
    families.main([family, "--tiny"])
    changed = re.fullmatch(r"\w+: guidance changed the latents by ([\d.]+)%\n", capsys.readouterr().out)
    assert float(changed[1]) > 0


def test_tiny_names_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "every_model", None)
    with pytest.raises(SystemExit, match=r"needs what they need: pip install '\.\[commands\]'"):
        families.main(["flux", "--tiny"])
    monkeypatch.setattr(families, "__file__", str(tmp_path / "examples" / "families.py"))
    with pytest.raises(SystemExit, match="--tiny takes its models from a checkout of the repository"):
        families.main(["flux", "--tiny"])


def test_the_list_of_examples(capsys):
    families.main([])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(families.EXAMPLES)
    with pytest.raises(SystemExit, match="no default weights here: name them with --model, or take --tiny"):
        families.main(["anyflow"])
