# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m nag_kernels.prove`: each plan for a GPU shows on the user's own that it is right and how fast, in a process of its
own; what comes of it is a file in the user's cache folder, which turns plans on.

    verdicts.py    the file: where it lies, what it holds for, and what it says of a call
    layers.py      the layers that are timed
    cases.py       what a plan must get right, and its times, on the device at hand
    child.py       the process that does so for one plan
    run.py         starts these processes, and ends those that hang
"""
