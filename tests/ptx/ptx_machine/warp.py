# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the lanes of a warp exchange: shfl.sync and vote.sync (sections 9.7.9 and 9.7.13)."""

import numpy as np

from .parse import Vector
from .registry import WARP, collective, instruction

LANE = np.arange(WARP)


@instruction("shfl.sync")
@collective
def shuffle(m, i):
    """A lane that would read beyond its segment keeps its own number and its predicate is false."""
    mode = i.parts[2]
    to, predicate = i.operands[0], None
    if isinstance(to, Vector):
        to, predicate = to.items
    a, by, clamp = m.read(i.operands[1], "b32"), m.read(i.operands[2], "u32"), m.read(i.operands[3], "u32")
    write = m.write(to, "b32")
    inside = m.write(predicate, "pred") if predicate is not None else None

    def run(who):
        size = who.stop - who.start if isinstance(who, slice) else who.size
        x = np.broadcast_to(a(who), size).reshape(-1, WARP)
        distance = np.broadcast_to(by(who), size).reshape(-1, WARP).astype(np.int64) & 31
        c = np.broadcast_to(clamp(who), size).reshape(-1, WARP).astype(np.int64)
        segment, last = c >> 8 & 31, c & 31
        highest = LANE & segment | last & ~segment
        lowest = LANE & segment
        if mode == "bfly":
            source = LANE ^ distance
            valid = source <= highest
        elif mode == "down":
            source = LANE + distance
            valid = source <= highest
        elif mode == "up":
            source = LANE - distance
            valid = source >= highest
        else:
            source = lowest | distance & ~segment
            valid = source <= highest
        source = np.where(valid, source, LANE)
        write(who, np.take_along_axis(x, source, 1).reshape(-1))
        if inside is not None:
            inside(who, valid.reshape(-1))

    return run


@instruction("vote.sync")
@collective
def vote(m, i):
    mode, p = i.parts[2], m.read(i.operands[1], "pred")
    write = m.write(i.operands[0], "b32" if mode == "ballot" else "pred")

    def run(who):
        size = who.stop - who.start if isinstance(who, slice) else who.size
        x = np.broadcast_to(p(who), size).reshape(-1, WARP)
        if mode == "ballot":
            said = (x.astype(np.uint64) << LANE.astype(np.uint64)).sum(1).astype(np.uint32)
        else:
            said = {"all": x.all(1), "any": x.any(1), "uni": x.all(1) | ~x.any(1)}[mode]
        write(who, np.repeat(said, WARP))

    return run


@instruction("elect.sync")
@collective
def elect(m, i):
    """One lane of the full warp: here the lowest."""
    to, predicate = i.operands[0].items
    write, chosen = m.write(to, "b32"), m.write(predicate, "pred")

    def run(who):
        lane = (m.thread[who] % np.uint32(WARP)).astype(np.uint32)
        write(who, np.zeros_like(lane))
        chosen(who, lane == 0)

    return run
