# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""wgmma: products of four warps with operands in shared memory (section 9.7.15).

Late they take place when they are waited for, with what then lies in their operands; until then their sums are NaN.
wgmma.fence is not checked.
"""

import functools
import re
from dataclasses import dataclass

import numpy as np

from .errors import PtxError
from .matrix import fragment
from .parse import Vector
from .registry import WARP, collective, indices, instruction
from .types import widen

SWIZZLES = {1: (64, 7), 2: (32, 3), 3: (16, 1)}  # mode -> elements of a row, rows of the pattern less one


@dataclass
class Shape:
    columns: int
    kind: str
    sums: list[int]  # registers
    left: list[int]  # registers, or none where the left operand lies in shared memory
    left_turned: bool
    right_turned: bool


@dataclass
class Product:
    shape: Shape
    threads: np.ndarray
    group: np.ndarray
    left: np.ndarray | None  # descriptors
    right: np.ndarray
    add: np.ndarray
    before: list[np.ndarray] | None  # the sums, which are NaN until the end

    def of(self, chosen: np.ndarray) -> "Product":
        left = None if self.left is None else self.left[chosen]
        before = None if self.before is None else [x[chosen] for x in self.before]
        return Product(
            self.shape, self.threads[chosen], self.group[chosen], left, self.right[chosen], self.add[chosen], before
        )


@functools.lru_cache(256)
def offsets(descriptor: int, outer: int, turned: bool) -> np.ndarray:
    """Where the elements [outer, 16] of an operand lie in a block's shared memory (matrix descriptor, section 9.7.15)."""
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    mode = descriptor >> 62 & 3
    if mode not in SWIZZLES or descriptor >> 49 & 7:
        raise PtxError("a matrix that is not swizzled, or with a base offset")
    unit, mask = SWIZZLES[mode]
    o, k = np.arange(outer)[:, None], np.arange(16)[None, :]
    if turned:  # rows run along the sum
        at = start + o // unit * leading + k // 8 * stride + k % 8 * (2 * unit) + o % unit * 2
    else:
        at = start + o // 8 * stride + o % 8 * (2 * unit) + k * 2
    return at ^ (at >> 7 & mask) << 4


@functools.lru_cache(256)
def units(descriptor: int, outer: int, turned: bool, first: int, last: int) -> np.ndarray:
    """The 16-byte units that rows `first` to `last` of an operand lie in."""
    return np.unique(offsets(descriptor, outer, turned)[first:last] // 16 * 16)


class Products:
    def __init__(self, m):
        self.m = m
        self.pending: list[Product] = []
        self.group = np.zeros(m.threads, np.int64)

    def begin(self, product: Product) -> None:
        m = self.m
        if m.clocks:
            m.clocks.begin_reads(product.threads[::WARP], self._operands(product))
        if not m.late:
            self._multiply(product)
        elif not any(
            p.shape.sums[0] in product.shape.sums and np.isin(p.threads, product.threads).any() for p in self.pending
        ):
            product.before = [m.rows[k][product.threads].copy() for k in product.shape.sums]
            for k in product.shape.sums:
                m.rows[k][product.threads] = 0xFFFFFFFF
        self.pending.append(product)

    def wait(self, threads: np.ndarray, left: int) -> None:
        waits = np.zeros(self.m.threads, bool)
        waits[threads] = True
        kept, over = [], False
        for product in self.pending:
            due = waits[product.threads] & (product.group < self.group[product.threads] - left)
            if due.any():
                ends = product if due.all() else product.of(due)
                if self.m.late:
                    self._multiply(ends)
                if self.m.clocks:
                    self.m.clocks.end_reads(ends.threads[::WARP], self._operands(ends))
                over = True
            if not due.all():
                kept.append(product.of(~due) if due.any() else product)
        self.pending = kept
        for product in kept if over and self.m.clocks else ():  # of a place that both read
            self.m.clocks.begin_reads(product.threads[::WARP], self._operands(product))

    def _operands(self, product: Product) -> list[np.ndarray]:
        """Places of 16 bytes that each warp reads."""
        m, shape, found = self.m, product.shape, []
        for k, thread in enumerate(product.threads[::WARP]):
            read = units(int(product.right[k * WARP]), shape.columns, shape.right_turned, 0, shape.columns)
            if product.left is not None:
                row = int(m.thread[thread]) // WARP % 4 * 16
                left = units(int(product.left[k * WARP]), 64, shape.left_turned, row, row + 16)
                read = np.concatenate([read, left])
            found.append(read + int(m.block[thread]) * m.shared.stride)
        return found

    def _matrix(self, block: int, descriptor: int, outer: int, turned: bool, kind: str) -> np.ndarray:
        at = offsets(descriptor, outer, turned)
        if int(at.max()) + 2 > self.m.shared.size:
            raise PtxError("a matrix beyond shared memory")
        return widen(self.m.shared.load(at + block * self.m.shared.stride, 2), kind)

    def _multiply(self, product: Product) -> None:
        m, shape, warps = self.m, product.shape, product.threads.size // WARP
        left = self._left(product)
        out = np.empty((warps, 16, shape.columns), np.float32)
        block, right = m.block[product.threads[::WARP]], product.right[::WARP]
        for key in set(zip(block.tolist(), right.tolist(), strict=True)):
            mine = (block == key[0]) & (right == key[1])
            matrix = self._matrix(*key, shape.columns, shape.right_turned, shape.kind)
            out[mine] = (left[mine].reshape(-1, 16) @ matrix.T).reshape(-1, 16, shape.columns)
        # A lane 4 g + t holds of each 8 columns 2 t and 2 t + 1 of row g, then of row g + 8.
        parts = out.reshape(warps, 2, 8, shape.columns // 8, 4, 2).transpose(3, 1, 5, 0, 2, 4).reshape(-1, warps * WARP)
        for n, (k, part) in enumerate(zip(shape.sums, parts, strict=True)):
            before = m.rows[k][product.threads] if product.before is None else product.before[n]
            total = np.where(product.add, before.view(np.float32), np.float32(0)) + part
            m.rows[k][product.threads] = total.view(np.uint32)

    def _left(self, product: Product) -> np.ndarray:
        m, shape, warps = self.m, product.shape, product.threads.size // WARP
        left = np.empty((warps, 16, 16), np.float32)
        if shape.left:
            for n, k in enumerate(shape.left):  # down first, then to the right
                row, column = n % 2 * 8, n // 2 * 8
                left[:, row : row + 8, column : column + 8] = fragment(m.rows[k][product.threads], shape.kind)
            return left
        for n, thread in enumerate(product.threads[::WARP]):
            matrix = self._matrix(int(m.block[thread]), int(product.left[n * WARP]), 64, shape.left_turned, shape.kind)
            row = int(m.thread[thread]) // WARP % 4 * 16
            left[n] = matrix[row : row + 16]
        return left


@instruction("wgmma.mma_async.sync.aligned")
@collective
def multiply(m, i):
    kind = i.parts[-1]
    columns = re.fullmatch(r"m64n(\d+)k16", i.parts[4])
    if columns is None or kind not in ("bf16", "f16") or i.parts[5:] != ["f32", kind, kind]:
        raise PtxError(i.op)
    sums, left, right, add, *numbers = i.operands
    in_registers = isinstance(left, Vector)
    signs, turned = [x.bits for x in numbers[:2]], [bool(x.bits) for x in numbers[2:]]
    if signs != [1, 1] or len(turned) != (1 if in_registers else 2):
        raise PtxError(i.op)
    shape = Shape(
        int(columns[1]), kind, [x.index for x in sums.items], [x.index for x in left.items] if in_registers else [],
        not in_registers and turned[0], turned[-1],
    )  # fmt: skip
    if len(shape.sums) != shape.columns // 2:
        raise PtxError(i.op)
    descriptor, left_descriptor = m.read(right, "u64"), None if in_registers else m.read(left, "u64")
    adds = m.read(add, "pred")

    def uniform(read, who, size):
        x = np.broadcast_to(read(who), size)
        if (x.reshape(-1, WARP) != x[::WARP, None]).any():
            raise PtxError("lanes of one warp that name different matrices")
        return x.copy()  # the register may change before the end

    def run(who):
        threads = indices(who)
        first = None if left_descriptor is None else uniform(left_descriptor, who, threads.size)
        product = Product(shape, threads, m.products.group[threads], first, uniform(descriptor, who, threads.size),
                          np.broadcast_to(adds(who), threads.size).copy(), None)  # fmt: skip
        m.products.begin(product)

    return run


@instruction("wgmma.commit_group")
def commit(m, i):
    def run(who):
        m.products.group[who] += 1

    return run


@instruction("wgmma.wait_group")
@collective
def wait(m, i):
    left = i.operands[0].bits
    return lambda who: m.products.wait(indices(who), left)
