# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA library compiled for GPUs that are not here: registers, spills, shared memory and matrix instructions read from
its machine code, its symbols, and its import under a torch without CUDA (a stub stands for libtorch_cuda.so)."""

import functools
import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
import cuda_build  # noqa: E402
from nag_kernels import gpu_table  # noqa: E402

# The types of attention by one architecture each, the others by both; `make compile-check` has all for all.
TARGETS = {"attention_f16": "8.0", "attention_bf16": "9.0"}
BOTH = "8.0 9.0"
TORCH = Path(torch.__file__).parent
LACKS = cuda_build.missing(TORCH, any_torch=True)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(LACKS is not None, reason=f"cuda compile is not here: {LACKS}")]


def tool(name: str) -> str:
    triton = pytest.importorskip("triton", reason="triton, which carries cuobjdump, is not here: not installed")
    return str(Path(triton.__file__).parent / "backends/nvidia/bin" / name)


@functools.cache
def library() -> Path:
    """_C_cuda for both architectures, kept between runs by the hash of its sources."""
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    read = [*sorted((ROOT / "csrc").glob("*.h")), *sorted((ROOT / "csrc" / "cuda").iterdir()), ROOT / "cuda_build.py"]
    text = b"".join(path.read_bytes() for path in read) + f"{TARGETS} {BOTH} {torch.__version__} {sys.version}".encode()
    folder = Path(tempfile.gettempdir()) / f"nag_cuda-{os.getuid()}-{hashlib.sha256(text).hexdigest()[:16]}"
    to = folder / "_C_cuda.abi3.so"
    if to.exists():
        return to
    include = [str(ROOT / "csrc"), str(ROOT / "csrc" / "cuda")]
    jobs = int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))
    objects = []
    for targets in (*TARGETS.values(), BOTH):
        own = [str(path) for path in sources if TARGETS.get(path.stem, BOTH) == targets]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TORCH_CUDA_ARCH_LIST", targets)
            objects += cuda_build.compile_all(own, include, folder, jobs)
    macros = ["-DPy_LIMITED_API=0x030A0000", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DUSE_CUDA=1"]
    include += [str(TORCH / "include"), *cuda_build.include_dirs(), sysconfig.get_path("include")]
    for path in sorted((ROOT / "csrc" / "cuda").glob("*.cpp")):
        objects.append(str(folder / f"{path.stem}.o"))
        subprocess.run(["c++", "-c", "-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", *macros, *(f"-I{x}" for x in include),
                        str(path), "-o", objects[-1]], check=True)  # fmt: skip
    link = ["c++", "-shared", *objects, *(f"-L{path}" for path in (TORCH / "lib", *cuda_build.library_dirs())),
            *(f"-l{name}" for name in cuda_build.LIBRARIES), *cuda_build.link_arguments(folder)]  # fmt: skip
    subprocess.run([*link, "-o", f"{to}.partial"], check=True)
    Path(f"{to}.partial").rename(to)
    return to


@functools.cache
def usage() -> dict[tuple[str, str], dict[str, int]]:
    """(architecture, kernel) -> registers, stack, local and static shared memory."""
    said = subprocess.run(
        [tool("cuobjdump"), "--dump-resource-usage", library()], capture_output=True, text=True, check=True
    )
    found, chip = {}, ""
    for line in said.stdout.splitlines():
        chip = (re.search(r"arch = (sm_\w+)", line) or re.search(r"\.(sm_\d+\w?)\.cubin", line) or [0, chip])[1]
        name = re.search(r"Function (\S+):", line)
        if name:
            kernel = name[1]
        numbers = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line))
        if numbers:
            found[chip, kernel] = {k: int(v) for k, v in numbers.items()}
    return found


def named(part: str) -> dict:
    return {key: value for key, value in usage().items() if part in key[1]}


def test_every_kernel_is_there_for_each_architecture():
    for chip, element, other in (("sm_80", "Half", "BFloat16"), ("sm_90", "BFloat16", "Half")):
        attention = [kernel for found, kernel in usage() if found == chip and "attention_kernel" in kernel]
        branches = [kernel for found, kernel in usage() if found == chip and "branches_kernel" in kernel]
        assert len(attention) == 7
        assert len(branches) == 5
        assert all(element in kernel and other not in kernel for kernel in attention + branches)
        assert sum("guidance_kernel" in kernel for found, kernel in usage() if found == chip) == 2 * 5
    assert {found for found, kernel in usage() if "cluster_kernel" in kernel} == {"sm_90a"}
    assert len(named("cluster_kernel")) == 2


def test_no_kernel_spills():
    for key, numbers in usage().items():
        assert numbers["REG"] <= 255, key
        assert numbers["STACK"] == numbers["LOCAL"] == 0, (key, numbers)


def test_registers_let_a_block_run():
    """A multiprocessor has 65536 registers, given out by 8 a thread: 256 threads a block for attention, 512 for guidance."""
    for part, threads in (("text_attention", 256), ("branches", 256), ("guidance", 512)):
        for key, numbers in named(part).items():
            if part == "branches" and ("Li192" in key[1] or "Li256" in key[1]):
                threads = 128
            assert -(-numbers["REG"] // 8) * 8 * threads <= 65536, key


@functools.cache
def machine_code(kernel: str, chip: str) -> str:
    """SASS of the kernels of one architecture whose names hold `kernel`."""
    names = [name for found, name in usage() if found == chip and kernel in name]
    return subprocess.run(
        [tool("cuobjdump"), "-sass", "-arch", chip, "-fun", ",".join(names), library()],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


@pytest.mark.parametrize(("chip", "element", "suffix"), [("sm_80", "4Half", ""), ("sm_90", "8BFloat16", ".BF16")])
def test_the_matrix_instructions_are_the_ones_meant(chip, element, suffix):
    """HMMA with float32 accumulators; wide loads; in the branches kernel asynchronous copies and matrix loads."""
    text = machine_code(f"text_attention_kernelINS_6device{element}ELi64ELi1E", chip)
    wide = re.compile(rf"HMMA\.16816\.F32{re.escape(suffix)}[^.]")  # and of no other type
    assert len(wide.findall(text)) >= 2 * 16
    assert len(wide.findall(text)) == text.count("HMMA.16816")
    assert "LDG.E.128" in text
    branches = machine_code(f"branches_kernelINS_6device{element}ELi128E", chip)
    assert len(wide.findall(branches)) >= 3 * (64 + 64)
    assert "LDGSTS" in branches
    assert "LDSM.16.M88.4" in branches
    assert "LDSM.16.MT88.4" in branches
    short = machine_code(f"text_attention_kernelINS_6device{element}ELi40ELi1E", chip)
    assert re.search(rf"HMMA\.1688\.F32{re.escape(suffix)}[^.]", short)
    assert wide.search(short)
    assert len(wide.findall(short)) == short.count("HMMA.16816")
    guidance = machine_code("guidance_kernelINS_6device8BFloat16ES2_Li8E", chip)
    assert "LDG.E.128" in guidance
    assert "STG.E.128" in guidance


@pytest.mark.parametrize("size", [64, 128])
def test_the_cluster_kernel_uses_what_sm_90a_has(size):
    """Matrix instructions of four warps, asynchronous (several before a wait), the bulk copy engine, its barriers, registers
    moved from the warps that fetch to those that attend, the shared memory of other blocks."""
    text = machine_code(f"cluster_kernelINS_6device8BFloat16ELi{size}E", "sm_90a")
    scores, values = (f"HGMMA.64x{n}x16.F32.BF16" for n in ((128, 64) if size == 64 else (64, 128)))
    assert text.count(scores) == 3 * 2 * size // 16  # three segments, two places each
    assert text.count(values) == 3 * 2 * (64 * 128 // size) // 16
    for name in ("UTMALDG.4D", "SYNCS.PHASECHK", "USETMAXREG", "UCGABAR_ARV", "LDGSTS", "STG.E.128"):
        assert name in text, name
    assert text.count("WARPGROUP.DEPBAR") < text.count("HGMMA") / 2  # not one wait after each


@pytest.mark.parametrize("size", [64, 128])
def test_exponentials_are_computed_while_values_are_multiplied(size):
    """In each of the three loops: all of them stand between the wait for the scores and the wait for the values."""
    text = machine_code(f"cluster_kernelINS_6device8BFloat16ELi{size}E", "sm_90a")
    marks = {"WARPGROUP.DEPBAR.LE gsb0, 0x1": "s", "WARPGROUP.DEPBAR.LE gsb0, 0x0": "v", "MUFU.EX2": "e", "HGMMA": "m"}
    order = "".join(marks[x] for x in re.findall("|".join(map(re.escape, marks)), text))
    loops = re.findall(r"s(e*)v(?:v*)(e*)m", order)  # from the scores to the next product
    exponentials = 8192 // size // 2 + 2  # of a thread: half of a tile's keys for each of its two rows, and two to fade
    assert [len(between) for between, _ in loops] == [exponentials] * 3
    assert not any(after for _, after in loops)


def test_where_only_sm_90a_goes(tmp_path):
    cluster, other = "csrc/cuda/cluster_sm90a.cu", "csrc/cuda/attention_bf16.cu"
    both = [(80, False), (90, True)]
    assert [x for x in cuda_build.flags(both, cluster) if "code=" in x] == ["arch=compute_90a,code=sm_90a"]
    assert "-DNAG_SM90A" in cuda_build.flags(both, cluster)
    assert [x for x in cuda_build.flags(both, other) if "code=" in x] == [
        f"arch=compute_{x}" for x in ("80,code=sm_80", "90,code=sm_90", "90,code=compute_90")
    ]
    assert cuda_build.flags([(80, True)], cluster) == cuda_build.flags([(80, True)], other)
    # Without sm_90a the file still compiles, to a library that says it lacks the kernel.
    include = [str(ROOT / "csrc"), str(ROOT / "csrc" / "cuda")]
    command = [cuda_build.nvcc(), "-c", *cuda_build.flags([(80, False)], cluster), *(f"-I{x}" for x in include)]
    subprocess.run([*command, ROOT / cluster, "-o", tmp_path / "without.o"], check=True)


def test_a_public_auditor_finds_only_stable_symbols():
    auditor = Path(sys.executable).with_name("torch-abi-audit")
    audit = subprocess.run([auditor, "--check", "both", library()], capture_output=True, text=True)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert re.search(r"Torch ABI:\s+STABLE\s+Min torch:\s+2\.10\.", audit.stdout)
    assert re.search(r"CPython ABI:\s+abi3", audit.stdout)
    names = subprocess.run(["nm", "-DC", library()], capture_output=True, text=True, check=True).stdout
    assert not re.search(r" U .*\b(at|c10|torch)::", names)
    assert [line.split()[-1] for line in names.splitlines() if " T " in line] == ["PyInit__C_cuda"]


def test_it_names_the_libraries_of_torch_and_no_path():
    """libtorch_cuda.so by name, although it is linked with a torch that has none; the CUDA runtime is inside, the driver is
    asked for by that."""
    text = subprocess.run(["readelf", "-d", library()], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", text))
    assert {name for name in needed if "torch" in name or "c10" in name} == {"libtorch_cpu.so", "libtorch_cuda.so"}
    assert [name for name in needed if "cuda" in name or "nv" in name] == ["libtorch_cuda.so"]
    assert not re.search("RPATH|RUNPATH", text)


IMPORT = """
import ctypes, importlib.util, sys, torch
ctypes.CDLL(sys.argv[2], mode=ctypes.RTLD_LOCAL)  # as `import torch` of a CUDA build opens libtorch_cuda.so
spec = importlib.util.spec_from_file_location("nag_kernels._C_cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
"""


def test_it_defines_its_operations_when_imported(tmp_path):
    """DualForward a libtorch_cuda.so with what a torch without CUDA lacks; nothing of it can be called here."""
    if torch.version.cuda is not None:
        pytest.skip("a torch without CUDA is not here: this one has its own libtorch_cuda.so")
    stub = tmp_path / "of_another_file_name.so"
    command = [
        "cc",
        "-shared",
        "-fPIC",
        "-Wl,-soname,libtorch_cuda.so",
        ROOT / "tests/gpu/torch_cuda_stub.c",
        "-o",
        stub,
    ]
    subprocess.run(command, check=True)
    code = IMPORT + (
        "spec.loader.exec_module(module); print(module.limits(), module.launches()); "
        "o = torch.ops.nag_cuda; print(o.fused_guided_attention.overloads(), o.guidance.overloads()); "
        "print(torch._C._dispatch_has_kernel_for_dispatch_key('nag_cuda::fused_guided_attention.tensor', 'CUDA'))"
    )
    ran = subprocess.run([sys.executable, "-c", code, library(), stub], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    limits, operations, kernel = ran.stdout.splitlines()
    found = {"text_size": gpu_table.TEXT_MAX_SIZE, "text_length": gpu_table.TEXT_MAX_LENGTH,
             "branch_size": gpu_table.BRANCH_MAX_SIZE, "cluster_size": max(gpu_table.CLUSTER_MAX_HEADS)}  # fmt: skip
    assert limits == f"{found} {dict.fromkeys(('guidance', 'text', 'branches', 'cluster'), 0)}"
    assert operations == "['default', 'tensor'] ['default', 'tensor']"
    assert kernel == "True"


def test_under_a_torch_without_cuda_it_does_not_load_and_says_so():
    if torch.version.cuda is not None:
        pytest.skip("a torch without CUDA is not here")
    ran = subprocess.run([sys.executable, "-c", IMPORT, library(), TORCH / "lib" / "libtorch_cpu.so"],
                         capture_output=True, text=True)  # fmt: skip
    assert "libtorch_cuda.so: cannot open shared object file" in ran.stderr


# --- the build's own decisions ----------------------------------------------------------------------------------------


def test_architectures(monkeypatch, capsys):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    found = cuda_build.architectures()
    assert found[0] == (80, False)
    assert found[-1][1], "PTX for GPUs to come"
    assert cuda_build.architectures("8.6;9.0+PTX") == [(86, False), (90, True)]
    assert cuda_build.architectures("7.5, 8.0") == [(80, False)]
    assert "no CUDA kernels for 7.5" in capsys.readouterr().err
    assert cuda_build.architectures("Hopper") == [(90, True)]
    for wrong, said in (
        ("9", "must list numbers"),
        ("7.0", "can be compiled for"),
        ("99.0", "cannot compile for 99.0"),
    ):
        with pytest.raises(ValueError, match=said):
            cuda_build.architectures(wrong)


def test_what_is_no_reason_to_build(tmp_path, monkeypatch):
    """A torch without CUDA or of another CUDA than nvcc's, or no GPU to compile for: unless it is asked for."""
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)

    def lacks(cuda: str | None, any_torch: bool = False) -> str | None:
        (tmp_path / "version.py").write_text(f"cuda: Optional[str] = {cuda!r}\n")
        return cuda_build.missing(tmp_path, any_torch)

    same, other = cuda_build.version(), f"{int(cuda_build.version().split('.')[0]) - 1}.8"
    assert "no CUDA in this build of torch" in lacks(None)
    assert lacks(same) is lacks(None, any_torch=True) is lacks(other, any_torch=True) is None
    assert f"no nvcc of CUDA {other}, like this torch" in lacks(other)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.5")
    assert "no GPU to compile for: no GPU of '7.5'" in lacks(same)


def test_an_nvcc_that_fails_at_once_is_none(tmp_path, monkeypatch):
    (tmp_path / "version.py").write_text("cuda: Optional[str] = '13.0'\n")
    (tmp_path / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setattr(cuda_build, "nvcc", lambda: tmp_path / "nvcc")
    monkeypatch.setattr(cuda_build, "version", cuda_build.version.__wrapped__)
    assert "is of an unknown version" in cuda_build.missing(tmp_path, any_torch=False)
    assert "no GPU to compile for" in cuda_build.missing(tmp_path, any_torch=True)
