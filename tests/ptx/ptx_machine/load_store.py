# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Loads and stores of parameters, global and shared memory (section 9.7.9)."""

import re

import numpy as np

from .errors import PtxError
from .memory import PARAMETER_WINDOW, SHARED_WINDOW, WORDS
from .parse import Vector
from .registry import count, indices, instruction
from .types import bits_of, dtype_of

SPACES = ("param", "global", "shared", "shared::cta", "shared::cluster", "local")


def _shape(i):
    """(space, registers, type, bytes of an element, elements)"""
    space = next((part for part in i.parts if part in SPACES), "generic")
    several = next((int(part[1]) for part in i.parts if re.fullmatch(r"v[248]", part)), 1)
    value = i.operands[0] if i.parts[0] == "ld" else i.operands[1]
    registers = value.items if isinstance(value, Vector) else (value,)
    if len(registers) != several:
        raise PtxError(f"{len(registers)} registers for {several} elements")
    return space, registers, i.parts[-1], max(bits_of(i.parts[-1]) // 8, 1), several


def load_shared(m, who, address: np.ndarray, size: int) -> np.ndarray:
    threads = indices(who)
    place = m.shared.place(m.block[threads], address, size)
    if m.clocks:
        m.clocks.read(threads, place, size)
    return m.shared.load(place, size)


def store_shared(m, who, address: np.ndarray, words: np.ndarray) -> None:
    threads, size = indices(who), words.dtype.itemsize
    place = m.shared.place(m.block[threads], address, size)
    if m.clocks:
        m.clocks.write(threads, place, size)
    m.shared.store(place, words)
    if m.clocks and (m.shared.load(place, size) != words).any():
        raise PtxError("two threads store different numbers to the same place in shared memory at once")


def _load(m, who, space: str, address: np.ndarray, size: int) -> np.ndarray:
    if space == "generic":
        space = _space_of(address)
        if space == "shared":
            address = address - np.uint64(SHARED_WINDOW)
    if space == "global":
        return m.memory.load(address, size)
    if space in ("shared", "shared::cta"):
        return load_shared(m, who, address, size)
    if space == "shared::cluster":
        return m.load_from_cluster(indices(who), address, size)
    if space == "param":
        at = (address - np.uint64(PARAMETER_WINDOW)).astype(np.int64)
        if int(at.max()) + size > m.parameters.size or (at % size).any():
            raise PtxError("a parameter load out of bounds or not aligned")
        return np.ascontiguousarray(m.parameters[at[:, None] + np.arange(size)]).view(WORDS[size])[:, 0]
    raise PtxError(f"a load from {space}")


def _space_of(address: np.ndarray) -> str:
    for space, begin in (("shared", SHARED_WINDOW), ("param", PARAMETER_WINDOW), ("global", 0)):
        inside = address >= np.uint64(begin)
        if inside.all():
            return space
        if inside.any():
            break
    raise PtxError("generic addresses of several spaces at once")


@instruction("ld")
def load(m, i):
    space, registers, kind, size, several = _shape(i)
    address, want, total = m.address(i.operands[1]), dtype_of(kind), size * several
    writes = [m.write(register, kind) for register in registers]

    def run(who):
        words = _load(m, who, space, address(who), total).view(want).reshape(-1, several)
        for k, write in enumerate(writes):
            write(who, words[:, k])

    return run


@instruction("st")
def store(m, i):
    space, registers, kind, size, several = _shape(i)
    address, want, word = m.address(i.operands[0]), dtype_of(kind), WORDS[size * several]
    reads = [m.read(register, kind) for register in registers]

    def run(who):
        data = np.empty((count(who), several), want)
        for k, read in enumerate(reads):
            data[:, k] = read(who)
        at, words, to = address(who), data.view(word)[:, 0], space
        if space == "generic":
            to = _space_of(at)
            at = at - np.uint64(SHARED_WINDOW) if to == "shared" else at
        if to == "global":
            m.memory.store(at, words, m.global_thread(who) if m.races else None)
        elif to in ("shared", "shared::cta"):
            store_shared(m, who, at, words)
        else:
            raise PtxError(f"a store to {to}")

    return run
