# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The kernels of csrc/cuda: their PTX, as nvcc writes it, and their launches, as csrc/cuda/*.cpp and *.cu prepare them."""

import functools
import hashlib
import math
import os
import re
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from ptx_machine import GlobalMemory, Kernel, Machine, PtxError  # noqa: F401
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import cuda_build  # noqa: E402

CUDA = ROOT / "csrc" / "cuda"
RULES = {"nag": 0, "nasa": 1, "vsf": 2}
ELEMENTS = {torch.bfloat16: "BFloat16", torch.float16: "Half", torch.float32: "Float"}
LOG2E = 1.4426950408889634
TEXT_SIZES, BRANCH_SIZES, CLUSTER_SIZES = (40, 64, 80, 128, 160), (64, 96, 128, 192, 256), (64, 128)
TEXT_WARPS, SHARED_LIMIT, TILE_BYTES, TILE_KEYS, CLUSTER_ROWS = 8, 227 << 10, 16 << 10, 128, 128


def missing() -> str | None:
    return None if cuda_build.nvcc() else "no nvcc (on the PATH, or from pip install nvidia-cuda-nvcc)"


@functools.cache
def ptx(header: str, kernel: str, parameters: str, chip: str, broken: tuple[str, str] | None = None) -> str:
    """The PTX of one template of a kernel, kept between runs by the hash of all that it is made from.

    broken: a piece of the kernels' text, and what stands in its place.
    """
    source = f"""#include "{header}"\ntemplate __global__ void nag::{kernel}({parameters});\n"""
    read = sorted((ROOT / "csrc").glob("*.h")) + sorted(CUDA.glob("*.cuh")) + sorted(CUDA.glob("*.h"))
    files = {path.name: path.read_text() for path in read}
    if broken:
        assert sum(text.count(broken[0]) for text in files.values()) == 1, f"{broken[0]!r} does not stand there once"
        files = {name: text.replace(*broken) for name, text in files.items()}
    text = "".join(files.values()) + f"{source} {chip} {cuda_build.version()}"
    folder = Path(tempfile.gettempdir()) / f"nag_ptx-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    to = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.ptx"
    if not to.exists():
        with tempfile.TemporaryDirectory(dir=folder) as written:
            for name, content in (files | {"kernel.cu": source}).items():
                Path(written, name).write_text(content)
            name = "cluster_sm90a.cu" if chip == "90a" else ""
            flags = [x for x in cuda_build.flags([(90, False)], name) if not x.startswith(("-gencode", "arch="))]
            command = [cuda_build.nvcc(), "-ptx", f"-arch=compute_{chip}", *flags, "kernel.cu", "-o", "kernel.ptx"]
            subprocess.run(command, cwd=written, check=True)
            Path(written, "kernel.ptx").rename(to)
    return to.read_text()


def next_size(sizes: tuple[int, ...], size: int) -> int:
    return next(each for each in sizes if size <= each)


@functools.lru_cache(64)
def parsed(text: str, name: str) -> Kernel:
    return Kernel.of(text, name)


class Launcher:
    """Runs kernels of one chip; `change` may alter their PTX, `broken` their text, `how` goes to the machine."""

    def __init__(self, chip: str = "80", change=None, broken: tuple[str, str] | None = None, **how):
        self.chip, self.change, self.broken, self.how = chip, change, broken, how
        self.machines: list[Machine] = []
        self._kernels: dict[str, Kernel] = {}

    def kernel(self, header: str, name: str, parameters: str, chip: str | None = None) -> Kernel:
        if name not in self._kernels:
            text = ptx(header, name, parameters, chip or self.chip, self.broken)
            self._kernels[name] = parsed(self.change(text) if self.change else text, re.match(r"\w+", name)[0])
        return self._kernels[name]

    def _run(self, kernel, read, written, threads, shared, blocks, parameters, together=4, cluster=1) -> None:
        memory = GlobalMemory()
        for x in read:
            if isinstance(x, Tensor):
                memory.add(x)
        memory.add(written, writable=True)
        machine = Machine(kernel, memory, threads, shared, cluster=cluster, **self.how)
        self.machines.append(machine)
        machine.launch((blocks,), parameters, together)

    # --- the operations

    def text(self, inputs: dict, settings: tuple, rule: str = "nag", tiles: int = 1, keep: bool = True) -> Tensor:
        query = inputs["query"]
        batch, tokens, heads, size = query.shape
        padded = next_size(TEXT_SIZES, size)
        kernel = self.kernel("text_kernel.cuh", f"text_attention_kernel<nag::device::{ELEMENTS[query.dtype]}, {padded}, {tiles}>",
                             "nag::AttentionParams")  # fmt: skip
        out = torch.full(query.shape, float("nan"), dtype=query.dtype)
        shared = (2 * heads if keep else TEXT_WARPS) * tiles * 16 * padded * 4 + TEXT_WARPS * tiles * 16 * 2 * 4
        parameters = attention_params(inputs, settings, rule, out, None, keep)
        blocks = -(-tokens // (16 * tiles)) * batch
        self._run(kernel, [*inputs.values(), *settings], out, 32 * TEXT_WARPS, shared, blocks, parameters)
        return out

    def branches(self, inputs: dict, settings: tuple, rule: str = "nag") -> Tensor:
        query = inputs["query"]
        batch, tokens, heads, size = query.shape
        padded = next_size(BRANCH_SIZES, size)
        name = f"branches_kernel<nag::device::{ELEMENTS[query.dtype]}, {padded}>"
        kernel = self.kernel("attention_kernel.cuh", name, "nag::AttentionParams")
        wide = torch.full((2, *query.shape), float("nan"))
        warps, keys = (8, 64) if padded <= 128 else (4, 32)
        rows = 16 * warps
        shared = (0 if padded <= 128 else rows * padded * 2) + 4 * keys * (2 * padded + 16) + 2 * keys
        parameters = attention_params(inputs, settings, rule, query, wide, False)
        blocks = -(-tokens // rows) * heads * batch
        self._run(kernel, [*inputs.values(), *settings], wide, 32 * warps, shared, blocks, parameters)
        rows = [x.view(batch * tokens, heads * size) for x in wide]
        out = self.guidance(*rows, settings, "nag" if rule == "nag" else "nasa", query.dtype, samples=batch)
        return out.view(query.shape)

    def guidance(
        self, positive: Tensor, negative: Tensor, settings: tuple, rule: str = "nag", dtype: torch.dtype | None = None,
        samples: int = 1, vectors: bool = True,
    ) -> Tensor:  # fmt: skip
        rows, channels = positive.shape
        out = torch.full((rows, channels), float("nan"), dtype=dtype or positive.dtype)
        types = [f"nag::device::{ELEMENTS[x]}" for x in (positive.dtype, out.dtype)]
        vector = 8 if vectors else 1
        name = f"guidance_kernel<{', '.join(types)}, {vector}>"
        kernel = self.kernel("guidance_kernel.cuh", name, "nag::GuidanceParams")
        threads = min(math.ceil(channels / (2 * vector) / 32) * 32, 512)
        parameters = struct.pack(
            "<3Q4qii", positive.data_ptr(), negative.data_ptr(), out.data_ptr(), positive.stride(0), negative.stride(0),
            rows, max(rows // samples, 1), channels, RULES[rule],
        ) + settings_bytes(settings)  # fmt: skip
        self._run(
            kernel, [positive, negative, *settings], out, threads, 2 * 512 // 32 * 4, rows, parameters, together=16
        )
        return out

    def cluster(
        self, inputs: dict, settings: tuple, rule: str = "nag", blocks: int = 0, slots: int = 8, maps: bool = True
    ) -> Tensor:
        """blocks: of a cluster, else as the host half plans; slots: tiles in shared memory, at most.

        maps: tiles by the copy engine where it takes them.
        """
        query = inputs["query"]
        batch, tokens, heads, size = query.shape
        padded = next_size(CLUSTER_SIZES, size)
        blocks, slots, shared = cluster_plan(heads, padded, blocks, slots)
        kernel = self.kernel(
            "cluster_kernel.cuh",
            f"cluster_kernel<nag::device::BFloat16, {padded}>",
            "const __grid_constant__ nag::ClusterParams",
            "90a",
        )
        out = torch.full(query.shape, float("nan"), dtype=query.dtype)
        tile = 64 * 128 // padded
        by_threads, key_maps, value_maps = [], b"", b""
        for part in ("shared", "positive", "negative"):
            key, value = inputs.get(f"key_{part}"), inputs.get(f"value_{part}")
            if key is None or key.shape[1] == 0:
                found, threads = [b"", b""], False
            else:
                found = [tensor_map(x, batch, tile) for x in (key, value)]
                threads = inputs.get(f"mask_{part}") is not None or None in found or not maps
            by_threads.append(threads)
            key_maps += (found[0] or b"").ljust(128, b"\0")
            value_maps += (found[1] or b"").ljust(128, b"\0")
        parameters = attention_params(inputs, settings, rule, out, None, False)
        parameters += struct.pack("<ii3?", blocks, slots, *by_threads)
        parameters = parameters.ljust(-(-len(parameters) // 128) * 128, b"\0") + key_maps + value_maps
        grid = -(-tokens // CLUSTER_ROWS) * batch * blocks
        self._run(kernel, [*inputs.values(), *settings], out, 384, shared, grid, parameters, blocks, blocks)
        return out


# --- parameters, as csrc/cuda/params.h lays them out ----------------------------------------------------------------------


def settings_bytes(settings: tuple) -> bytes:
    if isinstance(settings[0], Tensor):
        strides = [x.stride(0) if x.ndim == 1 and x.shape[0] > 1 else 0 for x in settings]
        return struct.pack("<3Q3q3f4x", *(x.data_ptr() for x in settings), *strides, 0, 0, 0)
    return struct.pack("<3Q3q3f4x", *[0] * 6, *(float(x) for x in settings))


def strides_of(x: Tensor, batch: int, dims: int) -> list[int]:
    return [0 if x.shape[0] != batch else x.stride(0), *(x.stride(k) for k in range(1, dims))]


def segment(inputs: dict, part: str, batch: int) -> bytes:
    key, value, mask = (inputs.get(f"{kind}_{part}") for kind in ("key", "value", "mask"))
    if key is None or key.shape[1] == 0:
        return bytes(struct.calcsize("<3Q8qif"))
    bias = inputs.get("negative_logit_bias", 0.0) if part == "negative" else 0.0
    masked = [0, 0] if mask is None else strides_of(mask, batch, 2)
    return struct.pack(
        "<3Q8qif", key.data_ptr(), value.data_ptr(), 0 if mask is None else mask.data_ptr(), *strides_of(key, batch, 3),
        *strides_of(value, batch, 3), *masked, key.shape[1], bias * LOG2E,
    )  # fmt: skip


def attention_params(inputs: dict, settings: tuple, rule: str, out: Tensor, wide: Tensor | None, keep: bool) -> bytes:
    query = inputs["query"]
    batch, tokens, heads, size = query.shape
    scale = inputs.get("softmax_scale") or size**-0.5
    branches = [0, 0] if wide is None else [x.data_ptr() for x in wide]
    head = struct.pack(
        "<Q3q3Q2q3ifi?", query.data_ptr(), *(query.stride(k) for k in range(3)), out.data_ptr(), *branches, batch, tokens,
        heads, heads // inputs["key_positive"].shape[2], size, scale * LOG2E, RULES[rule], keep,
    )  # fmt: skip
    parts = [segment(inputs, part, batch) for part in ("shared", "positive", "negative")]
    return head.ljust(-(-len(head) // 8) * 8, b"\0") + settings_bytes(settings) + b"".join(parts)


def cluster_plan(heads: int, padded: int, blocks: int = 0, most: int = 8) -> tuple[int, int, int]:
    """(blocks, slots, bytes of shared memory): cluster_plan of csrc/cuda/tile_size.h."""
    kept, best = 256 * 2 * padded + 256 * 16, None
    for many in [blocks] if blocks else range(min(heads, 8), 0, -1):
        each = -(-heads // many)
        fixed = (each - 1) * kept + CLUSTER_ROWS * 8 + 8 * 16
        slots = min((SHARED_LIMIT - fixed) // (TILE_BYTES + TILE_KEYS), most)
        if slots >= 4 and (best is None or each * many < best[0]):
            best = (each * many, (many, slots, fixed + slots * (TILE_BYTES + TILE_KEYS)))
    return best[1]


def tensor_map(x: Tensor, batch: int, rows: int) -> bytes | None:
    """What bulk.py reads in the place of a CUtensorMap, whose bits are not public: address, sizes, strides in bytes, and rows
    of a box. None where the copy engine does not take the strides (map_rows of csrc/cuda/tensor_map.h)."""
    _, length, heads, size = x.shape
    sample, token, head = strides_of(x, batch, 3)
    sizes, strides = [size, length, heads, batch], []
    for k, elements in enumerate((token, head, sample)):
        if elements == 0 and k > 0:
            sizes[k + 1] = 1
        packed = 2 * sizes[0] if k == 0 else strides[k - 1] * sizes[k]
        strides.append(packed if sizes[k + 1] == 1 else 2 * elements)
        if strides[k] <= 0 or strides[k] % 16 or strides[k] >= 1 << 40:
            return None
    return struct.pack("<Q4q3qq", x.data_ptr(), *sizes, *strides, rows)
