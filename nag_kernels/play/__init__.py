# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""A page in the browser on which to try prompts and settings: `python -m nag_kernels.play`."""
