# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The site and its pages: they build without a warning, ask no other host for anything, and say what the code says."""

import ast
import importlib.util
import pathlib
import re
import subprocess
import sys
from functools import cache

import pytest

import nag_kernels.diffusers
import nag_kernels.export

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"


def script(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_site_builds_and_asks_no_other_host(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra 'docs' is not installed")
    build = script("build")
    build.PAGES = tmp_path / "pages"
    build.prepare()
    config = (ROOT / "mkdocs.yml").read_text()
    assert "docs_dir: build/docs" in config
    config = config.replace("docs_dir: build/docs", f"docs_dir: {build.PAGES}").replace(
        "paths: [.]", f"paths: [{ROOT}]"
    )
    config = config.replace("[docs/site/docstrings.py]", f"[{DOCS}/site/docstrings.py]")
    (tmp_path / "mkdocs.yml").write_text(config)
    command = build.mkdocs(tmp_path / "mkdocs.yml", "-d", str(tmp_path / "out"))
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pages = sorted((tmp_path / "out").glob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"""<(?:script|img|iframe)[^>]*\ssrc=["'](\w+://[^"']+)""", text)
        loaded += re.findall(
            r"""<link[^>]*rel=["'](?:stylesheet|preconnect|icon)["'][^>]*href=["'](\w+://[^"']+)""", text
        )
        loaded += re.findall(
            r"""<link[^>]*href=["'](\w+://[^"']+)["'][^>]*rel=["'](?:stylesheet|preconnect|icon)["']""", text
        )
        assert not loaded, page.name
    assert "73 kinds of denoisers" in (tmp_path / "out" / "index.html").read_text()


def test_links_of_the_site():
    build = script("build")
    assert build.REPOSITORY is None  # nobody has said where it will be
    placed = build.placed
    assert placed("[a](docs/gpu.md#x) ![b](docs/demo.png)", "") == "[a](gpu.md#x) ![b](demo.png)"
    assert placed("[a](../README.md#install), [b](gpu.md)", "docs") == "[a](index.md#install), [b](gpu.md)"
    assert placed("[run.py](../nag_kernels/diffusers/run.py)", "docs") == "run.py"
    assert placed("[NAG](https://arxiv.org/abs/2505.21179)", "docs") == "[NAG](https://arxiv.org/abs/2505.21179)"


def test_the_page_of_models_is_what_the_code_says():
    assert (DOCS / "models.md").read_text() == script("models_page").page(), "run python docs/site/models_page.py"


def test_the_page_of_models_tells_a_model_that_is_in_one_table_alone(monkeypatch):
    page = script("models_page")
    specs = page.all_models()
    monkeypatch.setattr(page, "all_models", lambda: {name: spec for name, spec in specs.items() if "Flux2" not in name})
    with pytest.raises(ValueError, match=r"must name the same denoisers; only one has.*Flux2Transformer2DModel"):
        page.page()


def test_every_public_name_is_on_the_api_page():
    listed = set(re.findall(r"^::: [\w.]+\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE))
    processors = {name for name in nag_kernels.diffusers.__all__ if "Processor" in name}  # docs/models.md has these
    public = {*nag_kernels.__all__, *nag_kernels.diffusers.__all__} - processors
    assert public <= listed
    assert {name for name in listed - public if not hasattr(nag_kernels.export, name)} == set()


@cache
def said():
    """All texts of the package, with … for what is put in at run time."""
    found = []
    for path in sorted((ROOT / "nag_kernels").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(x.value if isinstance(x, ast.Constant) else "…" for x in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


MESSAGES = re.findall(r"^\| `([^`]*…[^`]*|guide[^`]*)` \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_of_the_page_on_trouble_are_those_of_the_code(message):
    """Each piece between two … is a piece of a message."""
    pieces = [x.strip() for x in message.split("…") if len(x.strip()) > 3]
    assert pieces
    for piece in pieces:
        assert piece in said(), piece


def test_there_are_messages():
    assert len(MESSAGES) >= 30


@pytest.mark.parametrize("page", ["own_model.md"])
def test_examples_that_are_whole_run(page, tmp_path):
    whole = [
        x for x in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL) if "import torch\n" in x
    ]
    assert whole
    for example in whole:
        done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
