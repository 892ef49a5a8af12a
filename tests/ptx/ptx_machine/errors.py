# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The one exception of the machine."""


class PtxError(RuntimeError):
    """The program did what PTX leaves undefined, or what this machine does not know."""
