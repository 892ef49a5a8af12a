# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.compile_check`: compile what the tables can choose for every GPU generation, with no GPU here.

Every row of the Triton tile table (in bfloat16 in every form, in float16 and float32 joint), the blend, and every CUDA
kernel; registers, spills, shared memory and matrix instructions are read from the machine code into
benchmarks/results/compile_check.csv. Rows are cached by the hash of their sources in out/compile_check, so a second run
compiles only what changed.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from nag_kernels.whole_file import whole_file, write_text

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "benchmarks" / "results" / "compile_check.csv"
CHIPS = (80, 86, 89, 90, 100, 120)
COLUMNS = ("kernel", "chip", "registers", "stack", "local", "shared", "matrix_instructions", "compiler")


def digest(*parts) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def triton_jobs(chips: tuple[int, ...]):
    """(name, chip, how to compile) of every Triton kernel that a row of the table can choose."""
    sys.path.insert(0, str(ROOT / "tests" / "gpu" / "native"))
    import triton_compile
    from nag_kernels.triton_kernels import configs

    for chip in chips:
        rows = {configs.find(size, bits, chip) for bits in (16, 32) for size in range(32, 257, 8)}
        for row in sorted(rows, key=lambda row: (row.bits, row.size_to)):
            for dtype in (torch.bfloat16, torch.float16) if row.bits == 16 else (torch.float32,):
                # Every form in bfloat16; the other types, which share their code, as the joint form.
                for variant in triton_compile.VARIANTS if dtype == torch.bfloat16 else ("joint",):
                    name = f"triton branches, {variant}, {str(dtype)[6:]}, head size {row.size_to}"
                    yield (
                        name,
                        chip,
                        lambda r=row, d=dtype, c=chip, v=variant: triton_compile.branches(r.size_to, d, c, v),
                    )
        for dtype in triton_compile.POINTERS:
            yield f"triton blend, {str(dtype)[6:]}", chip, lambda d=dtype, c=chip: triton_compile.blend(d, 1024, c)


def triton_rows(chips: tuple[int, ...], cache: Path):
    import triton

    sources = digest(*(p.read_bytes() for p in sorted((ROOT / "triton_kernels").iterdir()) if p.is_file()))
    for name, chip, compile_it in tqdm(list(triton_jobs(chips)), desc="triton", unit="kernel"):
        kept = cache / f"{digest(sources, triton.__version__, name, chip)}.json"
        if not kept.exists():
            write_text(kept, json.dumps(compile_it()))
        found = json.loads(kept.read_text())
        yield (name, chip, found["REG"], found["STACK"], found["LOCAL"], found["SHARED"], found["CODE"],
               f"triton {triton.__version__}")  # fmt: skip


def demangled(name: str) -> str:
    """A kernel's name in words: its base name and its template arguments."""
    base = re.search(r"(text_attention|branches|cluster|guidance)_kernel", name)[1]
    words = {"BFloat16": "bfloat16", "Half": "float16", "Float": "float32"}
    types = [words[t] for t in re.findall(r"\d(BFloat16|Half|Float)E", name)]
    if "S2_" in name:  # the first type again
        types.append(types[0])
    numbers = ", ".join(re.findall(r"Li(\d+)E", name))
    return f"cuda {base}, {' to '.join(types)}, {numbers}"


def cuda_rows(chips: tuple[int, ...], cache: Path):
    sys.path.insert(0, str(ROOT))
    import triton

    import cuda_build

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    version = re.search(
        r"V([\d.]+)", subprocess.run([cuda_build.nvcc(), "--version"], capture_output=True, text=True).stdout
    )[1]
    folder = ROOT / "csrc"
    headers = digest(*(p.read_bytes() for p in sorted([*folder.glob("*.h"), *folder.glob("cuda/*h")])), version)
    jobs = [(source, chip) for source in sorted(folder.glob("cuda/*.cu")) for chip in chips
            if chip == 90 or not source.stem.endswith("_sm90a")]  # fmt: skip
    for source, chip in tqdm(jobs, desc="nvcc", unit="file"):
        kept = cache / f"{digest(headers, source.read_bytes(), chip)}.json"
        if not kept.exists():
            cubin = kept.with_suffix(".cubin")
            flags = cuda_build.flags([(chip, False)], str(source))  # for one chip
            subprocess.run([cuda_build.nvcc(), "-cubin", *flags, f"-I{folder}", f"-I{folder / 'cuda'}", str(source),
                            "-o", str(cubin)], check=True)  # fmt: skip
            said = subprocess.run(
                [tool, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
            ).stdout
            code = subprocess.run([tool, "-sass", cubin], capture_output=True, text=True, check=True).stdout
            matrix = {part.split(None, 1)[0]: sorted(set(re.findall(r"\b(HG?MMA\.\w+\.F32(?:\.BF16)?)", part)))
                      for part in code.split("Function : ")[1:]}  # fmt: skip
            rows = [
                [name, *(int(re.search(rf"{x}:(\d+)", numbers)[1]) for x in ("REG", "STACK", "LOCAL", "SHARED")),
                 " ".join(matrix.get(name, []))]
                for name, numbers in re.findall(r"Function (\S+):\s*\n\s*(.*)", said)
            ]  # fmt: skip
            cubin.unlink()
            write_text(kept, json.dumps(rows))
        for name, *numbers, matrix in json.loads(kept.read_text()):
            yield (demangled(name), chip, *numbers, matrix, f"nvcc {version}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_check", description=__doc__)
    parser.add_argument("--chips", default=",".join(map(str, CHIPS)), help="compute capabilities times 10")
    parser.add_argument("--only", choices=("triton", "cuda"), help="one family; the report is then not written")
    parser.add_argument("--report", type=Path, default=REPORT)
    options = parser.parse_args(arguments)
    os.environ.pop("TRITON_INTERPRET", None)
    chips = tuple(int(x) for x in options.chips.split(","))
    cache = ROOT / "out" / "compile_check"
    cache.mkdir(parents=True, exist_ok=True)
    families = {"triton": triton_rows, "cuda": cuda_rows}
    rows = [row for name, run in families.items() if options.only in (None, name) for row in run(chips, cache)]
    if options.only is None:
        with whole_file(options.report) as part, part.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(rows)
    spilled = [row for row in rows if row[2] > 255 or row[3] or row[4]]
    for row in spilled:
        print("spills:", *row)
    print(f"{len(rows)} kernels compiled, {len(spilled)} with spills; most registers {max(row[2] for row in rows)}")
    sys.exit(bool(spilled))


if __name__ == "__main__":
    main()
