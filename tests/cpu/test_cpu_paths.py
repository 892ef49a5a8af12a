# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The C++ CPU kernels on every SIMD path, and their machine code.

A path is chosen once per process, so the paths below this machine's own run test_attention.py, test_guidance.py and
what test_gradients.py and test_gradient_kernel.py have of the kernel again in processes of their own. AVX-512 is tried
by its logic on 64-byte vectors lowered to this machine's, Arm by a cross compiler and an emulator where they are
installed.
"""

import ctypes
import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_cpu_kernel import SETTINGS, attend, bounded

from nag_kernels import availability, backends, testing

ROOT = pathlib.Path(__file__).parents[2]
CSRC = ROOT / "csrc"
LIBRARY = pathlib.Path(backends.__file__).parent / "_C.abi3.so"
pytestmark = pytest.mark.skipif(availability.refusal("cpu", "cpu") is not None, reason="cpu is not here: not built")
# torch's own attention must not be bounded along: on processors with AMX it then fails ("pack_vnni2 is only supported
# when avx512 is supported", torch 2.13).
# With the path that is wanted as argument; on another one it only says which.
RUN_TESTS = """
import os, sys, pytest, torch
bound = os.environ.pop("ATEN_CPU_CAPABILITY")
torch.backends.cpu.get_cpu_capability()
os.environ["ATEN_CPU_CAPABILITY"] = bound
from nag_kernels import _C
print(_C.capability(), flush=True)
if _C.capability() != sys.argv[1]:
    sys.exit()
files = [f"tests/ops/test_{name}.py" for name in ("attention", "guidance", "gradients", "gradient_kernel")]
sys.exit(pytest.main(["-q", "-k", "cpu or of_the_kernel or registered", *files]))
"""
PATHS = ["default", "avx2", "avx512", "avx512_bf16", "amx"]
CAPABILITY = "from nag_kernels import _C; print(_C.capability())"


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in PATHS if path != availability.cpu_capability()])
def test_other_paths(path):
    """The accuracy tests again on each path that this machine can run and does not choose by itself."""
    own = availability.cpu_capability()
    if own not in PATHS:
        pytest.skip(f"{own} is the only path here")
    out = bounded(path, RUN_TESTS, path)
    if out.split()[0] != path:
        assert out.split() == [min(own, path, key=PATHS.index)]
        pytest.skip(f"cpu path {path} is wider than this machine's {own}")
    assert f"[cpu path: {path}]" in out
    assert int(re.search(r"cpu=(\d+)", out)[1]) > 300


def test_a_bound_that_is_no_path_is_none():
    assert bounded("no such path", CAPABILITY).split()[-1] == availability.cpu_capability()


@pytest.mark.slow
def test_bfloat16_pairs_only_where_they_are_fast():
    """Intel's processors run bfloat16 pairs when asked by name, and otherwise use AMX or widen."""
    info = pathlib.Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    if "avx512_bf16" not in info:
        pytest.skip("cpu path avx512_bf16: not in this machine")
    expected = ("amx", "avx512") if "GenuineIntel" in info else ("avx512_bf16",)
    if "ATEN_CPU_CAPABILITY" not in os.environ:
        assert availability.cpu_capability() in expected
    assert bounded("avx512_bf16", CAPABILITY).split()[-1] == "avx512_bf16"


def compiler():
    found = shutil.which(shlex.split(os.environ.get("CXX", "c++"))[0])
    return found or pytest.skip("no C++ compiler to build the kernels for this test")


def compile_each(commands):
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(lambda c: subprocess.run(c, capture_output=True, text=True), commands):
            assert done.returncode == 0, done.stderr


FLAGS = [
    "-std=c++20", "-O1", "-fexpensive-optimizations", "-fPIC", "-fvisibility=hidden", "-DPy_LIMITED_API=0x030A0000",
    "-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{CSRC}", f"-I{pathlib.Path(torch.__file__).parent / 'include'}",
    f"-I{sysconfig.get_path('include')}", "-Wno-psabi",
]  # fmt: skip
EMULATED = ROOT / "tests/cpu/native/emulated_avx512.cpp"


@pytest.fixture(scope="module")
def host_objects(tmp_path_factory):
    """All of `_C` but the kernels with emulated vectors."""
    cxx, folder = compiler(), tmp_path_factory.mktemp("objects")
    sources = [CSRC / "module.cpp"]
    sources += [
        CSRC / f"cpu/{name}.cpp" for name in ("attention", "gradient", "guidance", "kernels_default", "capability")
    ]
    objects = [folder / f"{source.stem}.o" for source in sources]
    compile_each([[cxx, *FLAGS, "-c", source, "-o", to] for source, to in zip(sources, objects, strict=True)])
    return objects


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in ("avx512_bf16", "amx") if path != availability.cpu_capability()])
def test_avx512_logic(path, tmp_path, host_objects):
    """The host code and the AVX-512 kernels with emulated vectors (and pairs, or tiles), as a `_C` of its own.

    The path that this machine chooses by itself runs in all other tests.
    """
    cxx, library, own = compiler(), tmp_path / "_C.abi3.so", tmp_path / "emulated_avx512.o"
    tiles = ["-DNAG_EMULATED_TILES"] if path == "amx" else []
    compile_each([[cxx, *FLAGS, *tiles, "-c", EMULATED, "-o", own]])
    torch_lib = pathlib.Path(torch.__file__).parent / "lib"
    compile_each([[cxx, "-shared", "-o", library, own, *host_objects, f"-L{torch_lib}", "-ltorch_cpu"]])
    find_it = f"""
import sys, importlib.util
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "nag_kernels._C":
            return importlib.util.spec_from_file_location(name, {str(library)!r})
sys.meta_path.insert(0, Finder())
"""
    out = bounded("avx2", find_it + RUN_TESTS, path)
    assert f"[cpu path: {path}]" in out
    assert int(re.search(r"cpu=(\d+)", out)[1]) > 300


def native_main(cxx, tmp_path, *flags):
    program = tmp_path / "attention_main"
    sources = [ROOT / "tests/cpu/native/attention_main.cpp", CSRC / "cpu/kernels_default.cpp"]
    compile_each([[*cxx, "-std=c++20", "-O1", "-Wall", "-Werror", f"-I{CSRC}", *flags, *sources, "-o", program]])
    return program


def arm_compiler():
    if found := shutil.which("aarch64-linux-gnu-g++"):
        return [found]
    if importlib.util.find_spec("ziglang"):  # of the extra "wheel"
        return [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"]
    return pytest.skip("cpu path neon: no cross compiler (aarch64-linux-gnu-g++, or ziglang)")


def test_arm(tmp_path):
    program = native_main(arm_compiler(), tmp_path, "-static")
    emulator = shutil.which("qemu-aarch64")
    if emulator is None:
        pytest.skip("cpu path neon: compiled, not run, no emulator (qemu-aarch64)")
    out = subprocess.run([emulator, program], capture_output=True, text=True)
    assert out.returncode == 0, out.stdout
    assert "path neon: ok" in out.stdout


@pytest.mark.slow
def test_no_access_out_of_bounds(tmp_path):
    """Packing, tiles and scratch under the address and undefined-behaviour sanitizers, in buffers of the exact size."""
    program = native_main([compiler()], tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover", "-g1")
    out = subprocess.run([program], capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr
    assert out.stdout.endswith("ok\n")


@pytest.mark.skipif(shutil.which("objdump") is None or availability.cpu_capability() == "neon", reason="no x86 objdump")
def test_wide_instructions_stay_in_their_paths():
    """Code that any machine may run, inline functions of headers included, has no register of AVX or AVX-512."""
    text = subprocess.run(["objdump", "-dC", "--no-show-raw-insn", LIBRARY], capture_output=True, text=True).stdout
    function, wide = "", {}
    for line in text.splitlines():
        if line.endswith(">:"):
            function = line
        elif re.search(r"%[yz]mm|\tv[a-z]+ .*%xmm", line):
            wide[function] = line
    inside = [f for f in wide if re.search(r"nag::(avx2|avx512|avx512_bf16|amx)::", f)]
    assert len(inside) > 100
    assert not set(wide) - set(inside)


@pytest.mark.skipif(availability.cpu_capability() != "amx", reason="cpu path amx: not this machine's")
def test_tiles_leave_the_thread_as_it_was(tmp_path):
    """The tile set-up and the rounding mode of the calling thread after a call: what they were before it."""
    source = tmp_path / "state.cpp"
    source.write_text("""
#include <immintrin.h>
#include <string.h>
extern "C" __attribute__((target("amx-tile"))) void set_tiles(int rows) {
  struct { unsigned char palette, start, zero[14]; unsigned short bytes[16]; unsigned char rows[16]; } c = {};
  c.palette = 1;
  c.bytes[0] = 64;
  c.rows[0] = rows;
  asm volatile("ldtilecfg %0" ::"m"(c));
}
extern "C" int tile_rows() {
  alignas(64) char c[64];
  asm volatile("sttilecfg %0" : "=m"(c));
  return c[48];
}
extern "C" unsigned status() { return _mm_getcsr(); }
""")
    library = tmp_path / "state.so"
    compile_each([[compiler(), "-O1", "-shared", "-fPIC", source, "-o", library]])
    state = ctypes.CDLL(str(library))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        inputs = testing.make_inputs(length=70, shared=20, dtype=torch.bfloat16)
        before = state.status()
        for rows in (3, 16):
            state.set_tiles(rows)
            attend(inputs, *SETTINGS)
            assert state.tile_rows() == rows
            assert state.status() == before
    finally:
        torch.set_num_threads(threads)
