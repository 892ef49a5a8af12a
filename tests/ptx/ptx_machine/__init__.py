# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the PTX of one kernel on numpy arrays, all threads of some blocks side by side, with every access checked.

Section numbers in the comments are those of NVIDIA's "Parallel Thread Execution ISA", version 9.
"""

from .errors import PtxError
from .machine import Machine
from .memory import GlobalMemory
from .parse import Kernel, entries

__all__ = ["GlobalMemory", "Kernel", "Machine", "PtxError", "entries"]
