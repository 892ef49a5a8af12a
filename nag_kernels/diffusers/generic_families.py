# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The part of the table of families that goes the generic route: the model's own processors, of which only the call of
attention is replaced (`rebound_processor`)."""

from .family import Family

GENERIC_FAMILIES: dict[str, Family] = {}
