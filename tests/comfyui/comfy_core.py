# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Finds ComfyUI's core and imports it for a CPU. It is GPL software: fetched for the tests alone, never part of this project."""

import importlib
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
    absent = [
        name for name in ("einops", "torchsde", "scipy", "transformers") if importlib.util.find_spec(name) is None
    ]
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
    absent = importlib.util.find_spec("torchvision") is None
    sys.modules.update(_torchvision() if absent else {})
    try:
        for name in ("comfy.samplers", "comfy.supported_models", "comfy.model_patcher"):
            importlib.import_module(name)
    finally:
        for name in _torchvision() if absent else ():
            sys.modules.pop(name)


def _torchvision():
    """What the core needs of torchvision, which need not be installed beside a torch for CPUs: resizing Cosmos' mask."""
    vision, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
    vision.transforms = transforms
    transforms.InterpolationMode = SimpleNamespace(NEAREST="nearest")
    transforms.functional = SimpleNamespace(
        resize=lambda x, size, interpolation: torch.nn.functional.interpolate(x, size, mode=interpolation)
    )
    return {"torchvision": vision, "torchvision.transforms": transforms}
