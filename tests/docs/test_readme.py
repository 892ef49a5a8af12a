# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The documents: their examples run, and the files, targets and modules that they name exist."""

import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

import nag_kernels

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
# What GitHub reads: workflows, forms for issues, the text of a pull request.
FORMS = sorted(path for path in (ROOT / ".github").rglob("*") if path.suffix in (".yml", ".md"))
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
PUBLISHED = {
    "flux": "FluxPipeline",
    "sdxl": "AutoPipelineForText2Image",
}  # published weights: here a tiny pipeline in their place
OWN = [x for x in EXAMPLES if "from_pretrained" not in x]
FOLDERS = "nag_kernels|csrc|tests|benchmarks|docs|triton_kernels|evidence|examples|.github"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
DRAWING = ROOT / "docs" / "architecture.svg"
# | question | [file](../file) | `what to look for there` |
ROWS = re.findall(
    r"^\| ([^|]+) \| \[([^]]+)\]\(\.\./([^)]+)\) \| `([^`]+)` \|$", ARCHITECTURE.read_text(), re.MULTILINE
)


@pytest.mark.parametrize("tiny", PUBLISHED)
def test_readme_examples_of_published_models(tiny, tmp_path, monkeypatch):
    """The lines as they stand, on the real pipeline class with random weights; without guidance the picture is another."""
    import diffusers
    from every_model import pipeline

    assert sum("from_pretrained" in x for x in EXAMPLES) == len(PUBLISHED)
    (example,) = (x for x in EXAMPLES if PUBLISHED[tiny] in x)
    pipe, moved = pipeline(tiny), []

    class Small(type(pipe)):
        def __call__(self, prompt, **options):
            seed = torch.Generator().manual_seed(0)
            return super().__call__(prompt, height=16, width=16, generator=seed, **options)

        def to(self, device):
            moved.append(device)

        def enable_model_cpu_offload(self):
            moved.append("offload")

    def from_pretrained(name, *, torch_dtype, variant=None):
        assert name in ("black-forest-labs/FLUX.1-schnell", "stabilityai/sdxl-turbo")
        assert torch_dtype == {"flux": torch.bfloat16, "sdxl": torch.float16}[tiny]
        pipe.__class__ = Small
        return pipe

    monkeypatch.setattr(getattr(diffusers, PUBLISHED[tiny]), "from_pretrained", from_pretrained)
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    (name,) = tmp_path.iterdir()
    steered = np.asarray(Image.open(name)).astype(float)
    exec(re.sub(r"with guide\(.*\):", "if True:", example), {})
    plain = np.asarray(Image.open(name)).astype(float)
    assert moved == [{"flux": "offload", "sdxl": "cuda"}[tiny]] * 2
    assert abs(plain - steered).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("example", OWN, ids=range(len(OWN)))
def test_readme_examples_run(example, tmp_path):
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    named = set(re.findall(r'save\("(.+?)"\)', example))
    assert {p.name for p in tmp_path.iterdir()} == named
    if named == {"plain.png", "steered.png"}:  # the first thing a newcomer sees
        plain, steered = (np.asarray(Image.open(tmp_path / name)).astype(float) for name in sorted(named))
        assert abs(plain - steered).mean() > 15


@pytest.mark.parametrize("page", [*PAGES, *FORMS], ids=lambda p: p.name)
def test_what_a_page_names_exists(page):
    text = page.read_text()
    paths = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text)
    paths += [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    if page in FORMS:  # they name files without backticks
        paths += re.findall(r"(?:docs|tests)/[\w/]+\.\w+|[A-Z]+\.(?:md|cff)", text)
    missing = [p for p in paths if not ((ROOT / p).exists() or (page.parent / p).exists())]
    assert not missing
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^ {4}|run: )make ([a-z-]+)", text, re.MULTILINE))
    named |= {target for x in re.findall(r"target: \[(.+)\]", text) for target in x.split(", ")}  # a workflow's matrix
    assert named <= targets
    for module in re.findall(r"python -m (nag_kernels[\w.]*|benchmarks[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    known = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert set(re.findall(r"""["']\.\[(\w+)\]["']""", text)) <= known


def test_architecture_says_where_things_are():
    assert len(ROWS) >= 15
    # No row is left out because it is written in another way.
    table = ARCHITECTURE.read_text().partition("## Where is")[2].partition("## The folders")[0]
    assert len(ROWS) == len(re.findall(r"^\|", table, re.MULTILINE)) - 2


@pytest.mark.parametrize(("shown", "path", "look_for"), [row[1:] for row in ROWS], ids=[row[2] for row in ROWS])
def test_architecture_names_the_file(shown, path, look_for):
    assert shown == path
    assert (ROOT / path).is_file()
    assert re.search(rf"\b{re.escape(look_for)}\b", (ROOT / path).read_text())


def test_drawing_and_text_of_the_architecture_name_the_same_files():
    written = "\n".join(text for text in ElementTree.parse(DRAWING).getroot().itertext())
    block = re.search(r"```text\n(.*?)```", ARCHITECTURE.read_text(), re.DOTALL)[1]
    found = [
        set(re.findall(r"(?:nag_kernels|csrc|triton_kernels)/[\w/.]*\w/?", x))
        for x in (re.sub(r"attention/\s+dual", "attention/dual", written), block)
    ]
    assert len(found[0]) > 10
    assert found[0] == found[1]
    assert all((ROOT / path).exists() for path in found[0])


def test_the_page_on_adding_a_model_quotes_the_files():
    quoted = re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / "docs" / "add_a_model.md").read_text(), re.DOTALL)
    assert len({path for path, _ in quoted}) == 3
    for path, code in quoted:
        assert code in (ROOT / path).read_text(), path


def test_terms_of_the_glossary():
    text = (ROOT / "docs" / "glossary.md").read_text()
    rows = re.findall(r"^\| (\*\*.+?\*\*) \| (.+) \|$", text, re.MULTILINE)
    terms = [term for names, _ in rows for term in re.findall(r"\*\*(.+?)\*\*", names)]
    assert len(rows) >= 25
    assert len(terms) == len(set(terms))
    wrong = [names for names, meaning in rows if not meaning.endswith(".") or re.search(r"\w{3,}[.] [A-Z]", meaning)]
    assert not wrong  # one sentence each


def test_forms_are_yaml():
    yaml = pytest.importorskip("yaml")
    read = {
        path.name: yaml.safe_load(path.read_text()) for path in [*FORMS, ROOT / "CITATION.cff"] if path.suffix != ".md"
    }
    assert {"ci.yml", "wheels.yml", "docs.yml", "bug.yml", "model_request.yml", "config.yml"} <= set(read)
    assert read["CITATION.cff"]["version"] == nag_kernels.__version__
    for name in ("bug.yml", "model_request.yml"):
        ids = [part["id"] for part in read[name]["body"] if part["type"] != "markdown"]
        assert len(ids) == len(set(ids))


def test_readme_says_what_a_step_costs():
    """The range over the models in the tables of docs/speed.md."""
    cells = [re.split(r" *\| *", line)[1:-1] for line in (ROOT / "docs" / "speed.md").read_text().splitlines()
             if line.startswith("| Intel") and "%" in line]  # fmt: skip
    assert len(cells) > 8
    cfg, ours = ([round(float(row[column].split()[0])) for row in cells] for column in (2, 4))
    readme = (ROOT / "README.md").read_text()
    assert f"adds {min(ours):+d} to {max(ours):+d} % to a denoising step" in readme
    assert f"CFG adds {min(cfg)} to {max(cfg)} %" in readme
