# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The documents: their examples run, and the files, targets and modules that they name exist."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_readme_examples_run(example, tmp_path):
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    named = set(re.findall(r'save\("(.+?)"\)', example))
    assert {p.name for p in tmp_path.iterdir()} == named


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_a_page_names_exists(page):
    text = page.read_text()
    paths = re.findall(r"`((?:nag_kernels|csrc|tests|benchmarks|docs|triton_kernels)/[\w./-]*)`", text)
    paths += [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [p for p in paths if not ((ROOT / p).exists() or (page.parent / p).exists())]
    assert not missing
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)`", text)) <= targets
    for module in re.findall(r"python -m (nag_kernels[\w.]*|benchmarks[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
