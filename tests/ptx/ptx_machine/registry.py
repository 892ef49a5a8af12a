# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which function builds which instruction.

A builder is called once for each instruction of a kernel, with the machine and the instruction. What it returns is called
with the threads that execute the instruction: a slice or a sorted array of thread numbers. That call returns None where
the threads go on to the next instruction, a `Jump`, or `PARKED` where it has set their places and states itself.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .errors import PtxError
from .parse import Instruction

PARKED = object()
WARP = 32
MASKS = {"shfl": 4, "vote": 2, "elect": 1, "bar": 0}  # which operand names the lanes that take part
BUILDERS: dict[str, Callable] = {}


@dataclass(frozen=True)
class Jump:
    target: int
    threads: np.ndarray | None = None  # None: all


def instruction(*names: str) -> Callable:
    """The first words of the instructions that the function builds; the longest that fits is taken."""

    def register(build: Callable) -> Callable:
        BUILDERS.update(dict.fromkeys(names, build))
        return build

    return register


def builder(i: Instruction) -> Callable:
    parts = i.parts
    for count in range(len(parts), 0, -1):
        if (name := ".".join(parts[:count])) in BUILDERS:
            return BUILDERS[name]
    raise PtxError(f"not known: {i.text[:160]}")


def indices(who) -> np.ndarray:
    return np.arange(who.start, who.stop) if isinstance(who, slice) else who


def count(who) -> int:
    return who.stop - who.start if isinstance(who, slice) else who.size


def collective(build: Callable) -> Callable:
    """Of an instruction that all 32 lanes of a warp execute together (.sync with a full mask, .aligned): lanes that come
    alone are held until the others are there (shfl.sync in section 9.7.9, mma.sync in 9.7.14)."""

    def outer(m, i: Instruction) -> Callable:
        inner = build(m, i)
        members = m.read(i.operands[MASKS[i.parts[0]]], "u32") if i.parts[0] in MASKS else None

        def work(who):
            if members is not None and (members(who) != np.uint32(0xFFFFFFFF)).any():
                raise PtxError("a part of a warp")
            return inner(who)

        def run(who):
            if isinstance(who, slice) and who.start % WARP == 0 and who.stop % WARP == 0 and not m.held:
                return work(who)
            at, threads = m.at, indices(who)
            if m.held:
                waiting = np.nonzero((m.state == m.HELD) & (m.place == at))[0]
                threads = np.union1d(threads, waiting) if waiting.size else threads
            full = np.bincount(threads // WARP, minlength=m.threads // WARP) == WARP
            whole = full[threads // WARP]
            if whole.all() and threads.size == count(who):
                return work(who)
            rest = threads[~whole]
            m.state[rest], m.place[rest] = m.HELD, at
            threads = threads[whole]
            if threads.size:
                m.state[threads] = m.READY
                if work(threads) is None:
                    m.place[threads] = at + 1
            m.held = int((m.state == m.HELD).sum())
            return PARKED

        return run

    return outer
