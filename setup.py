# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Builds `nag_kernels._C`, the C++ CPU kernels, and `nag_kernels._C_cuda`, the CUDA kernels, against the LibTorch stable
ABI (one binary for torch 2.10 and newer). No GPU is asked for, and torch is not imported. torch is no build requirement: pip
would fetch the newest, of several GB. The one that is installed is built against (installed_torch.py).

NAG_BUILD_EXT   unset: build; without a C++ compiler, or where it fails, install pure Python with a warning
                0:     pure Python      1: a compiler that is missing or fails is an error
NAG_BUILD_CUDA  unset: build _C_cuda where nvcc is found and this torch is a build for the same CUDA; where nvcc fails, go on
                       without it, with a warning
                0:     never            1: against any build of torch; an nvcc that is missing or fails is an error
NAG_DEBUG=1     debug symbols, no optimisation
TORCH_CUDA_ARCH_LIST, MAX_JOBS, CUDA_HOME   as torch reads them; see cuda_build.py
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

sys.path.insert(0, str(Path(__file__).parent))
import cuda_build
import installed_torch

PYTHON_ABI = "0x030A0000"  # abi3 of Python 3.10
TORCH_ABI = "0x020a000000000000"  # stable ABI of torch 2.10


WANTED, WANTED_CUDA = os.environ.get("NAG_BUILD_EXT"), os.environ.get("NAG_BUILD_CUDA")
TORCH = installed_torch.folder()
NO_TORCH = """
nag_kernels: there is {reason}. The compiled kernels are built against the torch of the
environment that they are installed into. Install the build that you want first, 2.10 or newer:

    pip install torch
    pip install .

uv and other builders cannot see that environment from where they build. They need --no-build-isolation, with
setuptools>=77 installed. For pure Python, without the compiled kernels: NAG_BUILD_EXT=0 pip install ."""


def warn(text: str) -> None:
    print(f"nag_kernels: WARNING: {text}", file=sys.stderr)


def missing() -> str | None:
    """What the extension needs of this machine, beside torch, and does not find, or None."""
    if sys.platform == "win32":
        return "no C++ compiler for it on Windows (the kernels use the vector extensions of GCC and Clang)"
    compiler = shlex.split(os.environ.get("CXX") or "c++")  # may be several words, as "ccache g++"
    if shutil.which(compiler[0]) is None:
        return f"no C++ compiler ({compiler[0]})"
    probe = (
        "typedef int V __attribute__((vector_size(16))); V f(V a) { return __builtin_shufflevector(a, a, 0, 4, 1, 5); }"
    )
    with tempfile.TemporaryDirectory() as folder:  # zig's compiler checks no syntax without writing an object
        tried = subprocess.run([*compiler, "-std=c++20", "-c", "-x", "c++", "-", "-o", Path(folder, "probe.o")],
                               input=probe.encode(), capture_output=True)  # fmt: skip
    if tried.returncode:
        return f"no C++ compiler that is new enough (GCC 12 or Clang; {shlex.join(compiler)} lacks C++20 or vector shuffles)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "no Python.h (the headers of this Python; python3-dev on Debian)"
    return None


NAMESPACE = re.search(r'^NAMESPACE = "(\w+)"', Path("nag_kernels/namespace.py").read_text(), re.M)[1]
MACROS = [("Py_LIMITED_API", PYTHON_ABI), ("TORCH_TARGET_VERSION", TORCH_ABI), ("NAG_NAMESPACE", NAMESPACE)]

# Against errors that reach memory: a guard on stack frames, checked library calls, and tables of the loader that are read-only
# once it has filled them in. The kernels took the same time with and without, within the noise of 5 %.
HARDENED = ["-fstack-protector-strong", "-Wformat", "-Wformat-security"]
HARDENED_LINK = ["-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack"] if sys.platform == "linux" else []


def extension() -> Extension:
    debug = os.environ.get("NAG_DEBUG") == "1"
    speed = ["-O0", "-g"] if debug else ["-O3", "-g0", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
    return Extension(
        "nag_kernels._C",
        sources=["csrc/module.cpp", *sorted(glob("csrc/cpu/*.cpp"))],
        depends=[*glob("csrc/*.h"), *glob("csrc/cpu/*.h")],
        include_dirs=["csrc", str(TORCH / "include")],
        library_dirs=[str(TORCH / "lib")],
        libraries=["torch_cpu"],
        define_macros=MACROS,
        extra_compile_args=["-std=c++20", "-fvisibility=hidden", *HARDENED, *speed],
        extra_link_args=[*HARDENED_LINK, *([cuda_build.EXPORTED] if sys.platform == "linux" else [])],
        py_limited_api=True,
    )


class BuildExt(build_ext):
    """Compiles the sources of an extension side by side (MAX_JOBS, else one job a core), those in CUDA by nvcc.

    Where a compiler fails, the extension is left out with one warning, unless it was asked for.
    """

    def build_extensions(self):
        self.check_extensions_list(self.extensions)
        for ext in list(self.extensions):
            cuda = ext.name.endswith("_cuda")
            try:
                self.build_extension(ext)
            except (CCompilerError, BaseError, subprocess.CalledProcessError, OSError) as error:
                if WANTED_CUDA == "1" or (WANTED == "1" and not cuda):
                    raise
                if cuda:
                    warn(f"the build of the CUDA kernels failed; installing without them: {error}")
                    self.extensions.remove(ext)
                    continue
                warn(f"the C++ compiler failed; installing pure Python, without the CPU kernels: {error}")
                self.extensions.clear()
                wheel = self.distribution.get_command_obj("bdist_wheel", create=False)
                if wheel is not None:
                    wheel.root_is_pure = True
                return

    def build_extension(self, ext):
        jobs = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
        sources = [x for x in ext.sources if x.endswith(".cu")]
        if sources:
            ext.sources = [x for x in ext.sources if x not in sources]
            ext.extra_objects = cuda_build.compile_all(sources, ["csrc", "csrc/cuda"], Path(self.build_temp), jobs)
            ext.extra_link_args = [*HARDENED_LINK, *cuda_build.link_arguments(Path(self.build_temp))]
        compile_all = self.compiler.compile

        def compile_parallel(sources, *args, **kwargs):
            with ThreadPoolExecutor(jobs) as pool:
                return [
                    o for objects in pool.map(lambda s: compile_all([s], *args, **kwargs), sources) for o in objects
                ]

        self.compiler.compile = compile_parallel
        super().build_extension(ext)


def cuda_extension() -> Extension:
    return Extension(
        "nag_kernels._C_cuda",
        sources=[*sorted(glob("csrc/cuda/*.cpp")), *sorted(glob("csrc/cuda/*.cu"))],
        depends=[*glob("csrc/*.h"), *glob("csrc/cuda/*.h"), *glob("csrc/cuda/*.cuh"), "cuda_build.py"],
        include_dirs=["csrc", "csrc/cuda", str(TORCH / "include"), *cuda_build.include_dirs()],
        library_dirs=[str(TORCH / "lib"), *cuda_build.library_dirs()],
        libraries=cuda_build.LIBRARIES,
        extra_compile_args=["-std=c++20", "-fvisibility=hidden", *HARDENED, "-O2", "-g0"],
        define_macros=[*MACROS, ("USE_CUDA", "1")],
        py_limited_api=True,
    )


reason = missing() if WANTED != "0" else "NAG_BUILD_EXT=0"
if reason and WANTED == "1":
    sys.exit(f"nag_kernels: NAG_BUILD_EXT=1, but there is {reason}")
if reason and WANTED != "0":
    warn(f"{reason}; installing pure Python, without the CPU kernels")
no_torch = None if reason else installed_torch.missing(TORCH)
if no_torch and not {"sdist", "egg_info"} & set(sys.argv):  # these two build nothing
    sys.exit(NO_TORCH.format(reason=no_torch))
build = reason is None and no_torch is None

cuda_reason = cuda_build.missing(TORCH, any_torch=WANTED_CUDA == "1") if build else "no C++ build"
if cuda_reason and WANTED_CUDA == "1":
    sys.exit(f"nag_kernels: NAG_BUILD_CUDA=1, but there is {cuda_reason}")
build_cuda = WANTED_CUDA != "0" and cuda_reason is None
if not build_cuda:
    print(f"nag_kernels: without the CUDA kernels: {cuda_reason or 'NAG_BUILD_CUDA=0'}", file=sys.stderr)

setup(
    py_modules=["nag_kernels_command"],
    packages=[
        "nag_kernels",
        "nag_kernels.comfyui",
        "nag_kernels.diffusers",
        "nag_kernels.diffusers.attention",
        "nag_kernels.diffusers.models",
        "nag_kernels.distill",
        "nag_kernels.play",
        "nag_kernels.prove",
        "nag_kernels.shapes",
        "nag_kernels.triton_kernels",
    ],
    package_dir={"nag_kernels": "nag_kernels", "nag_kernels.triton_kernels": "triton_kernels"},
    package_data={
        "nag_kernels": ["gpu_choices.csv", "py.typed"],
        "nag_kernels.triton_kernels": ["tiles.csv"],
        "nag_kernels.shapes": ["weights/*", "weights/*/*"],
    },
    ext_modules=[*([extension()] if build else []), *([cuda_extension()] if build_cuda else [])],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if build else {},
)
