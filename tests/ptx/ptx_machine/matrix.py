# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Matrix instructions of one warp: ldmatrix, stmatrix and mma of 16-bit floats (section 9.7.14).

In every fragment lane 4 g + t holds of row g the columns 2 t and 2 t + 1: the words of a warp, one after the other, are the
rows of an 8 x 8 matrix of 16-bit elements. Products are exact and summed in float32, in an order of this machine's own.
"""

import numpy as np

from .errors import PtxError
from .parse import Vector
from .registry import WARP, collective, count, indices, instruction
from .types import widen


def _items(operand) -> tuple:
    return operand.items if isinstance(operand, Vector) else (operand,)


def _rows(m, who, address, matrices: int):
    """Threads and addresses of the lanes that name rows, lane 8 k + r row r of matrix k."""
    chosen = (slice(None), slice(0, 8 * matrices))
    threads = indices(who).reshape(-1, WARP)[chosen].reshape(-1)
    return threads, address(who).reshape(-1, WARP)[chosen].reshape(-1)


@instruction("ldmatrix.sync.aligned.m8n8")
@collective
def load_matrices(m, i):
    registers, address, turned = _items(i.operands[0]), m.address(i.operands[1]), "trans" in i.parts
    if f"x{len(registers)}" not in i.parts or i.parts[-1] != "b16":
        raise PtxError(i.op)
    writes, n = [m.write(register, "b32") for register in registers], len(registers)

    def run(who):
        threads, at = _rows(m, who, address, n)
        place = m.shared.place(m.block[threads], at, 16)
        if m.clocks:
            m.clocks.read(threads, place, 16)
        words = m.shared.load(place, 16)
        if turned:
            elements = words.view(np.uint16).reshape(-1, n, 8, 8)
            words = np.ascontiguousarray(elements.transpose(0, 1, 3, 2))
        fragments = words.view(np.uint32).reshape(-1, n, WARP)
        for k, write in enumerate(writes):
            write(who, fragments[:, k].reshape(-1))

    return run


@instruction("stmatrix.sync.aligned.m8n8")
@collective
def store_matrices(m, i):
    registers, address, turned = _items(i.operands[1]), m.address(i.operands[0]), "trans" in i.parts
    if f"x{len(registers)}" not in i.parts or i.parts[-1] != "b16":
        raise PtxError(i.op)
    reads, n = [m.read(register, "b32") for register in registers], len(registers)

    def run(who):
        threads, at = _rows(m, who, address, n)
        fragments = np.stack([read(who).reshape(-1, WARP) for read in reads], 1)
        if turned:
            elements = fragments.view(np.uint16).reshape(-1, n, 8, 8)
            fragments = np.ascontiguousarray(elements.transpose(0, 1, 3, 2)).view(np.uint32)
        words = fragments.reshape(-1, 4).view("V16")[:, 0]
        place = m.shared.place(m.block[threads], at, 16)
        if m.clocks:
            m.clocks.write(threads, place, 16)
        m.shared.store(place, words)

    return run


def fragment(words: np.ndarray, kind: str) -> np.ndarray:
    """[warps, 8, 8] in float32 of one word of each lane."""
    return widen(np.ascontiguousarray(words).view(np.uint16), kind).reshape(-1, 8, 8)


@instruction("mma.sync.aligned")
@collective
def multiply(m, i):
    """d [16, 8] = a [16, k] b [k, 8] + c; a by rows, b by columns."""
    shape, kind = i.parts[3], i.parts[7]
    depth = {"m16n8k16": 16, "m16n8k8": 8}.get(shape)
    if depth is None or i.parts[4:6] != ["row", "col"] or i.parts[6:] not in (["f32", kind, kind, "f32"],):
        raise PtxError(i.op)
    if kind not in ("bf16", "f16"):
        raise PtxError(i.op)
    d, a, b, c = (_items(operand) for operand in i.operands)
    words = [m.read(register, "b32") for register in (*a, *b)]
    sums, writes = [m.read(register, "f32") for register in c], [m.write(register, "f32") for register in d]
    blocks = depth // 8

    def run(who):
        warps = count(who) // WARP
        fragments = [fragment(read(who), kind) for read in words]
        left, right = np.empty((warps, 16, depth), np.float32), np.empty((warps, 8, depth), np.float32)
        for k in range(blocks):  # words of a go down first, then to the right
            left[:, :8, 8 * k : 8 * k + 8], left[:, 8:, 8 * k : 8 * k + 8] = fragments[2 * k], fragments[2 * k + 1]
            right[:, :, 8 * k : 8 * k + 8] = fragments[2 * blocks + k]
        product = np.matmul(left, right.transpose(0, 2, 1)).reshape(warps, 2, 8, 4, 2)
        for k, (total, write) in enumerate(zip(sums, writes, strict=True)):
            write(who, product[:, k // 2, :, :, k % 2].reshape(-1) + total(who))

    return run
