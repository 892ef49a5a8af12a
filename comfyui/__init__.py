# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The folder for ComfyUI's custom_nodes: it hands on the node that the package nag-kernels brings."""

import sys

try:
    from nag_kernels.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
except ModuleNotFoundError as error:
    if error.name not in ("nag_kernels", "nag_kernels.comfyui"):
        raise
    raise ImportError(
        "Negative Prompt in Attention: the Python package nag-kernels is missing or too old. In a checkout of it, install "
        f"it into the Python that runs ComfyUI, and start ComfyUI again: {sys.executable} -m pip install ."
    ) from error

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
