# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Finds ComfyUI's core and imports it for a CPU. It is GPL software: fetched for the tests alone, never part of this project."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

FETCHED = Path(__file__).parents[2] / ".comfyui"


def why_not(folder):
    """Why the core in this folder cannot be imported, or None."""
    if not (folder / "comfy" / "samplers.py").exists():
        return f"ComfyUI's core in {folder.name} (make test fetches it)"
    needs = ["einops", "torchsde", "scipy", "transformers"]
    listed = folder / "requirements.txt"
    wanted = listed.read_text() if listed.exists() else ""
    needs += [name for name in ("comfy-kitchen", "comfy-aimdo") if name in wanted]  # of newer cores
    absent = [name for name in needs if importlib.util.find_spec(name.replace("-", "_")) is None]
    return f"{', '.join(absent)}, which ComfyUI's core needs" if absent else None


def load(folder):
    """Makes `comfy` importable, once in a process."""
    if "comfy" in sys.modules:
        return
    sys.path.append(str(folder))
    logging.getLogger().setLevel(logging.ERROR)
    options = importlib.import_module("comfy.cli_args").args
    options.cpu = options.use_pytorch_cross_attention = True  # the attention that it has on most GPUs
    importlib.import_module("transformers")  # which looks for torchvision as it is imported
    absent = [name for name in ("torchvision", "torchaudio") if importlib.util.find_spec(name) is None]
    finder = _StandIns(absent)
    sys.meta_path.append(finder)
    try:
        for name in ("comfy.samplers", "comfy.supported_models", "comfy.model_patcher"):
            importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in absent]:
            sys.modules.pop(name)


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports packages that need not be installed beside a torch for CPUs, and of which the tests need one function: Cosmos'
    mask is resized by torchvision."""

    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, name, path, target=None):
        known = name.partition(".")[0] in self.packages
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec):
        return _StandIn(spec.name)

    def exec_module(self, module):
        module.__path__ = []


class _StandIn(ModuleType):
    InterpolationMode = SimpleNamespace(NEAREST="nearest")

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(f"{self.__name__}.{name}")

    def __call__(self, *arguments, **options):  # torchvision.transforms.functional.resize
        return torch.nn.functional.interpolate(arguments[0], arguments[1], mode=options["interpolation"])
