# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m nag_kernels.evidence` runs the folder evidence/ of a checkout."""

from . import checkout


def main(arguments: list[str] | None = None) -> None:
    checkout.run("evidence", arguments)


if __name__ == "__main__":
    main()
