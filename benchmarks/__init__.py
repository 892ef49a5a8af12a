# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a negative prompt costs; `python -m benchmarks --help`."""
