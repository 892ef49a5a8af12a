# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""mbarrier: barriers in shared memory that count arrivals and bytes (section 9.7.13, parallel synchronization and communication).

A phase is complete when all arrivals and all expected bytes are there. A thread whose wait is in vain sleeps until the next
phase is. What it then sees is what all that arrived had seen.
"""

from dataclasses import dataclass, field

import numpy as np

from .errors import PtxError
from .races import BARRIERS
from .registry import PARKED, indices, instruction


@dataclass
class Barrier:
    number: int
    count: int
    missing: int
    bytes: int = 0
    phase: int = 0
    made: tuple[int, int] = (0, 0)  # by which thread, at which of its times
    clocks: list = field(default_factory=list)  # of those that have arrived in this phase
    done: list = field(default_factory=list)  # of those of the last complete phase


class Barriers:
    """Of the blocks that run, and the bulk copies on their way to them, which land one by one when nobody can go on."""

    def __init__(self, m):
        self.m = m
        self.barriers: dict[tuple[int, int], Barrier] = {}
        self.pending: list = []
        self.sleeps_at = np.full(m.threads, -1)

    def add(self, thread: int, address: int, count: int) -> None:
        block = int(self.m.block[thread])
        self.m.shared.place(np.array([block]), np.array([address], np.uint64), 8)
        if len(self.barriers) == BARRIERS * len(self.m.blocks):
            raise PtxError("more mbarriers than this machine has times for")
        made = self.barriers[block, address] = Barrier(len(self.barriers), count, count)
        if self.m.clocks:
            made.made = (thread, int(self.m.clocks.now(np.array([thread]))[0]))

    def at(self, threads: np.ndarray, address: int) -> Barrier:
        """The barrier of these threads' block; what made it must be in order with its use."""
        key = int(self.m.block[threads[0]]), address
        if key not in self.barriers:
            raise PtxError("an mbarrier that was not initialised")
        barrier = self.barriers[key]
        if self.m.clocks and not self.m.clocks.knows(threads, *barrier.made):
            raise PtxError("a race in shared memory: an mbarrier that another thread initialises in the same interval")
        return barrier

    def arrive(self, thread: int, address: int, expected: int) -> None:
        barrier = self.at(np.array([thread]), address)
        if barrier.missing == 0:
            raise PtxError("more arrivals than an mbarrier counts")
        barrier.bytes += expected
        barrier.missing -= 1
        if self.m.clocks:
            self._join(barrier, self.m.clocks.release(np.array([thread])))
        self._step(barrier)

    def landed(self, barrier: Barrier, count: int) -> None:
        barrier.bytes -= count
        if self.m.clocks:
            said = self.m.clocks.nothing_seen()
            for clock in said:
                clock[self.m.clocks.size + barrier.number] = barrier.phase + 1
            self._join(barrier, said)
        self._step(barrier)

    @staticmethod
    def _join(barrier: Barrier, said: list[np.ndarray]) -> None:
        barrier.clocks = [np.maximum(a, b) for a, b in zip(barrier.clocks or said, said, strict=True)]

    def _step(self, barrier: Barrier) -> None:
        if barrier.missing == 0 and barrier.bytes == 0:
            barrier.missing, barrier.phase = barrier.count, barrier.phase + 1
            barrier.done = list(barrier.clocks)
            awake = (self.m.state == self.m.SLEEPING) & (self.sleeps_at == barrier.number)
            self.m.state[awake] = self.m.READY

    def complete_one(self) -> bool:
        if self.pending:
            self.pending.pop(0).land()
            return True
        return False


@instruction("mbarrier.init")
def init(m, i):
    address, count = m.address(i.operands[0]), m.read(i.operands[1], "u32")

    def run(who):
        threads = indices(who)
        counts = np.broadcast_to(count(who), threads.size)
        for thread, at, arrivals in zip(threads, address(who), counts, strict=True):
            m.barriers.add(int(thread), int(at), int(arrivals))

    return run


@instruction("mbarrier.arrive")
def arrive(m, i):
    """With .expect_tx bytes are added to what the phase waits for first."""
    address = m.address(i.operands[1])
    expected = m.read(i.operands[2], "u32") if "expect_tx" in i.parts else None
    if len(i.operands) > (3 if expected else 2):
        raise PtxError(i.op)

    def run(who):
        threads = indices(who)
        more = np.broadcast_to(expected(who) if expected else np.uint32(0), threads.size)
        for thread, at, count in zip(threads, address(who), more, strict=True):
            m.barriers.arrive(int(thread), int(at), int(count))

    return run


@instruction("mbarrier.try_wait.parity", "mbarrier.test_wait.parity")
def wait(m, i):
    """True once the phase of this parity is complete: the one that runs has the other."""
    to, address, parity = m.write(i.operands[0], "pred"), m.address(i.operands[1]), m.read(i.operands[2], "u32")

    def run(who):
        threads = indices(who)
        wanted = np.broadcast_to(parity(who), threads.size)
        over = np.zeros(threads.size, bool)
        block, at = m.block[threads], address(who)
        for key in set(zip(block.tolist(), at.tolist(), strict=True)):
            mine = (block == key[0]) & (at == key[1])
            barrier = m.barriers.at(threads[mine], key[1])
            over[mine] = wanted[mine] != barrier.phase % 2
            m.barriers.sleeps_at[threads[mine]] = barrier.number
            if m.clocks and over[mine].any() and barrier.done:
                m.clocks.acquire(threads[mine & over], barrier.done)
        to(who, over)
        if over.all():
            return None
        m.place[who] = m.at + 1
        m.state[threads[~over]] = m.SLEEPING
        return PARKED

    return run
