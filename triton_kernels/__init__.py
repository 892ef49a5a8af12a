# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The home of the Triton kernels, installed as `nag_kernels.triton_kernels`. They need triton; this module does not."""

if __name__ == "triton_kernels":  # the import name of another project on PyPI, which this folder must not shadow
    raise ImportError("import nag_kernels.triton_kernels: this folder is not the top-level package triton_kernels")
