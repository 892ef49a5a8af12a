# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels run on the CPU: `csrc/cuda/*_kernel.cuh` compiled by the C++ compiler over an emulated device
(tests/gpu/native/device_emulated.h), built on demand by ninja into a folder of the user's cache that `make clean` does not own.

It proves the kernels' own text: index maps, masks, bounds, barriers, arithmetic. It says nothing of a GPU's speed, nor of
the PTX behind `csrc/cuda/device.cuh`, which tests/ptx runs.
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "tests" / "gpu" / "native"
SOURCES = [
    *sorted((ROOT / "csrc").glob("*.h")), *sorted((ROOT / "csrc" / "cuda").glob("*.cuh")),
    *sorted((ROOT / "csrc" / "cuda").glob("*.h")), *sorted(NATIVE.glob("*_emulated.h")),
    NATIVE / "kernels_emulated.cpp",
]  # fmt: skip
RULES = {"nag": 0, "nasa": 1, "vsf": 2}
LOG2E = 1.4426950408889634
# The threads jump from stack to stack, which some compilers' checks of jumps take for a mistake.
FLAGS = "-std=c++20 -O1 -fPIC -fvisibility=hidden -w -U_FORTIFY_SOURCE -DNAG_EMULATED"


def _compile(source: Path, to: Path, *flags: str) -> Path:
    compiler = os.environ.get("CXX") or "c++"
    (to.parent / "build.ninja").write_text(
        f"rule compile\n  command = {compiler} {FLAGS} -shared {' '.join(flags)} $in -o $out\n"
        f"build {to.name}: compile {source}\n"
    )
    done = subprocess.run([sys.executable, "-m", "ninja", "-C", to.parent], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    return to


def _build(folder: Path) -> Path:
    import pybind11

    folders = [NATIVE, ROOT / "csrc", ROOT / "csrc" / "cuda", pybind11.get_include(), sysconfig.get_path("include")]
    return _compile(NATIVE / "kernels_emulated.cpp", folder / "nag_emulated.so", *(f"-I{path}" for path in folders))


@contextlib.contextmanager
def alone(folder: Path):
    """Of the processes that may want to build in `folder`, one at a time."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def module():
    """The module of the kernels as they are, kept between runs by the hash of its sources."""
    if shutil.which(os.environ.get("CXX") or "c++") is None:
        pytest.skip("the emulated CUDA kernels are not here: no C++ compiler")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES) + sys.version.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"nag_emulated-{os.getuid()}-{digest}"
    with alone(folder):
        library = next(folder.glob("*.so"), None) or _build(folder)
    spec = importlib.util.spec_from_file_location(library.stem, library)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@functools.cache
def host_library(choice: bool = False) -> Path:
    """The operations of nag_cuda for CPU tensors, their host half as it is, over the emulated device.

    choice: with choice.cpp, which serves nag:: of CPU tensors as well: for a process without the CPU kernels.
    """
    if shutil.which(os.environ.get("CXX") or "c++") is None:
        pytest.skip("the emulated CUDA kernels are not here: no C++ compiler")
    cuda = ROOT / "csrc" / "cuda"
    hosts = [cuda / f"{name}.cpp" for name in ("attention", "guidance", "device_limits", "choice")]
    hosts.append(NATIVE / "host_emulated.cpp")
    read = [*SOURCES, *hosts, *sorted(cuda.glob("*.cu")), NATIVE / "fake_cuda" / "cuda_runtime.h", Path(__file__)]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in read) + torch.__version__.encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"nag_emulated_host-{os.getuid()}-{digest}"
    with alone(folder):
        if not (folder / "nag_cuda_emulated_choice.so").exists():
            _build_host(folder, hosts)
    return folder / f"nag_cuda_emulated{'_choice' * choice}.so"


def _build_host(folder: Path, hosts: list[Path]) -> None:
    """Both libraries, the one with choice.cpp last, of objects that are compiled once."""
    torch_root = Path(torch.__file__).parent
    includes = [NATIVE / "fake_cuda", NATIVE, ROOT / "csrc", ROOT / "csrc" / "cuda", torch_root / "include"]
    flags = f"{FLAGS} -DNAG_SM90A -DNAG_CUDA_KEY=CPU -DUSE_CUDA=1 -DTORCH_TARGET_VERSION=0x020a000000000000 "
    flags += " ".join(f"-I{x}" for x in includes)
    compiler, objects = os.environ.get("CXX") or "c++", [f"{path.stem}.o" for path in hosts]
    without = [name for name in objects if name != "choice.o"]
    (folder / "build.ninja").write_text(
        f"rule compile\n  command = {compiler} {flags} -c $in -o $out\n"
        f"rule link\n  command = {compiler} -shared -Wl,-Bsymbolic $in -L{torch_root / 'lib'} -ltorch_cpu -o $out\n"
        + "".join(f"build {o}: compile {path}\n" for o, path in zip(objects, hosts, strict=True))
        + f"build nag_cuda_emulated.so: link {' '.join(without)}\n"
        + f"build nag_cuda_emulated_choice.so: link {' '.join(objects)} | nag_cuda_emulated.so\n"
    )
    done = subprocess.run([sys.executable, "-m", "ninja", "-C", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


def _strides(x: Tensor, batch: int, dims: int) -> list[int]:
    return [0 if x.shape[0] != batch else x.stride(0), *(x.stride(i) for i in range(1, dims))]


def _storage(x: Tensor) -> tuple[int, int]:
    return x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()


def settings_of(native, values, batch: int):
    if isinstance(values[0], Tensor):
        return native.Settings(
            [x.data_ptr() for x in values], [x.stride(0) if x.ndim else 0 for x in values], [0.0] * 3
        )
    return native.Settings([0, 0, 0], [0, 0, 0], [float(x) for x in values])


def fused_guided_attention(
    query: Tensor, key_positive: Tensor, value_positive: Tensor, key_negative: Tensor, value_negative: Tensor,
    nag_scale, nag_tau, nag_alpha, key_shared: Tensor | None = None, value_shared: Tensor | None = None,
    mask_positive: Tensor | None = None, mask_negative: Tensor | None = None, mask_shared: Tensor | None = None,
    softmax_scale: float | None = None, negative_logit_bias: float = 0.0, rule: str = "nag", *,
    form: str, tiles: int = 1, keep: bool = True, blocks: int = 0, maps: bool = True, order: int = 0, early: bool = False,
    native=None,
) -> Tensor:  # fmt: skip
    """As the operation, by the one-launch kernels (`form` "text" or "cluster") or by the branches kernel and the blend
    ("branches")."""
    native = native or module()
    batch, length, heads, size = query.shape
    out = torch.full((batch, length, heads, size), float("nan"), dtype=query.dtype)
    wide = torch.full((2, batch, length, heads, size), float("nan"))
    segments, read = [], [query]
    for key, value, mask, bias in (
        (key_shared, value_shared, mask_shared, 0.0),
        (key_positive, value_positive, mask_positive, 0.0),
        (key_negative, value_negative, mask_negative, negative_logit_bias),
    ):
        if key is None or key.shape[1] == 0:
            segments.append(native.Segment(0, 0, 0, [0] * 3, [0] * 3, [0] * 2, 0, 0.0))
            continue
        read += [key, value] + ([] if mask is None else [mask])
        segments.append(native.Segment(
            key.data_ptr(), value.data_ptr(), 0 if mask is None else mask.data_ptr(), _strides(key, batch, 3),
            _strides(value, batch, 3), [0, 0] if mask is None else _strides(mask, batch, 2), key.shape[1], bias * LOG2E,
        ))  # fmt: skip
    values = (nag_scale, nag_tau, nag_alpha)
    read += [x for x in values if isinstance(x, Tensor)]
    scale = (size**-0.5 if softmax_scale is None else softmax_scale) * LOG2E
    half = query.dtype == torch.float16
    params = native.AttentionParams(
        query.data_ptr(), _strides(query, batch, 3), out.data_ptr(), wide[0].data_ptr(), wide[1].data_ptr(),
        [batch, length, heads, size, 0], heads // key_positive.shape[2], scale, RULES[rule], keep,
        settings_of(native, values, batch), segments,
    )  # fmt: skip
    if form == "text":
        native.set_ranges([_storage(x) for x in read], [_storage(out)])
        native.text_attention(params, half, tiles, order, early)
        return out
    if form == "cluster":
        assert query.dtype == torch.bfloat16
        native.set_ranges([_storage(x) for x in read], [_storage(out)])
        native.cluster(params, blocks, maps, order, early)
        return out
    native.set_ranges([_storage(x) for x in read], [_storage(wide)])
    native.branches(params, half, order, early)
    rows = [x.view(batch * length, heads * size) for x in (*wide, out)]
    _blend(native, *rows, batch, values, "nag" if rule == "nag" else "nasa", order)
    return out


def _blend(native, positive, negative, out, samples, values, rule, order, threads=64, vector=8):
    names = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
    read = [positive, negative, *(x for x in values if isinstance(x, Tensor))]
    native.set_ranges([_storage(x) for x in read], [_storage(out)])
    rows, channels = positive.shape
    native.guidance(
        f"{names[positive.dtype]} {names[out.dtype]}", positive.data_ptr(), negative.data_ptr(), out.data_ptr(),
        [positive.stride(0), negative.stride(0), rows, max(rows // samples, 1), channels], RULES[rule],
        settings_of(native, values, samples), threads, vector, order,
    )  # fmt: skip


def guidance(
    positive: Tensor, negative: Tensor, *values, rule: str = "nag", threads: int = 64, vector: int = 8
) -> Tensor:
    """positive, negative [N, C] with unit last stride; one setting, or one per row."""
    out = torch.full(positive.shape, float("nan"), dtype=positive.dtype)
    samples = positive.shape[0] if isinstance(values[0], Tensor) else 1
    _blend(module(), positive, negative, out, samples, values, rule, 0, threads, vector)
    return out
