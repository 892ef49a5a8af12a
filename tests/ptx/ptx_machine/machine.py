# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The threads of some blocks, their registers, and the order in which they run.

A register is an array over threads. Of the threads that can run, those at the lowest place in the program step, together, up
to the next place where others stand: so threads that a branch parted meet again, and warps that do different things wait for
each other at barriers only. Registers begin as NaN, shared memory as well.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np

from . import arithmetic, asynchronous, bulk, cluster, control, convert, load_store, matrix, mbarrier, warp, wgmma  # noqa: F401
from .errors import PtxError
from .memory import PARAMETER_WINDOW, GlobalMemory, SharedMemory
from .parse import Address, Instruction, Kernel, Name, Number, Register
from .races import Clocks
from .registry import PARKED, WARP, Jump, builder, indices
from .types import FLOAT, SIGNED, UNSIGNED, bits_of, dtype_of


class Machine:
    READY, BARRIER, CLUSTER_BARRIER, SLEEPING, HELD, DONE = range(6)

    def __init__(
        self, kernel: Kernel, memory: GlobalMemory, threads: int, dynamic_shared: int = 0, *, cluster: int = 1,
        late: bool = True, order: int = 0, races: bool = True,
    ):  # fmt: skip
        """threads: of a block. late: what is asynchronous takes place when it is waited for, else at once.

        order: 0 all threads side by side; 1, -1 one warp as far as it gets, the first one first or the last one.
        """
        if threads % WARP:
            raise PtxError(f"blocks of {threads} threads are no whole warps")
        self.kernel, self.memory, self.block_threads, self.cluster = kernel, memory, threads, cluster
        self.shared_bytes = kernel.static_shared + dynamic_shared
        self.late, self.order, self.races = late, order, races
        self.rows: list[np.ndarray | None] = [None] * len(kernel.registers)
        self.grid = (1, 1, 1)
        self.at = self.held = 0
        self.executed = 0  # instructions of single threads
        self.opcodes: Counter[str] = Counter()
        self.steps = [self._step(i) for i in kernel.code]

    # --- a launch

    def launch(self, grid: tuple[int, ...], parameters: bytes, together: int = 8) -> None:
        """Blocks run in groups of `together`, side by side, and the groups one after the other."""
        if len(parameters) > self.kernel.parameter_bytes:
            raise PtxError(f"{len(parameters)} bytes of parameters for {self.kernel.parameter_bytes}")
        self.parameters = np.frombuffer(parameters.ljust(self.kernel.parameter_bytes, b"\0"), np.uint8).copy()
        self.grid = (*grid, 1, 1)[:3]
        blocks = np.indices(self.grid[::-1]).reshape(3, -1)[::-1].T.astype(np.uint32)  # x the fastest
        if len(blocks) % self.cluster:
            raise PtxError(f"{len(blocks)} blocks are no whole clusters of {self.cluster}")
        step = max(1, together // self.cluster) * self.cluster
        with np.errstate(all="ignore"):
            for first in range(0, len(blocks), step):
                self.first_block = first
                self._run(blocks[first : first + step])

    def _run(self, blocks: np.ndarray) -> None:
        self.blocks, self.threads = blocks, len(blocks) * self.block_threads
        self.thread = np.tile(np.arange(self.block_threads, dtype=np.uint32), len(blocks))
        self.block = np.repeat(np.arange(len(blocks)), self.block_threads)
        self.shared = SharedMemory(len(blocks), self.shared_bytes)
        self.clocks = Clocks(self) if self.races else None
        self.place = np.zeros(self.threads, np.int64)
        self.state = np.full(self.threads, self.READY)
        self.held = 0
        self.copies = asynchronous.Copies(self)
        self.products = wgmma.Products(self)
        self.barriers = mbarrier.Barriers(self)
        self.cluster_barrier = cluster.ClusterBarrier(self)
        self._clear_registers()
        while self._turn():
            pass
        if self.copies.pending:
            raise PtxError("a block ended with copies (cp.async) for which nobody waited")
        if self.barriers.pending:
            raise PtxError("a block ended with bulk copies for which nobody waited")
        if self.products.pending:
            raise PtxError("a block ended with products (wgmma) for which nobody waited")

    def _clear_registers(self) -> None:
        widths = [bits_of(kind) for kind in self.kernel.registers]
        for bits in set(widths):
            mine = [k for k, width in enumerate(widths) if width == bits]
            bank = np.empty((len(mine), self.threads), np.bool_ if bits == 1 else UNSIGNED[bits])
            bank.view(np.uint8).fill(0 if bits == 1 else 0xFF)
            for k, row in zip(mine, bank, strict=True):
                self.rows[k] = row

    def _turn(self) -> bool:
        """The next threads run until they branch apart, wait, or meet others. False when all are done."""
        ready = self.state == self.READY
        if not ready.any():
            if (self.state == self.DONE).all():
                return False
            if not self.barriers.complete_one():
                self._deadlock()
            return True
        if self.order:
            warps = np.nonzero(ready)[0] // WARP
            ready &= np.arange(self.threads) // WARP == (warps.min() if self.order > 0 else warps.max())
        places = self.place[ready]
        at = int(places.min())
        higher = places[places > at]
        who = np.nonzero(ready & (self.place == at))[0]
        if who[-1] - who[0] + 1 == who.size:
            who = slice(int(who[0]), int(who[-1]) + 1)
        self._advance(at, who, int(higher.min()) if higher.size else len(self.steps) + 1)
        return True

    def _deadlock(self) -> None:
        stuck = np.unique(self.place[self.state != self.DONE])
        texts = [self.kernel.code[min(max(p - 1, 0), len(self.kernel.code) - 1)].text[:80] for p in stuck[:6]]
        raise PtxError(f"deadlock: threads wait for ever behind {texts}")

    def _advance(self, at: int, who, stop: int) -> None:
        steps, size = self.steps, indices(who).size
        while True:
            if at == stop:
                self.place[who] = at
                return
            if at >= len(steps):
                control.finish(self, who)
                return
            self.at = at
            self.executed += size
            result = steps[at](who)
            if result is None:
                at += 1
            elif result is PARKED:
                return
            elif result.threads is None:
                at = result.target
                if at > stop:
                    self.place[who] = at
                    return
            else:
                self.place[who] = at + 1
                self.place[result.threads] = result.target
                return

    def _step(self, i: Instruction) -> Callable:
        try:
            run = builder(i)(self, i)
        except (PtxError, KeyError, IndexError, ValueError, AttributeError) as error:
            message = f"not known: {i.text[:160]} ({error})"

            def run(who):
                raise PtxError(message)

        opcodes, op, text = self.opcodes, i.op, i.text

        def checked(who):
            opcodes[op] += 1
            try:
                return run(who)
            except PtxError as error:
                raise error if text in str(error) else PtxError(f"{error}: {text[:160]}") from None

        return checked if i.guard is None else self._guarded(i, checked)

    def _guarded(self, i: Instruction, run: Callable) -> Callable:
        rows, k, negated = self.rows, i.guard.index, i.negated

        def guarded(who):
            taken = ~rows[k][who] if negated else rows[k][who]
            if taken.all():
                return run(who)
            if not taken.any():
                return None
            threads = indices(who)
            result = run(threads[taken])
            if result is PARKED:
                self.place[threads[~taken]] = self.at + 1
            elif isinstance(result, Jump):
                return Jump(result.target, threads[taken] if result.threads is None else result.threads)
            return result

        return guarded

    def global_thread(self, who) -> np.ndarray:
        """Numbers over all blocks of the launch."""
        return self.first_block * self.block_threads + indices(who)

    def load_from_cluster(self, threads: np.ndarray, address: np.ndarray, size: int) -> np.ndarray:
        return cluster.load_from_cluster(self, threads, address, size)

    # --- operands

    def read(self, operand, kind: str) -> Callable:
        """A function of the threads to the operand's values as `kind` (section 9.4 on operands of another size)."""
        rows, want = self.rows, dtype_of(kind)
        if isinstance(operand, Register):
            k, own = operand.index, bits_of(operand.type)
            if kind == "pred":
                return lambda who: rows[k][who]
            if own == bits_of(kind):
                return (lambda who: rows[k][who]) if UNSIGNED[own] is want else (lambda who: rows[k][who].view(want))
            if own > bits_of(kind):
                small = UNSIGNED[bits_of(kind)]
                return lambda who: rows[k][who].astype(small).view(want)
            raise PtxError(f"a register of {own} bits read as {kind}")
        if isinstance(operand, Number):
            value = self._number(operand, kind)
            return lambda who: value
        if isinstance(operand, Name):
            return self._named(operand.name, kind)
        raise PtxError(f"cannot be read: {operand}")

    @staticmethod
    def _number(number: Number, kind: str):
        if kind == "pred":
            return np.bool_(number.bits != 0)
        bits = bits_of(kind)
        if number.kind != "int" and int(number.kind[1:]) != bits:
            value = np.array(number.bits, UNSIGNED[int(number.kind[1:])]).view(FLOAT[int(number.kind[1:])])
            return value.astype(dtype_of(kind))[()]
        return np.array(number.bits & ((1 << bits) - 1), UNSIGNED[bits]).view(dtype_of(kind))[()]

    def _named(self, name: str, kind: str) -> Callable:
        want = dtype_of(kind)
        if name in self.kernel.parameters or name in self.kernel.shared:
            address = self.kernel.shared.get(name)
            if address is None:
                address = self.kernel.parameters[name].offset + PARAMETER_WINDOW
            value = np.array(address, np.uint64).astype(UNSIGNED[bits_of(kind)]).view(want)[()]
            return lambda who: value
        register, _, axis = name.partition(".")
        k = "xyz".find(axis) if axis else 0
        special = {
            "%tid": lambda who: self.thread[who] if k == 0 else np.zeros_like(self.thread[who]),
            "%ntid": lambda who: np.full_like(self.thread[who], self.block_threads if k == 0 else 1),
            "%ctaid": lambda who: self.blocks[self.block[who], k],
            "%nctaid": lambda who: np.full_like(self.thread[who], self.grid[k]),
            "%laneid": lambda who: self.thread[who] % np.uint32(WARP),
            "%warpid": lambda who: self.thread[who] // np.uint32(WARP),
            "%cluster_ctarank": lambda who: self.block[who] % self.cluster,
            "%cluster_nctarank": lambda who: np.full_like(self.thread[who], self.cluster),
        }.get(register)
        if special is None:
            raise PtxError(f"no such name: {name}")
        return lambda who: special(who).astype(UNSIGNED[bits_of(kind)]).view(want)

    def write(self, operand, kind: str) -> Callable:
        """A function of the threads and their values of type `kind`; a wider register is extended by its sign or zeros."""
        rows = self.rows
        if isinstance(operand, Name) and operand.name == "_":
            return lambda who, x: None
        if not isinstance(operand, Register):
            raise PtxError(f"cannot be written: {operand}")
        k, own = operand.index, bits_of(operand.type)
        if own == 1:

            def write(who, x):
                rows[k][who] = x

            return write
        store, bits = UNSIGNED[own], bits_of(kind)
        if bits > own:
            raise PtxError(f"{kind} written to a register of {own} bits")
        middle = None if bits == own else (SIGNED if kind[0] == "s" else UNSIGNED)

        def write(who, x):
            if middle is not None:
                x = x.view(middle[bits]).astype(middle[own])
            rows[k][who] = x.view(store)

        return write

    def address(self, operand: Address) -> Callable:
        """A function of the threads to 64-bit addresses."""
        base, offset = operand.base, np.uint64(operand.offset % 2**64)
        narrow = isinstance(base, Register) and bits_of(base.type) == 32
        read = self.read(base, "u32" if narrow else "u64")

        def address(who):
            x = read(who)
            if not isinstance(x, np.ndarray):
                return np.full(indices(who).size, x + offset, np.uint64)
            if narrow:
                return (x.astype(np.uint64) + offset) & np.uint64(0xFFFFFFFF)
            return x + offset

        return address
