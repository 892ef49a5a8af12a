# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The namespace of the operations in `torch.ops`.

It is one constant, for Python and for the libraries in C++ (setup.py hands it to the compiler), so that another build of this
package, from a hub of kernels say, can have a namespace of its own and be loaded into the same process.
"""

from typing import Any

import torch

# Beside it there are NAMESPACE + "_cuda", the CUDA library's own, and "_gpu", the Python behind the CUDA library.
NAMESPACE = "nag"


def operations(part: str = "") -> Any:
    """`torch.ops.nag`, or `torch.ops.nag_cuda` for the part "_cuda"."""
    return getattr(torch.ops, NAMESPACE + part)
