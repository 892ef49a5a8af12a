# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Global memory, which is that of this process within the tensors that were named, and shared memory."""

import ctypes

import numpy as np

from .errors import PtxError

PARAMETER_WINDOW = 1 << 60  # generic addresses (section 5.1, state spaces) of parameters
SHARED_WINDOW = 1 << 61  # and of shared memory
WORDS = {
    1: np.dtype("u1"),
    2: np.dtype("u2"),
    4: np.dtype("u4"),
    8: np.dtype("u8"),
    16: np.dtype("V16"),
    32: np.dtype("V32"),
}


def check_alignment(address: np.ndarray, size: int) -> None:
    """An access begins at a multiple of its size (section 6.4, operand addressing)."""
    if (address & np.uint64(size - 1)).any():
        raise PtxError(f"an access of {size} bytes is not aligned")


class Buffer:
    def __init__(self, start: int, size: int, writable: bool):
        self.start, self.end, self.writable = start, start + size, writable
        self.first = start // 32 * 32
        length = (self.end - self.first + 31) // 32 * 32  # what lies outside of the buffer is never touched
        raw = np.frombuffer((ctypes.c_uint8 * length).from_address(self.first), np.uint8)
        self.words = {n: raw.view(kind) for n, kind in WORDS.items()}
        self.writer = np.full(length // 2, -1, np.int64) if writable else None  # the thread that wrote two bytes


class GlobalMemory:
    def __init__(self):
        self.buffers: list[Buffer] = []

    def add(self, tensor, writable: bool = False) -> None:
        """All of the tensor's storage may be read, and written if `writable`."""
        storage = tensor.untyped_storage()
        start, size = storage.data_ptr(), storage.nbytes()
        if size == 0 or (not writable and any(b.start == start for b in self.buffers)):
            return
        self.buffers = [b for b in self.buffers if b.start != start]
        self.buffers.append(Buffer(start, size, writable))
        self.buffers.sort(key=lambda b: b.start)
        self.starts = np.array([b.start for b in self.buffers], np.uint64)

    def _parts(self, address: np.ndarray, size: int, write: bool):
        """(buffer, threads, words) of each buffer that is met."""
        check_alignment(address, size)
        verb = "store" if write else "load"
        if not self.buffers:
            raise PtxError(f"a global {verb} out of bounds, at {int(address[0]):#x}")
        which = np.searchsorted(self.starts, address, "right") - 1
        for k in which[:1] if (which == which[0]).all() else np.unique(which):
            threads = slice(None) if k == which[0] and (which == k).all() else np.nonzero(which == k)[0]
            at, buffer = address[threads], self.buffers[k]
            if k < 0 or int(at.max()) + size > buffer.end:
                raise PtxError(f"a global {verb} of {size} bytes out of bounds, at {int(at.max()):#x}")
            if write and not buffer.writable:
                raise PtxError("a global store to what may only be read")
            yield buffer, threads, ((at - np.uint64(buffer.first)) // np.uint64(size)).astype(np.int64)

    def load(self, address: np.ndarray, size: int) -> np.ndarray:
        """One word of `size` bytes for each address."""
        out = np.empty(address.size, WORDS[size])
        for buffer, threads, at in self._parts(address, size, False):
            out[threads] = buffer.words[size][at]
        return out

    def store(self, address: np.ndarray, words: np.ndarray, writers: np.ndarray | None = None) -> None:
        """writers: numbers of threads. No two may write to the same two bytes, since nothing orders blocks."""
        size = words.dtype.itemsize
        for buffer, threads, at in self._parts(address, size, True):
            buffer.words[size][at] = words[threads]
            if writers is not None:
                units = max(size // 2, 1)
                cells = (at * size // 2)[:, None] + np.arange(units)
                mine = np.broadcast_to(writers[threads][:, None], cells.shape)
                other = buffer.writer[cells]
                if ((other >= 0) & (other != mine)).any():
                    raise PtxError("two threads store to the same place in global memory")
                buffer.writer[cells] = mine
                if (buffer.writer[cells] != mine).any():
                    raise PtxError("two threads store to the same place in global memory")


class SharedMemory:
    """Of some blocks, each `stride` bytes further."""

    def __init__(self, blocks: int, size: int):
        self.size, self.stride = size, -(-max(size, 1) // 1024) * 1024
        raw = np.full(blocks * self.stride, 0xFF, np.uint8)
        self.words = {n: raw.view(kind) for n, kind in WORDS.items()}

    def place(self, block: np.ndarray, address: np.ndarray, size: int) -> np.ndarray:
        """Places, in bytes, of checked accesses."""
        check_alignment(address, size)
        if int(address.max()) + size > self.size:
            raise PtxError(f"a shared access of {size} bytes out of bounds, at {int(address.max())} of {self.size}")
        return block * self.stride + address.astype(np.int64)

    def load(self, place: np.ndarray, size: int) -> np.ndarray:
        return self.words[size][place // size]

    def store(self, place: np.ndarray, words: np.ndarray) -> None:
        size = words.dtype.itemsize
        self.words[size][place // size] = words
