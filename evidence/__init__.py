# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The papers' claims, measured on the small model in this repository: `python -m nag_kernels.evidence`."""
