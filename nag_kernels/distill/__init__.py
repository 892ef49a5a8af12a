# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""One-step distillation by variational score distillation, with a guidance scale that is fixed or drawn (PG-SB)."""
