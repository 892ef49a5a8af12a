# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the library finds in an x86 processor, against the system's own list of it, and which path it then runs."""

import os
import platform
import subprocess
from pathlib import Path

import pytest
from test_cpu_paths import CSRC, PATHS, ROOT, compile_each, compiler

from nag_kernels import availability

CPUINFO = Path("/proc/cpuinfo")
pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="no x86 processor")
needs_cpuinfo = pytest.mark.skipif(not CPUINFO.exists(), reason="no /proc/cpuinfo")

# Of each feature what Linux calls its parts.
PARTS = {
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx512_bf16": {"avx512_bf16"},
    "amx_bf16": {"amx_bf16", "amx_tile"},
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    to = tmp_path_factory.mktemp("processor") / "processor_main"
    sources = [ROOT / "tests/cpu/native/processor_main.cpp", CSRC / "cpu/capability.cpp"]
    compile_each([[compiler(), "-std=c++20", "-O1", "-Wall", "-Werror", f"-I{CSRC}", *sources, "-o", to]])
    return to


def found(program, *words):
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0].split()


def chosen(program, **environment):
    without = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    done = subprocess.run([program], capture_output=True, text=True, check=True, env={**without, **environment})
    return done.stdout.splitlines()[1]


def listed():
    """What /proc/cpuinfo says of the first processor, in the program's words."""
    first = CPUINFO.read_text().partition("\n\n")[0]
    lines = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in first.splitlines())}
    flags, features = set(lines["flags"].split()), ["intel"] if lines["vendor_id"] == "GenuineIntel" else []
    for feature, parts in PARTS.items():
        if not parts <= flags:
            break  # each takes those before it along
        features.append(feature)
    return features


@needs_cpuinfo
def test_this_processor_is_what_the_system_lists(program):
    assert found(program) == listed()


@needs_cpuinfo
@pytest.mark.parametrize("bound", [None, *PATHS, "no such path"])
def test_the_path_follows_from_what_the_system_lists(program, bound):
    features = listed()
    pairs = "intel" not in features or bound == "avx512_bf16"
    here = {"default", *features, *(["amx"] if "amx_bf16" in features else [])} - (set() if pairs else {"avx512_bf16"})
    allowed = PATHS[: PATHS.index(bound) + 1] if bound in PATHS else PATHS
    expected = [path for path in allowed if path in here][-1]
    assert chosen(program, **({} if bound is None else {"ATEN_CPU_CAPABILITY": bound})) == expected


@pytest.mark.skipif(availability.refusal("cpu", "cpu") is not None, reason="cpu is not here: not built")
def test_the_library_runs_that_path(program):
    assert availability.cpu_capability() == chosen(program, **os.environ)


# --- processors that are not here: vendor, leaf 1 ecx, leaf 7 ebx and edx, its subleaf 1 eax, and XCR0 ---------------------

XSAVE, AVX, FMA, F16C = 1 << 27, 1 << 28, 1 << 12, 1 << 29
AVX2, F, DQ, BW, VL = 1 << 5, 1 << 16, 1 << 17, 1 << 30, 1 << 31
BF16, AMX_BF16, AMX_TILE = 1 << 5, 1 << 22, 1 << 24
AVX_STATE, AVX512_STATE = 0b110, 0b11100000
ALL = (XSAVE | AVX | FMA | F16C, AVX2 | F | DQ | BW | VL, AMX_BF16 | AMX_TILE, BF16, AVX_STATE | AVX512_STATE)


@pytest.mark.parametrize(("vendor", "intel"), [("GenuineIntel", ["intel"]), ("AuthenticAMD", []), ("GenuineIntex", [])])
def test_a_processor_that_has_all(program, vendor, intel):
    assert found(program, vendor, *ALL) == [*intel, *PARTS]


@pytest.mark.parametrize(
    ("word", "bits", "left"),
    [
        (0, (AVX, FMA, F16C), 0),
        (1, (AVX2,), 0),
        (1, (F, DQ, BW, VL), 1),
        (2, (AMX_BF16, AMX_TILE), 3),
        (3, (BF16,), 2),
        (4, (1 << 1, 1 << 2), 0),  # the system keeps no AVX state
        (4, (1 << 5, 1 << 6, 1 << 7), 1),  # nor that of AVX-512
    ],
)
def test_each_bit_counts(program, word, bits, left):
    """Without it a path is not there, nor any wider one: its first instruction would end the process."""
    for bit in bits:
        words = [x & ~bit if i == word else x for i, x in enumerate(ALL)]
        assert found(program, "AuthenticAMD", *words) == list(PARTS)[:left], hex(bit)
