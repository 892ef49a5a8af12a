# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The folder for custom_nodes, its workflows, and the page about it."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

import nag_kernels

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "comfyui"
WORKFLOWS = sorted((FOLDER / "example_workflows").glob("*.json"))


def loaded(name="custom_nodes.nag"):
    """The folder, imported as ComfyUI imports it: from its path, under a name of its own."""
    spec = importlib.util.spec_from_file_location(
        name, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_comfyui_finds_the_node():
    module = loaded()
    (name,) = module.NODE_CLASS_MAPPINGS
    cls = module.NODE_CLASS_MAPPINGS[name]
    assert set(module.NODE_DISPLAY_NAME_MAPPINGS) == {name}
    inputs = cls.INPUT_TYPES()
    parameters = importlib.import_module("inspect").signature(getattr(cls, cls.FUNCTION)).parameters
    assert list(parameters)[1:] == list(inputs["required"])  # which ComfyUI passes by name
    for each, (kind, *options) in inputs["required"].items():
        if kind in ("FLOAT", "STRING"):
            assert parameters[each].default == options[0]["default"]
        if kind == "FLOAT":
            assert options[0]["min"] <= options[0]["default"] <= options[0]["max"]


def test_without_the_package_it_says_what_to_install(tmp_path):
    code = (
        "import importlib.util, sys\n"
        "sys.modules['nag_kernels'] = None\n"
        f"spec = importlib.util.spec_from_file_location('x', {str(FOLDER / '__init__.py')!r})\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: Negative Prompt in Attention: the Python package nag-kernels is missing" in done.stderr
    assert f"{sys.executable} -m pip install ." in done.stderr


def test_what_the_registry_reads():
    read = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    assert read["project"]["version"] == nag_kernels.__version__
    assert read["project"]["dependencies"] == (FOLDER / "requirements.txt").read_text().split() == ["nag-kernels"]
    assert {"PublisherId", "DisplayName", "Icon", "requires-comfyui"} == set(read["tool"]["comfy"])
    assert (FOLDER / "icon.svg").exists()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_fit_the_node(path):
    flow = json.loads(path.read_text())
    nodes = {node["id"]: node for node in flow["nodes"]}
    (ours,) = (node for node in nodes.values() if node["type"] in loaded().NODE_CLASS_MAPPINGS)
    inputs = loaded().NODE_CLASS_MAPPINGS[ours["type"]].INPUT_TYPES()["required"]
    widgets = [name for name, (kind, *_) in inputs.items() if not isinstance(kind, str) or kind in ("FLOAT", "STRING")]
    assert len(ours["widgets_values"]) == len(widgets)
    for name, value in zip(widgets, ours["widgets_values"], strict=True):
        kind, *options = inputs[name]
        assert value in kind if isinstance(kind, list) else isinstance(value, str if kind == "STRING" else float)
        if kind == "FLOAT":
            assert options[0]["min"] <= value <= options[0]["max"]
    assert [x["name"] for x in ours["inputs"]] == [name for name in inputs if name not in widgets]
    for number, source, slot, target, place, kind in flow["links"]:
        assert number in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][place]["link"] == number
        assert nodes[source]["outputs"][slot]["type"] == nodes[target]["inputs"][place]["type"] == kind
    (sampler,) = (node for node in nodes.values() if node["type"] == "KSampler")
    from_ours = [link for link in flow["links"] if link[1] == ours["id"]]
    assert [link[3] for link in from_ours] == [sampler["id"]]


def test_the_page_names_every_family_and_input():
    page = (ROOT / "docs" / "comfyui.md").read_text()
    families = importlib.import_module("nag_kernels.comfyui.families")
    rows = re.findall(r"^\| ([^|]+?) \| (cross-attention|joint attention) \| ([^|]+?) \|$", page, re.MULTILINE)

    def settings(x):
        return f"{x.nag_scale:g} / {x.nag_tau:g} / {x.nag_alpha:g}"

    expected = []
    for family in families.FAMILIES:
        kind = "joint attention" if family.kind.joint else "cross-attention"
        unet = family.denoisers == ("UNetModel",)
        own = "3 / 2.5 / 0.375, SDXL 3 / 2.5 / 0.5" if unet else settings(family.settings(None))
        expected.append((family.title, kind, own))
    assert rows == expected
    for name in loaded().NODE_CLASS_MAPPINGS["NagKernelsNegativePrompt"].INPUT_TYPES()["required"]:
        assert f"| `{name}` |" in page
    for reason in families.REFUSED.values():
        assert reason.partition(":")[0] in page
