# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m nag_kernels.evidence` runs the folder evidence/ of a checkout, which is no part of the installed package."""

import runpy
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


def main() -> None:
    if not (CHECKOUT / "evidence" / "__main__.py").exists():
        sys.exit(
            "nag_kernels.evidence: the evidence and its weights are in a checkout of the repository, not in an installed "
            "package: clone the repository and run `make evidence` there"
        )
    sys.path.insert(0, str(CHECKOUT))
    runpy.run_module("evidence", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
