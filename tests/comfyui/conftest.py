# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""ComfyUI's core for the tests of this folder, and the node."""

import functools
import importlib
from pathlib import Path

import comfy_core
import pytest
import torch
from tiny_comfy_models import MODELS
from tiny_comfy_newer import NEWER_MODELS

ALL = MODELS | NEWER_MODELS


@pytest.fixture(scope="session")
def node(request):
    """The node, in the core that was fetched or that `--comfy` names."""
    given = request.config.option.comfy
    folder = Path(given) if given else comfy_core.FETCHED
    reason = comfy_core.why_not(folder)
    if reason is not None:
        (pytest.fail if given else pytest.skip)(reason)
    comfy_core.load(folder)
    return importlib.import_module("nag_kernels.comfyui.node").NegativePromptInAttention().patch


@pytest.fixture(autouse=True)
def _core(node, one_thread):
    """Each test of this folder needs it."""


@pytest.fixture
def model():
    """The tiny model of a name, of one BaseModel in the whole run: whatever a test leaves in it, the next one finds."""

    def find(name):
        if not hasattr(importlib.import_module("comfy.supported_models"), ALL[name].config):
            pytest.skip(f"this ComfyUI has no {ALL[name].config} (make test-comfyui COMFY=path takes another)")
        return ALL[name], ALL[name].patcher(_model(name))

    return find


@functools.cache
def _model(name):
    with torch.random.fork_rng():
        return ALL[name].model()
