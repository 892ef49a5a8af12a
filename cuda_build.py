# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""nvcc: where it is, for which GPUs it compiles, and its command line. Shared by setup.py and the tests."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import installed_torch

# Machine code runs on the later GPUs of its major version as well (sm_80 on 8.6 and 8.9); the PTX of
# the last is for GPUs to come.
DEFAULT_ARCHITECTURES = "8.0 9.0 10.0 12.0+PTX"
NAMES = {"Ampere": "8.0 8.6+PTX", "Ada": "8.9+PTX", "Hopper": "9.0+PTX", "Blackwell": "10.0 12.0+PTX"}


@cache
def nvcc() -> Path | None:
    """The compiler: in CUDA_HOME or CUDA_PATH, on the PATH, in /usr/local/cuda, or from pip's nvidia-cuda-nvcc."""
    found = [Path(os.environ[name], "bin", "nvcc") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    on_path = shutil.which("nvcc")
    found += [Path(on_path)] if on_path else []
    found.append(Path("/usr/local/cuda/bin/nvcc"))
    found += sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("cu*/bin/nvcc"), reverse=True)
    return next((path for path in found if os.access(path, os.X_OK)), None)


@cache
def toolkit() -> Path:
    """The folder with the toolkit's include and lib, as nvcc itself names it (a wrapper may stand on the PATH)."""
    said = subprocess.run([nvcc(), "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull],
                          capture_output=True, text=True)  # fmt: skip
    top = re.search(r"^#\$ TOP=(.*)$", said.stderr, re.M)
    return Path(top.group(1).strip()) if top else nvcc().resolve().parents[1]


def library_dirs() -> list[str]:
    return [str(path) for path in (toolkit() / "lib64", toolkit() / "lib") if path.exists()]


def include_dirs() -> list[str]:
    return [str(toolkit() / "include")]


EXPORTED = f"-Wl,--version-script={Path(__file__).parent / 'csrc' / 'exported_symbols'}"  # zig has no --exclude-libs
LIBRARIES = ["torch_cpu", "cudart_static", "rt", "dl", "pthread"]


def link_arguments(folder: Path) -> list[str]:
    """What every link of the CUDA library is given, behind its libraries.

    A CUDA build of torch keeps some functions that the library calls in libtorch_cuda.so. `import torch` opens that file
    so that only libraries which name it as needed see what is in it. So it is named, without a path: by then it is loaded. An
    empty library of that name is linked with, made in `folder`, so that any build of torch can be built against.
    """
    named = folder / "libtorch_cuda.so"
    folder.mkdir(parents=True, exist_ok=True)
    compiler = shlex.split(os.environ.get("CXX") or "c++")
    subprocess.run([*compiler, "-shared", "-nostdlib", "-x", "c++", os.devnull, f"-Wl,-soname,{named.name}", "-o", named],
                   check=True)  # fmt: skip
    return [EXPORTED, "-s", "-Wl,--no-as-needed", str(named)]


@cache
def version() -> str:
    """Of nvcc, as "13.0"."""
    said = subprocess.run([nvcc(), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    return found[1] if found else "an unknown version"


def missing(root: Path | None, any_torch: bool) -> str | None:
    """What the CUDA build lacks here, or None."""
    if root is None:
        return "no torch in the build environment"
    if nvcc() is None:
        return "no nvcc (in CUDA_HOME, on the PATH, or from pip install nvidia-cuda-nvcc)"
    cuda = installed_torch.cuda(root)
    if not any_torch and cuda is None:
        return "no CUDA in this build of torch (NAG_BUILD_CUDA=1 builds all the same)"
    if not any_torch and cuda.split(".")[0] != version().split(".")[0]:  # a driver for the one may not do for the other
        return f"no nvcc of CUDA {cuda}, like this torch: {nvcc()} is of {version()} (NAG_BUILD_CUDA=1 builds all the same)"
    try:
        architectures()
    except (ValueError, subprocess.CalledProcessError) as error:
        return f"no GPU to compile for: {error}"
    if not any((Path(folder) / "libcudart_static.a").exists() for folder in library_dirs()):
        return f"no libcudart_static.a in {toolkit()}"
    return None


def architectures(wanted: str | None = None) -> list[tuple[int, bool]]:
    """(number, with PTX) of each GPU generation to compile for; from TORCH_CUDA_ARCH_LIST, else what this nvcc knows.

    Raises: ValueError where that is none, or the list is wrong.
    """
    listed = wanted or os.environ.get("TORCH_CUDA_ARCH_LIST")
    text = listed or DEFAULT_ARCHITECTURES
    for name, numbers in NAMES.items():
        text = re.sub(rf"\b{name}(\+PTX)?\b", numbers, text)
    said = subprocess.run([nvcc(), "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    known = {int(number) for number in re.findall(r"sm_(\d+)\b", said)}
    found = []
    for part in re.split(r"[;,\s]+", text.strip()):
        match = re.fullmatch(r"(\d+)\.(\d)[af]?(\+PTX)?", part)
        if not match:
            raise ValueError(f"TORCH_CUDA_ARCH_LIST must list numbers like 9.0 or 9.0+PTX, got {part!r}")
        number = int(match[1] + match[2])
        if number < 80:
            print(f"nag_kernels: WARNING: no CUDA kernels for {part}: they need 8.0 or newer", file=sys.stderr)
        elif number in known:
            found.append((number, bool(match[3])))
        elif listed:
            raise ValueError(f"{nvcc()} cannot compile for {part} (it knows {sorted(known)})")
    if not listed and found and not found[-1][1]:
        found[-1] = (found[-1][0], True)
    if not found:
        raise ValueError(f"no GPU of {text!r} can be compiled for by {nvcc()}")
    return sorted(set(found))


def flags(targets: list[tuple[int, bool]], source: str = "") -> list[str]:
    """What every compile of csrc/cuda is given, for the tests as well.

    A source named *_sm90a.cu uses what only sm_90a has: where 9.0 is a target it is compiled for that alone, elsewhere for
    all targets, without it.
    """
    debug = os.environ.get("NAG_DEBUG") == "1"
    common = ["-std=c++20", *(["-O0", "-g"] if debug else ["-O3"])]
    if source.endswith("_sm90a.cu") and any(number == 90 for number, _ in targets):
        return [*common, "-DNAG_SM90A", "-gencode", "arch=compute_90a,code=sm_90a"]
    codes = []
    for number, ptx in targets:
        codes += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        codes += ["-gencode", f"arch=compute_{number},code=compute_{number}"] if ptx else []
    return [*common, *codes]


def compile_all(sources: list[str], include: list[str], folder: Path, jobs: int) -> list[str]:
    """Objects of the kernels (`sources`, which include no torch header) in `folder`, `jobs` at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    targets = architectures()
    common = [str(nvcc()), "-c", "-Xcompiler", "-fPIC,-fvisibility=hidden", *(f"-I{path}" for path in include)]

    def one(source: str) -> str:
        to = str(folder / (Path(source).stem + ".cuda.o"))
        print(f"nvcc {source} -> {to}", flush=True)
        subprocess.run([*common, *flags(targets, source), source, "-o", to], check=True)
        return to

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, sources))


if __name__ == "__main__":  # for make: which nvcc, and failure where there is none
    print(nvcc() or "no nvcc")
    sys.exit(nvcc() is None)
