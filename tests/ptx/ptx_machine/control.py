# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Branches, the end of a thread, and barriers of warps and blocks (sections 9.7.12, control flow, and 9.7.13)."""

import numpy as np

from .errors import PtxError
from .parse import Number
from .registry import PARKED, WARP, Jump, collective, indices, instruction


@instruction("bra")
def branch(m, i):
    jump = Jump(m.kernel.labels[i.operands[0].name])
    return lambda who: jump


@instruction("ret", "exit")
def end(m, i):
    def run(who):
        finish(m, who)
        return PARKED

    return run


def finish(m, who) -> None:
    m.state[who] = m.DONE
    release(m, m.BARRIER, m.block_threads)
    m.cluster_barrier.release()
    if m.clocks and m.cluster > 1:
        for block in np.unique(m.block[who]):
            if (m.state[m.block == block] == m.DONE).all():
                m.clocks.end_block(int(block))


@instruction("trap")
def trap(m, i):
    def run(who):
        raise PtxError("trap")

    return run


def release(m, state: int, size: int) -> None:
    """Threads go on where all of each `size` neighbours, but for those that have ended, are in `state`."""
    waiting = (m.state == state).reshape(-1, size)
    full = (waiting | (m.state == m.DONE).reshape(-1, size)).all(1) & waiting.any(1)
    for k in np.nonzero(full)[0]:
        threads = k * size + np.nonzero(waiting[k])[0]
        m.state[threads] = m.READY
        if m.clocks:
            m.clocks.meet(threads)


@instruction("bar.sync", "barrier.sync")
def barrier(m, i):
    """Barrier 0 of all threads of a block."""
    if i.operands != (Number(0, "int"),):
        raise PtxError("barriers other than 0, or of a part of a block")

    def run(who):
        m.state[who] = m.BARRIER
        m.place[who] = m.at + 1
        release(m, m.BARRIER, m.block_threads)
        return PARKED

    return run


@instruction("bar.warp.sync")
@collective
def warp_barrier(m, i):
    def run(who):
        if m.clocks:
            for threads in indices(who).reshape(-1, WARP):
                m.clocks.meet(threads)

    return run
