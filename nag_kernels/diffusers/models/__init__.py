# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""One file for each model: what guidance must know of its denoiser, named as in diffusers."""
