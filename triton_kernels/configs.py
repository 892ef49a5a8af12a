# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiles of the Triton kernels by chip, element type and head size: the rows of tiles.csv, no autotuning at the first call.

A row's source is the benchmark row that it came from, or `unmeasured`. `python -m benchmarks.tune_gpu` rewrites the file.
"""

import csv
import dataclasses
import functools
import re
from dataclasses import dataclass
from pathlib import Path

import torch

TABLE = Path(__file__).with_name("tiles.csv")
MAX_SIZE = 256  # of a head: its accumulator stays in registers


@dataclass(frozen=True)
class Tile:
    chip: int  # compute capability times 10 from which on the row holds
    bits: int  # of an element: 16 or 32
    size_to: int  # the largest head size of the row
    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    source: str

    def options(self) -> dict[str, int]:
        return {"BLOCK_M": self.block_m, "BLOCK_N": self.block_n, "num_warps": self.num_warps,
                "num_stages": self.num_stages}  # fmt: skip


def read(path: Path = TABLE) -> list[Tile]:
    with path.open(newline="") as file:
        return [Tile(**{k: v if k == "source" else int(v) for k, v in row.items()}) for row in csv.DictReader(file)]


def write(rows: list[Tile], path: Path = TABLE) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(Tile.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(vars(row) for row in rows)


@functools.cache
def find(size: int, bits: int, chip: int) -> Tile:
    """The row of the newest chip that is not newer than this one, and of the smallest sizes that hold this one."""
    fits = [row for row in read() if row.bits == bits and row.size_to >= size and row.chip <= chip]
    if not fits:
        raise ValueError(f"triton has no tile for head size {size}, {bits} bits on a chip of capability {chip / 10}")
    newest = max(row.chip for row in fits)
    return min((row for row in fits if row.chip == newest), key=lambda row: row.size_to)


def tiles(size: int, dtype: torch.dtype, chip: int) -> dict[str, int]:
    row = find(size, 32 if dtype == torch.float32 else 16, chip)
    if leaves_out_a_fence(chip):
        row = dataclasses.replace(row, num_stages=1)
    return row.options()


def leaves_out_a_fence(chip: int) -> bool:
    """Whether this Triton forgets, in a loop of two stages, that matrix instructions must not read too early.

    Keys come by cp.async. On compute capability 9.0 to 11.x the matrix instructions (wgmma, tcgen05) read shared memory through
    another proxy, so PTX demands a `fence.proxy.async` between the copy and the product. Triton writes that fence from 3.7.1 on
    (triton-lang/triton, pull request 10537). In a loop of one stage threads store the keys, and every Triton has the fence.
    """
    return 90 <= chip < 120 and triton_version() < (3, 7, 1)


@functools.cache
def triton_version() -> tuple[int, ...]:
    import triton

    return tuple(int(x) for x in re.findall(r"\d+", triton.__version__)[:3])


@functools.cache
def capability(device: torch.device) -> int:
    """Compute capability times 10; on a CPU (the interpreter) that of the oldest chip of the table."""
    if device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
