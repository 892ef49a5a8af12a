# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Types of PTX (section 5.2) as types of numpy, and the 16-bit floats."""

import numpy as np

UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {16: np.float16, 32: np.float32, 64: np.float64}
BITS = {"pred": 1, "bf16": 16, "bf16x2": 32, "f16x2": 32, "f32x2": 64}
LARGEST_SUBNORMAL = np.float32(1.1754942e-38)


def bits_of(kind: str) -> int:
    return BITS[kind] if kind in BITS else int(kind[1:])


def dtype_of(kind: str) -> type:
    """Of the numbers in a register; a bfloat16 is its bits."""
    if kind == "pred":
        return np.bool_
    if kind[0] == "f" and kind in ("f16", "f32", "f64"):
        return FLOAT[int(kind[1:])]
    return (SIGNED if kind[0] == "s" else UNSIGNED)[bits_of(kind)]


def from_bfloat16(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(x):
    """To nearest, ties to even; a NaN becomes 0x7FFF (section 9.7.9, cvt)."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded).astype(np.uint16)


def widen(bits, kind: str):
    """16-bit floats, given as their bits, in float32."""
    return from_bfloat16(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)


def narrow(x, kind: str):
    """float32 as the bits of 16-bit floats, rounded to nearest even."""
    return to_bfloat16(x) if kind == "bf16" else x.astype(np.float16).view(np.uint16)


def flush(x):
    """Subnormal numbers as zeros of their sign."""
    return np.where(np.abs(x) <= LARGEST_SUBNORMAL, np.copysign(np.float32(0), x), x)
