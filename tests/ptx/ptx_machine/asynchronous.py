# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""cp.async: copies from global to shared memory in groups that a thread waits for (section 9.7.9).

Early they land at once, late only when they are waited for; until then NaN lies in their place, and no thread may touch it.
"""

from dataclasses import dataclass

import numpy as np

from .errors import PtxError
from .memory import WORDS
from .registry import indices, instruction


@dataclass
class Copy:
    threads: np.ndarray
    group: np.ndarray
    place: np.ndarray
    words: np.ndarray


class Copies:
    def __init__(self, m):
        self.m = m
        self.pending: list[Copy] = []
        self.group = np.zeros(m.threads, np.int64)  # that a thread's copies belong to

    def begin(self, threads: np.ndarray, place: np.ndarray, words: np.ndarray) -> None:
        m, size = self.m, words.dtype.itemsize
        if m.clocks:
            m.clocks.begin_copy(threads, place, size)
        self.pending.append(Copy(threads, self.group[threads], place, words))
        if m.late:
            words = np.full((words.size, size), 0xFF, np.uint8).view(WORDS[size])[:, 0]
        m.shared.store(place, words)

    def wait(self, threads: np.ndarray, left: int) -> None:
        """For all but the last `left` groups of these threads."""
        waits = np.zeros(self.m.threads, bool)
        waits[threads] = True
        kept = []
        for copy in self.pending:
            due = waits[copy.threads] & (copy.group < self.group[copy.threads] - left)
            if due.any():
                place, words = copy.place[due], copy.words[due]
                if self.m.late:
                    self.m.shared.store(place, words)
                if self.m.clocks:
                    self.m.clocks.end_copy(copy.threads[due], place, words.dtype.itemsize)
            if not due.all():
                kept.append(Copy(*(x[~due] for x in (copy.threads, copy.group, copy.place, copy.words))))
        self.pending = kept


@instruction("cp.async.ca", "cp.async.cg")
def copy(m, i):
    """A fourth operand says how many bytes are read; the others are zeros."""
    to, of, size = m.address(i.operands[0]), m.address(i.operands[1]), i.operands[2].bits
    if size not in ((4, 8, 16) if i.parts[2] == "ca" else (16,)):
        raise PtxError(i.op)
    read = m.read(i.operands[3], "u32") if len(i.operands) > 3 else None

    def run(who):
        threads = indices(who)
        wanted = np.broadcast_to(read(who) if read else np.uint32(size), threads.size)
        if not np.isin(wanted, (0, size)).all():
            raise PtxError("a copy of a part")
        address, some = of(who), wanted > 0
        words = np.zeros((threads.size, size), np.uint8).view(WORDS[size])[:, 0]
        if some.any():
            words[some] = m.memory.load(address[some], size)
        m.copies.begin(threads, m.shared.place(m.block[threads], to(who), size), words)

    return run


@instruction("cp.async.commit_group")
def commit(m, i):
    def run(who):
        m.copies.group[who] += 1

    return run


@instruction("cp.async.wait_group")
def wait_group(m, i):
    left = i.operands[0].bits
    return lambda who: m.copies.wait(indices(who), left)


@instruction("cp.async.wait_all")
def wait_all(m, i):
    def run(who):
        m.copies.group[who] += 1
        m.copies.wait(indices(who), 0)

    return run
