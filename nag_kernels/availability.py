# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which backends are built and loaded here, why the others are not, and how often each has run.

A backend is a name: "cuda" (C++, `csrc/cuda`), "triton" (`triton_kernels`), "cpu" (C++, `csrc/cpu`), "sdpa" (torch's own
attention and then the formula, every device) or "reference" (the formulas alone, every device). `NAG_BACKEND` forces one for
every call of the public functions. `NAG_BACKEND=gpu` turns both kinds of GPU kernels on, and gpu_choices.csv chooses for each
call. If the variable is not set, a verdict of `python -m nag_kernels.prove` turns on the plans that are right and fast on the GPU
at hand. A call that they refuse goes to "sdpa", or to "reference" for float64. `NAG_LOG=debug` logs why a backend is not here,
and each call that "sdpa" and "reference" serve.
"""

import importlib
import importlib.util
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch

from . import _ops, checks
from .prove import verdicts

LOG = _ops.LOG
if os.environ.get("NAG_LOG"):
    _level = {"debug": 10, "info": 20, "warning": 30, "error": 40}.get(os.environ["NAG_LOG"].lower())
    if _level is None:
        raise ValueError(f"NAG_LOG must be debug, info, warning or error, got {os.environ['NAG_LOG']!r}")
    logging.basicConfig()
    LOG.setLevel(_level)

BACKENDS = ("cuda", "triton", "cpu", "sdpa", "reference")
ASKED = os.environ.get("NAG_BACKEND") or None  # read once: a compiled caller must not depend on the environment
FORCED = None if ASKED == "gpu" else ASKED
# What the first call on a GPU of which nothing is known does: prove the plan of least risk, say what to run, or nothing.
PROVE = os.environ.get("NAG_PROVE") or "ask"
if PROVE not in ("auto", "ask", "off"):
    raise ValueError(f"NAG_PROVE must be auto, ask or off, got {PROVE!r}")
OPERATIONS = tuple(checks.CHECKS)


SOURCES = (
    "in this folder of sources, which comes before an installed package: go to another folder, or build here by "
    "`pip install --no-build-isolation -e .`"
)


def in_source_folder() -> bool:
    return (Path(__file__).parents[1] / "setup.py").exists()


def _load(module: str, why: str = "no C++ compiler that works at install time, or NAG_BUILD_EXT=0") -> tuple[Any, str]:
    """(module, "") or (None, why not); importing a compiled module registers its kernels with the dispatcher."""
    try:
        return importlib.import_module(module, __package__), ""
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            return None, f"it was not built ({SOURCES if module == '._C' and in_source_folder() else why})"
        return None, f"its library did not load: {error}"


_CPU, _CPU_MISSING = _load("._C")
if _CPU is None:
    LOG.debug("cpu is not available: %s", _CPU_MISSING)

TRITON_MODULE = "nag_kernels.triton_kernels.attention"
_TRITON_HERE = importlib.util.find_spec("triton") is not None


def _off(family: str) -> str | None:
    """Why a family that is here is off; None where NAG_BACKEND or a verdict turned it on."""
    if ASKED in (family, "gpu") or (ASKED is None and family in verdicts.proven()):
        return None
    return (
        f"no GPU of this kind is known to run it: {verdicts.COMMAND} finds out and turns it on; "
        f"NAG_BACKEND={family} or gpu, set before the import, does so unproven"
    )


_CUDA = None
_CUDA_MISSING: str | None = None
if torch.version.cuda is None:  # its library needs libtorch_cuda: not tried
    _CUDA_MISSING = "this torch is built without CUDA"
elif _off("cuda") is None:
    _CUDA, _CUDA_MISSING = _load(
        "._C_cuda", "no nvcc that works and is of the CUDA of torch at install time, or NAG_BUILD_CUDA=0"
    )


def may_be_turned_on() -> bool:
    """Whether kernels for a GPU are on, or a verdict may turn them on in this process."""
    on = refusal("triton", "cuda") is None or refusal("cuda", "cuda") is None
    return on or (ASKED is None and torch.version.cuda is not None)


def available_backends() -> tuple[str, ...]:
    """The names of the backends that are installed and loaded, the fastest first."""
    here = {"cpu": _CPU is not None, **{name: refusal(name, "cuda") is None for name in ("cuda", "triton")}}
    return tuple(name for name in BACKENDS if here.get(name, True))


def cpu_capability() -> str | None:
    """The instruction set that the C++ CPU kernels use ("avx512_bf16", "avx512", "avx2", ...), None without them."""
    return _CPU.capability() if _CPU is not None else None


def refusal(backend: str, device: str) -> str | None:
    """Why `backend` cannot run on a device type ("cpu", "cuda", ...), or None if it can."""
    if backend in _ops.PLAIN:
        return None
    if backend == "cpu":
        if _CPU is None:
            return _CPU_MISSING
        return None if device == "cpu" else f"its tensors are on {device}, not on cpu"
    if backend in ("cuda", "triton"):
        missing = None if _TRITON_HERE else "triton is not installed"
        if backend == "cuda":
            late = "a verdict turned it on after the import: the next process loads it"
            missing = None if _CUDA is not None else _CUDA_MISSING or _off("cuda") or late
        elsewhere = None if device == "cuda" else f"its tensors are on {device}, not on cuda"
        return missing or _off(backend) or elsewhere
    return f"there is no backend of that name; the names are {', '.join(BACKENDS)}"


def counts() -> dict[str, int]:
    """How often each backend has run an operation in this process, counted inside the backend."""
    triton = sys.modules.get(TRITON_MODULE)
    return {
        "cuda": sum(_CUDA.launches().values()) if _CUDA is not None else 0,
        "triton": sum(triton.calls.values()) if triton else 0,
        "cpu": sum(_CPU.calls().values()) if _CPU is not None else 0,
        **{name: _ops.torch_calls[name] for name in ("sdpa", "reference")},
    }
