# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Races in shared memory, by vector clocks.

Each thread has a time of its own, which moves on when it releases something (a barrier, an arrival). `seen[t, u]` is the
time of thread u up to which t has met all that u did. An access of t is in order with an earlier one of u at time x where t is u
or seen[t, u] >= x (section 8, memory consistency model: causality order). Two accesses of one place of which one writes
must be in order. shfl, vote and mma order nothing. Of several lanes of one warp that read the same place the last is kept.

What threads write becomes visible to the matrix instructions and the copy engine, which are another proxy, through a proxy
fence: `fenced` is what was seen before one.
"""

import numpy as np

from .errors import PtxError
from .registry import WARP

NOBODY, COPY = -1, -2
BARRIERS = 32  # mbarriers of a block: each is the writer of what bulk copies bring to it
NEVER = 1 << 24  # a time that nobody has seen: of reads that are not over


class Clocks:
    def __init__(self, m):
        self.m, self.size = m, m.block_threads * m.cluster
        self.column = np.arange(m.threads) % self.size
        self.seen = np.zeros((m.threads, self.size + BARRIERS * len(m.blocks)), np.int32)
        self.seen[np.arange(m.threads), self.column] = 1
        self.fenced = np.zeros_like(self.seen) if self._has_proxies() else None
        self.unit = 1 if self._has_bytes() else 2
        cells = m.shared.words[1].size // self.unit
        self.writer = np.full(cells, NOBODY, np.int32)
        self.written = np.zeros(cells, np.int32)
        self.reads = np.zeros((cells, self.size // WARP), np.int32)  # by warp: 32 times + lane

    def _has_proxies(self) -> bool:
        return any(i.op.startswith(("wgmma", "cp.async.bulk", "fence.proxy")) for i in self.m.kernel.code)

    def _has_bytes(self) -> bool:
        return any("shared" in i.op and i.parts[-1] in ("b8", "u8", "s8") for i in self.m.kernel.code)

    def now(self, threads: np.ndarray) -> np.ndarray:
        return self.seen[threads, self.column[threads]]

    def knows(self, threads: np.ndarray, thread: int, time: int) -> bool:
        """Whether all these threads have met what one of their cluster did at a time of its own."""
        return bool(((threads == thread) | (self.seen[threads, self.column[thread]] >= time)).all())

    def move_on(self, threads: np.ndarray) -> None:
        self.seen[threads, self.column[threads]] += 1

    def meet(self, threads: np.ndarray) -> None:
        """A barrier of these threads."""
        for clock in self._clocks():
            clock[threads] = clock[threads].max(0)
        self.move_on(threads)

    def _clocks(self) -> list[np.ndarray]:
        return [self.seen] if self.fenced is None else [self.seen, self.fenced]

    def nothing_seen(self) -> list[np.ndarray]:
        return [np.zeros(clock.shape[1], np.int32) for clock in self._clocks()]

    def release(self, threads: np.ndarray) -> list[np.ndarray]:
        """What these threads have seen; they move on."""
        said = [clock[threads].max(0) for clock in self._clocks()]
        self.move_on(threads)
        return said

    def acquire(self, threads: np.ndarray, said: list[np.ndarray]) -> None:
        for clock, other in zip(self._clocks(), said, strict=True):
            clock[threads] = np.maximum(clock[threads], other)

    def fence(self, threads: np.ndarray) -> None:
        self.fenced[threads] = np.maximum(self.fenced[threads], self.seen[threads])
        self.move_on(threads)

    def end_block(self, block: int) -> None:
        """Its shared memory is gone: what other blocks of its cluster have read there must be in order with its end."""
        threads = np.nonzero(self.m.block == block)[0]
        size = self.m.shared.stride // self.unit
        reads = self.reads[block * size : (block + 1) * size]
        where = np.nonzero(reads)
        reader, time = where[1] * WARP + (reads[where] & 31), reads[where] >> 5
        others = reader // self.m.block_threads != block % self.m.cluster
        if (others & (self.seen[threads].max(0)[reader] < time)).any():
            raise PtxError("a block that has ended while others may still read from it")

    # --- accesses

    def cells(self, place: np.ndarray, size: int) -> np.ndarray:
        return (place // self.unit)[:, None] + np.arange(max(size // self.unit, 1))

    def _check_writes(self, threads: np.ndarray, cells: np.ndarray, verb: str, proxy: bool = False) -> None:
        writer = self.writer[cells]
        if (writer == COPY).any():
            raise PtxError(f"a race in shared memory: {verb} where a copy is on its way")
        mine = writer == self.column[threads][:, None]
        known = self.seen[threads[:, None], writer] >= self.written[cells]
        if not ((writer == NOBODY) | mine | known).all():
            raise PtxError(f"a race in shared memory: {verb} what another thread writes in the same interval")
        if proxy:
            visible = self.fenced[threads[:, None], writer] >= self.written[cells]
            if not ((writer == NOBODY) | (writer >= self.size) | visible).all():
                raise PtxError("no proxy fence between a store of a thread and a matrix instruction that reads it")

    def _check_reads(self, threads: np.ndarray, cells: np.ndarray) -> None:
        reads = self.reads[cells]
        if not reads.any():
            return
        where = np.nonzero(reads)
        read, thread = reads[where], threads[where[0]]
        reader, time = where[2] * WARP + (read & 31), read >> 5
        mine = (reader == self.column[thread]) & (time < NEVER)
        if not (mine | (self.seen[thread, reader] >= time)).all():
            raise PtxError("a race in shared memory: a store to what another thread reads in the same interval")

    def read(self, threads: np.ndarray, place: np.ndarray, size: int) -> None:
        cells = self.cells(place, size)
        self._check_writes(threads, cells, "a load of")
        column = self.column[threads]
        self.reads[cells, (column // WARP)[:, None]] = (self.now(threads) << 5 | column % WARP)[:, None]

    def write(self, threads: np.ndarray, place: np.ndarray, size: int) -> None:
        cells = self._begin_write(threads, place, size)
        self.writer[cells] = self.column[threads][:, None]
        self.written[cells] = self.now(threads)[:, None]

    def _begin_write(self, threads: np.ndarray, place: np.ndarray, size: int) -> np.ndarray:
        cells = self.cells(place, size)
        self._check_writes(threads, cells, "a store to")
        self._check_reads(threads, cells)
        self.reads[cells] = 0
        return cells

    def begin_copy(self, threads: np.ndarray, place: np.ndarray, size: int) -> None:
        self.writer[self._begin_write(threads, place, size)] = COPY

    def end_copy(self, threads: np.ndarray, place: np.ndarray, size: int) -> None:
        """A thread's own copy has landed: as if it had stored it now."""
        cells = self.cells(place, size)
        self.writer[cells] = self.column[threads][:, None]
        self.written[cells] = self.now(threads)[:, None]

    def end_bulk_copy(self, place: np.ndarray, size: int, barrier: int, phase: int) -> None:
        cells = self.cells(place, size)
        self.writer[cells] = self.size + barrier
        self.written[cells] = phase + 1

    def begin_reads(self, threads: np.ndarray, places: np.ndarray) -> None:
        """Each of these threads, one of a warp, reads 16 bytes at all places [threads, places] until `end_reads`."""
        for thread, place in zip(threads, places, strict=True):
            cells = self.cells(place, 16)
            one = np.full(place.size, thread)
            self._check_writes(one, cells, "a product of", proxy=True)
            column = self.column[thread]
            self.reads[cells, column // WARP] = NEVER << 5 | column % WARP

    def end_reads(self, threads: np.ndarray, places: np.ndarray) -> None:
        for thread, place in zip(threads, places, strict=True):
            column = self.column[thread]
            self.reads[self.cells(place, 16), column // WARP] = self.seen[thread, column] << 5 | column % WARP
