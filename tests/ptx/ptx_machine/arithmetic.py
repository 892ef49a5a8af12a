# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Integer, logic and floating point instructions and comparisons (sections 9.7.1 to 9.7.8).

Approximations (ex2.approx, rcp.approx, div.full) are computed in float64 and rounded, which is within what PTX allows
them. A fused multiplication and addition in float32 is that of float64, rounded once more.
"""

import numpy as np

from .errors import PtxError
from .registry import instruction
from .types import SIGNED, UNSIGNED, bits_of, dtype_of, flush, widen

TWO = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


def operands(m, i, *kinds: str):
    return [m.read(operand, kind) for operand, kind in zip(i.operands[1:], kinds, strict=True)]


def simple(m, i, kind: str, function, count: int = 2):
    a, *rest = operands(m, i, *[kind] * count)
    to = m.write(i.operands[0], kind)
    if count == 1:
        return lambda who: to(who, function(a(who)))
    if count == 2:
        b = rest[0]
        return lambda who: to(who, function(a(who), b(who)))
    b, c = rest
    return lambda who: to(who, function(a(who), b(who), c(who)))


def paired(m, i, function, count: int):
    """Two float32 in 64 bits (.f32x2)."""
    reads, to = operands(m, i, *["b64"] * count), m.write(i.operands[0], "b64")

    def run(who):
        pairs = [np.atleast_1d(np.ascontiguousarray(read(who))).view(np.float32) for read in reads]
        to(who, np.ascontiguousarray(function(*pairs)).view(np.uint64))

    return run


def ftz(i, function):
    """Subnormal inputs and results are zeros under .ftz."""
    if "ftz" not in i.parts:
        return function
    return lambda *x: flush(function(*(flush(each) for each in x)))


@instruction("add", "sub", "mul", "and", "or", "xor")
def two(m, i):
    head, kind = i.parts[0], i.parts[-1]
    if kind in ("f16", "bf16") and "f32" in i.parts:  # a 16-bit number and a float32 (sm_100 and newer)
        a, b, to = m.read(i.operands[1], "b16"), m.read(i.operands[2], "f32"), m.write(i.operands[0], "f32")
        function = TWO[head]
        return lambda who: to(who, function(widen(a(who), kind), b(who)))
    if kind == "f32x2":
        return paired(m, i, TWO[head], 2)
    if kind == "pred":
        return simple(m, i, kind, {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[head])
    if "wide" in i.parts:
        wide = (SIGNED if kind[0] == "s" else UNSIGNED)[2 * bits_of(kind)]
        a, b = operands(m, i, kind, kind)
        to = m.write(i.operands[0], kind[0] + str(2 * bits_of(kind)))
        return lambda who: to(who, np.multiply(a(who), b(who), dtype=wide))
    if "hi" in i.parts and bits_of(kind) < 64:
        wide, bits = np.int64 if kind[0] == "s" else np.uint64, bits_of(kind)
        return simple(m, i, kind, lambda a, b: (np.multiply(a, b, dtype=wide) >> wide(bits)).astype(dtype_of(kind)))
    if "hi" in i.parts or kind in ("f16", "bf16", "f16x2", "bf16x2"):
        raise PtxError(i.op)
    return simple(m, i, kind, ftz(i, TWO[head]))


@instruction("mad")
def multiply_add(m, i):
    kind = i.parts[-1]
    if "wide" in i.parts:
        wide = (SIGNED if kind[0] == "s" else UNSIGNED)[2 * bits_of(kind)]
        name = kind[0] + str(2 * bits_of(kind))
        a, b, c = operands(m, i, kind, kind, name)
        to = m.write(i.operands[0], name)
        return lambda who: to(who, np.multiply(a(who), b(who), dtype=wide) + c(who))
    if "lo" not in i.parts:
        raise PtxError(i.op)
    return simple(m, i, kind, lambda a, b, c: a * b + c, 3)


def fused(a, b, c):
    return (np.multiply(a, b, dtype=np.float64) + c).astype(np.float32)


@instruction("fma")
def fused_multiply_add(m, i):
    if i.parts[-1] == "f32x2":
        return paired(m, i, fused, 3)
    if i.parts[-1] != "f32":
        raise PtxError(i.op)
    return simple(m, i, "f32", ftz(i, fused), 3)


def _extreme(number, nan):
    """Of floats: a number wins over a NaN, unless .NaN is asked for. Of equal zeros the sign does not matter here."""

    def build(m, i):
        kind = i.parts[-1]
        function = nan if "NaN" in i.parts or kind[0] != "f" else number
        if len(i.operands) == 4:  # of three (sm_100 and newer)
            return simple(m, i, kind, lambda a, b, c: function(function(a, b), c), 3)
        return simple(m, i, kind, ftz(i, function))

    return build


instruction("min")(_extreme(np.fmin, np.minimum))
instruction("max")(_extreme(np.fmax, np.maximum))


def _quotient(a, b):
    """Integers, cut off towards zero; what a division by zero gives is not defined."""
    if (np.asarray(b) == 0).any():
        raise PtxError("a division by zero")
    if a.dtype.kind == "u":
        return a // b
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient).astype(a.dtype)


@instruction("div")
def divide(m, i):
    kind = i.parts[-1]
    return simple(m, i, kind, ftz(i, np.divide) if kind[0] == "f" else _quotient)


@instruction("rem")
def remainder(m, i):
    return simple(m, i, i.parts[-1], lambda a, b: a - _quotient(a, b) * b)


@instruction("shl", "shr")
def shift(m, i):
    """By more than the width: zeros, or the sign (section 9.7.8, shl and shr)."""
    kind, left = i.parts[-1], i.parts[0] == "shl"
    bits, signed = bits_of(kind), kind[0] == "s"
    a, b, to = m.read(i.operands[1], kind), m.read(i.operands[2], "u32"), m.write(i.operands[0], kind)

    def run(who):
        x, by = a(who), b(who)
        least = np.minimum(by, np.uint32(bits - 1)).astype(x.dtype)
        if left:
            y = x << least
        else:
            y = x >> least
        to(who, y if signed and not left else np.where(by < bits, y, x.dtype.type(0)))

    return run


ONE = {
    "neg": np.negative,
    "abs": np.abs,
    "not": np.invert,
    "rcp": lambda x: np.float32(1) / x,
    "sqrt": np.sqrt,
    "ex2": lambda x: np.exp2(x.astype(np.float64)).astype(np.float32),
    "lg2": lambda x: np.log2(x.astype(np.float64)).astype(np.float32),
}


@instruction(*ONE)
def one(m, i):
    head, kind = i.parts[0], i.parts[-1]
    if kind == "pred":
        return simple(m, i, kind, np.logical_not, 1)
    if head in ("rcp", "sqrt", "ex2", "lg2") and kind != "f32":
        raise PtxError(i.op)
    return simple(m, i, kind, ftz(i, ONE[head]), 1)


ORDERED = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


def comparison(name: str, kind: str):
    """Ordered comparisons are false of a NaN, unordered ones (equ, neu, ...) true (section 9.7.6, setp)."""
    unordered = kind[0] == "f" and name.endswith("u")
    function = ORDERED[name.removesuffix("u") if unordered else name]
    if kind[0] != "f":
        return function
    if unordered:
        return lambda a, b: function(a, b) | np.isnan(a) | np.isnan(b)
    if name == "ne":
        return lambda a, b: (a != b) & ~(np.isnan(a) | np.isnan(b))
    return function


@instruction("setp")
def set_predicate(m, i):
    kind = i.parts[-1]
    function = comparison(i.parts[1], kind)
    a, b = m.read(i.operands[1], kind), m.read(i.operands[2], kind)
    to = m.write(i.operands[0], "pred")
    if len(i.operands) == 3:
        return lambda who: to(who, function(a(who), b(who)))
    join = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[i.parts[2]]
    c = m.read(i.operands[3], "pred")
    return lambda who: to(who, join(function(a(who), b(who)), c(who)))


@instruction("selp")
def select(m, i):
    kind = i.parts[-1]
    a, b, p = m.read(i.operands[1], kind), m.read(i.operands[2], kind), m.read(i.operands[3], "pred")
    to = m.write(i.operands[0], kind)
    return lambda who: to(who, np.where(p(who), a(who), b(who)))
