# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m nag_kernels` is the command `nag-kernels`."""

import sys

from nag_kernels_command import main

if __name__ == "__main__":
    sys.exit(main())
