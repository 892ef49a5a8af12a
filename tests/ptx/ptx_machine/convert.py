# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Moves, conversions and bit fields (section 9.7.9, data movement and conversion; bfe is of 9.7.1)."""

import numpy as np

from .errors import PtxError
from .memory import SHARED_WINDOW
from .parse import Vector
from .registry import count, instruction
from .types import UNSIGNED, bits_of, dtype_of, flush, narrow, widen


@instruction("mov")
def move(m, i):
    """Also packs the parts of a vector into one register, the first the lowest, and the other way round."""
    kind = i.parts[-1]
    to, of = i.operands
    if isinstance(of, Vector):
        part = bits_of(kind) // len(of.items)
        reads, write, want = [m.read(x, f"b{part}") for x in of.items], m.write(to, kind), UNSIGNED[bits_of(kind)]

        def pack(who):
            parts = [np.broadcast_to(read(who), count(who)).astype(want) for read in reads]
            write(who, np.bitwise_or.reduce([x << want(k * part) for k, x in enumerate(parts)]))

        return pack
    if isinstance(to, Vector):
        part = bits_of(kind) // len(to.items)
        read, writes, own = m.read(of, f"b{bits_of(kind)}"), [m.write(x, f"b{part}") for x in to.items], UNSIGNED[part]

        def unpack(who):
            x = read(who)
            for k, write in enumerate(writes):
                write(who, (x >> x.dtype.type(k * part)).astype(own))

        return unpack
    read, write = m.read(of, kind), m.write(to, kind)
    return lambda who: write(who, read(who))


ROUNDED = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@instruction("cvt")
def convert(m, i):
    to, of = i.parts[-2:]
    if to in ("bf16x2", "f16x2"):  # the first operand goes to the upper half
        if of != "f32" or "rn" not in i.parts:
            raise PtxError(i.op)
        a, b = m.read(i.operands[1], "f32"), m.read(i.operands[2], "f32")
        write, kind = m.write(i.operands[0], "b32"), to[:-2]

        def pair(who):
            high, low = (narrow(np.atleast_1d(x(who)), kind).astype(np.uint32) for x in (a, b))
            write(who, high << np.uint32(16) | low)

        return pair
    write, wanted = m.write(i.operands[0], to if to != "bf16" else "b16"), dtype_of(to)
    if to in ("bf16", "f16") and of == "f32":
        if "rn" not in i.parts:
            raise PtxError(i.op)
        a = m.read(i.operands[1], "f32")
        return lambda who: write(who, narrow(np.atleast_1d(a(who)), to))
    if of in ("bf16", "f16") and to == "f32":
        a = m.read(i.operands[1], "b16")
        return lambda who: write(who, widen(np.atleast_1d(a(who)), of))
    a = m.read(i.operands[1], of)
    if of[0] == "f" and to[0] != "f":
        rounded, limits = ROUNDED[next(x for x in i.parts if x in ROUNDED)], np.iinfo(wanted)
        return lambda who: write(who, np.clip(np.nan_to_num(rounded(a(who))), limits.min, limits.max).astype(wanted))
    if "sat" in i.parts or "bf16" in (to, of):
        raise PtxError(i.op)
    if "ftz" in i.parts:
        return lambda who: write(who, flush(a(who)).astype(wanted))
    return lambda who: write(who, a(who).astype(wanted))


@instruction("cvta")
def generic_address(m, i):
    """Global addresses are generic ones; those of shared memory and parameters lie in windows of their own."""
    kind = i.parts[-1]
    read, write = m.read(i.operands[1], kind), m.write(i.operands[0], kind)
    if "shared" not in i.parts:
        return lambda who: write(who, read(who))
    window = np.uint64(SHARED_WINDOW)
    if "to" in i.parts:
        return lambda who: write(who, read(who) - window)
    return lambda who: write(who, read(who) + window)


@instruction("bfe")
def extract_bits(m, i):
    kind = i.parts[-1]
    if bits_of(kind) != 32:
        raise PtxError(i.op)
    a, write = m.read(i.operands[1], kind), m.write(i.operands[0], kind)
    first, length = m.read(i.operands[2], "u32"), m.read(i.operands[3], "u32")

    def run(who):
        """In 64 bits; a signed field takes its sign from its highest bit, which may not lie beyond bit 31."""
        begin, size = (np.asarray(x(who)).astype(np.int64) & 255 for x in (first, length))
        if (begin + size > 32).any():
            raise PtxError("a bit field beyond bit 31")
        field = a(who).astype(np.int64) >> begin & (np.int64(1) << size) - 1
        if kind == "s32":
            field = np.where(field >> np.maximum(size - 1, 0) & (size > 0), field - (np.int64(1) << size), field)
        write(who, field.astype(dtype_of(kind)))

    return run


@instruction("prmt")
def permute(m, i):
    """Bytes of two registers by four selectors; the mode that repeats a sign is not known here."""
    if i.op != "prmt.b32":
        raise PtxError(i.op)
    a, b, s = (m.read(x, "u32") for x in i.operands[1:4])
    write = m.write(i.operands[0], "b32")

    def run(who):
        both = a(who).astype(np.uint64) | b(who).astype(np.uint64) << np.uint64(32)
        selectors = np.asarray(s(who)).astype(np.uint64)
        if (selectors & np.uint64(0x8888)).any():
            raise PtxError("prmt with a repeated sign")
        out = np.zeros(np.shape(both), np.uint64)
        for k in range(4):
            chosen = selectors >> np.uint64(4 * k) & np.uint64(7)
            out |= (both >> chosen * np.uint64(8) & np.uint64(255)) << np.uint64(8 * k)
        write(who, out.astype(np.uint32))

    return run
