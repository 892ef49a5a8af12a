# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The script in SD.Next itself, if `--sdnext` names a checkout. That is other people's software, for tests alone."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from real_run import MARK
from tiny_folders import sd15_folder, sdxl_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[sd15_folder, sdxl_folder], ids=["sd15", "sdxl"])
def found(request, tmp_path_factory):
    """What `real_run.py` found."""
    checkout, python = request.config.option.sdnext, request.config.option.sdnext_python
    if not checkout or not python:
        pytest.skip("SD.Next (--sdnext names a checkout, --sdnext-python a Python that has what it needs)")
    data = tmp_path_factory.mktemp("sdnext")
    model = request.param(data / "models" / "Diffusers")
    shutil.rmtree(data / "models" / "Diffusers" / "words")
    scripts = data / "extensions" / "nag" / "scripts"
    scripts.mkdir(parents=True)
    shutil.copy(ROOT / "sdnext" / "nag_guidance.py", scripts)
    command = [python, str(Path(__file__).parent / "real_run.py"), str(Path(checkout).resolve()), str(data), model.name]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=data, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    lines = [line for line in run.stdout.splitlines() if line.startswith(MARK)]
    assert lines, (run.stdout + run.stderr)[-4000:]
    return json.loads(lines[0].removeprefix(MARK))


@pytest.mark.parametrize("drawn", ["text", "image", "hires", "CFG"])
def test_pictures(found, drawn):
    pictures = found[drawn]
    assert all(isinstance(each, list) and len(each) == 1 for each in pictures.values()), pictures
    assert pictures["off"] == pictures["nothing"] == pictures["again"]
    assert len({pictures[name][0] for name in ("off", "on", "other")}) == 3


def test_refusals(found):
    words = [
        "negative prompt is empty",
        "nag_scale must be at least 1",
        "changes from step to step",
        "nag_alpha must be",
    ]
    for sentence, word in zip(found["refused"], words, strict=True):
        assert isinstance(sentence, str), sentence
        assert sentence.startswith("Negative guidance (NAG): ")
        assert word in sentence
    assert found["after"] == found["text"]["off"]
    assert "Negative guidance (NAG): the negative prompt is empty" in found["page"]


def test_the_detailer(found):
    off, on, nothing, again = found["detailer"]
    assert off == nothing == again != on
    kinds = found["detailer's calls"]
    assert len(kinds) == 4, kinds
    assert [kind.endswith("InpaintPipeline") for kind in kinds] == [False, True] * 2
    assert found["after the detailer"] == found["text"]["off"]


def test_offloaded(found):
    off, on, nothing, again = found["offloaded"]
    assert off == nothing == again != on


def test_the_picture_is_that_of_guide(found):
    for from_guide, from_plain in found["guide"]:
        assert from_guide == 0.0
        assert from_plain > 1e-3
