# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Clusters of blocks: their barrier and each other's shared memory (sections 2.2 and 9.7.13), fences, and registers moved."""

import numpy as np

from .errors import PtxError
from .registry import PARKED, indices, instruction

RANK = 24  # an address in a block of the cluster: its rank plus one from this bit on


@instruction("barrier.cluster.arrive")
def arrive(m, i):
    def run(who):
        m.cluster_barrier.arrive(indices(who))

    return run


@instruction("barrier.cluster.wait")
def wait(m, i):
    def run(who):
        m.state[who] = m.CLUSTER_BARRIER
        m.place[who] = m.at + 1
        m.cluster_barrier.release()
        return PARKED

    return run


class ClusterBarrier:
    """A thread that waits goes on when all threads of its cluster that have not ended have arrived as often as it."""

    def __init__(self, m):
        self.m, self.size = m, m.block_threads * m.cluster
        self.arrivals = np.zeros(m.threads, np.int64)
        self.said: dict[tuple[int, int], list[np.ndarray]] = {}  # clocks, by cluster and number of arrivals

    def arrive(self, threads: np.ndarray) -> None:
        self.arrivals[threads] += 1
        if not self.m.clocks:
            return
        keys = np.stack([threads // self.size, self.arrivals[threads]], 1)
        for key in np.unique(keys, axis=0):
            said = self.m.clocks.release(threads[(keys == key).all(1)])
            before = self.said.get(tuple(key), said)
            self.said[tuple(key)] = [np.maximum(a, b) for a, b in zip(before, said, strict=True)]

    def release(self) -> None:
        m = self.m
        for cluster in range(m.threads // self.size):
            mine = slice(cluster * self.size, (cluster + 1) * self.size)
            alive = m.state[mine] != m.DONE
            waiting = np.nonzero(m.state[mine] == m.CLUSTER_BARRIER)[0] + mine.start
            if not waiting.size:
                continue
            go = waiting[self.arrivals[waiting] <= self.arrivals[mine][alive].min()]
            m.state[go] = m.READY
            for number in np.unique(self.arrivals[go]) if m.clocks else ():
                m.clocks.acquire(go[self.arrivals[go] == number], self.said[cluster, number])


@instruction("mapa.shared::cluster.u32")
def address_in_cluster(m, i):
    a, rank, to = m.read(i.operands[1], "u32"), m.read(i.operands[2], "u32"), m.write(i.operands[0], "b32")
    return lambda who: to(who, a(who) | rank(who) + np.uint32(1) << np.uint32(RANK))


def load_from_cluster(m, threads: np.ndarray, address: np.ndarray, size: int) -> np.ndarray:
    rank, at = (address >> np.uint64(RANK)).astype(np.int64) - 1, address & np.uint64((1 << RANK) - 1)
    if (rank >= m.cluster).any():
        raise PtxError("a block that the cluster does not have")
    own = m.block[threads]
    block = np.where(rank < 0, own, own // m.cluster * m.cluster + rank)
    ended = (m.state == m.DONE).reshape(-1, m.block_threads).all(1)
    if ended[block].any():
        raise PtxError("a load from a block that has ended")
    place = m.shared.place(block, at, size)
    if m.clocks:
        m.clocks.read(threads, place, size)
    return m.shared.load(place, size)


@instruction("fence.proxy.async")
def proxy_fence(m, i):
    def run(who):
        if m.clocks:
            m.clocks.fence(indices(who))

    return run


@instruction(
    "fence.mbarrier_init", "wgmma.fence", "setmaxnreg", "membar", "fence.acq_rel", "fence.sc", "griddepcontrol"
)
def nothing(m, i):
    """Fences of memory whose order this machine keeps anyway, and what changes no number."""
    return lambda who: None
