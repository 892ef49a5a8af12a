# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The bulk copy engine: boxes of a tensor of four axes to shared memory, swizzled by 128 bytes (sections 5.5 and 9.7.9).

The bits of a tensor map are not public. In its place lie the address, four sizes, three strides in bytes and the rows of a
box, each in 64 bits; a box is 64 elements of 16 bits wide. What lies outside of the tensor comes as zeros.
"""

import struct
from dataclasses import dataclass

import numpy as np

from .errors import PtxError
from .memory import PARAMETER_WINDOW
from .registry import indices, instruction

COLUMNS = 64
MAP = struct.Struct("<Q4q3qq")


@dataclass
class Box:
    m: object
    block: int
    place: int  # in all of shared memory
    barrier: object
    data: np.ndarray  # 16 bytes each

    def land(self) -> None:
        """The 16-byte units of row r change places by r modulo 8."""
        m = self.m
        place = self.units()
        m.shared.store(place, self.data)
        if m.clocks:
            m.clocks.end_bulk_copy(place, 16, self.barrier.number, self.barrier.phase)
        m.barriers.landed(self.barrier, 16 * self.data.size)

    def units(self) -> np.ndarray:
        offset = np.arange(self.data.size) * 16
        return self.place + (offset ^ (offset >> 7 & 7) << 4)


def box(m, raw: bytes, coordinates: list[int]) -> np.ndarray:
    address, *numbers = MAP.unpack(raw[: MAP.size])
    sizes, strides, rows = numbers[:4], numbers[4:7], numbers[7]
    channel = coordinates[0] + np.arange(COLUMNS)[None, :]
    token = coordinates[1] + np.arange(rows)[:, None]
    inside = (channel >= 0) & (channel < sizes[0]) & (token >= 0) & (token < sizes[1])
    inside &= all(0 <= at < size for at, size in zip(coordinates[2:], sizes[2:], strict=True))
    where = address + 2 * channel + token * strides[0] + coordinates[2] * strides[1] + coordinates[3] * strides[2]
    data = np.zeros((rows, COLUMNS), np.uint16)
    if inside.any():
        data[inside] = m.memory.load(where[inside].astype(np.uint64), 2)
    return data.view("V16").reshape(-1)


@instruction("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes")
def copy_box(m, i):
    to, source, barrier = m.address(i.operands[0]), i.operands[1], m.address(i.operands[2])
    tensor_map = m.address(source)
    axes = [m.read(axis, "s32") for axis in source.coordinates]

    def run(who):
        for thread in indices(who):
            one = np.array([thread])
            at = int(tensor_map(one)[0]) - PARAMETER_WINDOW
            if at < 0 or at % 64 or at + 128 > m.parameters.size:
                raise PtxError("a tensor map that is no parameter, or not aligned to 64 bytes")
            block, place = int(m.block[thread]), int(to(one)[0])
            if place % 1024:
                raise PtxError("a swizzled box that is not aligned to 1024 bytes")
            data = box(m, m.parameters[at : at + 128].tobytes(), [int(np.ravel(axis(one))[0]) for axis in axes])
            m.shared.place(np.array([block]), np.array([place + 16 * data.size - 16], np.uint64), 16)
            found = Box(m, block, block * m.shared.stride + place, m.barriers.at(one, int(barrier(one)[0])), data)
            units = found.units()
            if m.clocks:
                m.clocks.begin_copy(np.full(units.size, thread), units, 16)
            m.barriers.pending.append(found)
            if m.late:
                m.shared.store(units, np.full((data.size, 16), 0xFF, np.uint8).view("V16")[:, 0])
            else:
                m.barriers.pending.pop().land()

    return run
