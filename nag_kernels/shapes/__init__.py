# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""shapes: a text-to-image model small enough to live in the repository, so that guidance can be seen to act."""
