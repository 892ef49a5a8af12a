# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which backends are built and loaded here, why the others are not, and how often each has run.

A backend is a name: "cuda" (C++, `csrc/cuda`), "triton" (`triton_kernels`), "cpu" (C++, `csrc/cpu`), "sdpa" (torch's own
attention and then the formula, every device) or "reference" (the formulas alone, every device). `NAG_BACKEND` forces one for
every call of the public functions, or, as "gpu", turns both kinds of GPU kernels on and leaves each call to gpu_choices.csv.
What they refuse goes to "sdpa", float64 to "reference". `NAG_LOG=debug` logs why a backend is not here and each call that
these two serve.
"""

import importlib
import importlib.util
import logging
import os
import sys
from typing import Any

import torch

from . import _ops, checks

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
OPERATIONS = tuple(checks.CHECKS)


def _load(module: str, why: str = "no C++ compiler that works at install time, or NAG_BUILD_EXT=0") -> tuple[Any, str]:
    """(module, "") or (None, why not); importing a compiled module registers its kernels with the dispatcher."""
    try:
        return importlib.import_module(module, __package__), ""
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError):
            return None, f"it was not built ({why})"
        return None, f"its library did not load: {error}"


_CPU, _CPU_MISSING = _load("._C")
if _CPU is None:
    LOG.debug("cpu is not available: %s", _CPU_MISSING)

TRITON_MODULE = "nag_kernels.triton_kernels.attention"
_OFF = "it has not run on a GPU yet; NAG_BACKEND={} or gpu, set before the import, turns it on"
_TRITON_MISSING = None
if importlib.util.find_spec("triton") is None:
    _TRITON_MISSING = "triton is not installed"
elif ASKED not in ("triton", "gpu"):
    _TRITON_MISSING = _OFF.format("triton")

_CUDA = None
if ASKED not in ("cuda", "gpu"):
    _CUDA_MISSING = _OFF.format("cuda")
elif torch.version.cuda is None:  # its library needs libtorch_cuda: not tried
    _CUDA_MISSING = "this torch is built without CUDA"
else:
    _CUDA, _CUDA_MISSING = _load(
        "._C_cuda", "no nvcc that works and is of the CUDA of torch at install time, or NAG_BUILD_CUDA=0"
    )


def available_backends() -> tuple[str, ...]:
    """The backends that are installed and loaded, fastest first."""
    missing = {"cpu": _CPU is None, "triton": _TRITON_MISSING is not None, "cuda": _CUDA is None}
    return tuple(name for name in BACKENDS if not missing.get(name))


def cpu_capability() -> str | None:
    """The instruction set that the C++ CPU kernels use ("avx512_bf16", "avx512", "avx2", ...), None without them."""
    return _CPU.capability() if _CPU is not None else None


def refusal(backend: str, device: str, op: str = "fused_guided_attention") -> str | None:
    """Why `backend` cannot run `op` on a device type ("cpu", "cuda", ...), or None if it can."""
    if backend in _ops.PLAIN:
        return None if op in _ops.PLAIN[backend] else "there is no attention in it"
    if backend == "cpu":
        if _CPU is None:
            return _CPU_MISSING
        return None if device == "cpu" else f"its tensors are on {device}, not on cpu"
    if backend == "cuda" and _CUDA is None:
        return _CUDA_MISSING
    if backend in ("cuda", "triton"):
        return (_TRITON_MISSING if backend == "triton" else None) or (
            None if device == "cuda" else f"its tensors are on {device}, not on cuda"
        )
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
