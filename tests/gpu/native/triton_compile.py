# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Compile the Triton kernels for a GPU that need not be here, and read registers and spills from the machine code.

`triton_compile.py '{"90": ["branches, joint"]}'` compiles kernels at their largest head size and prints JSON, `triton_compile.py
numbers` the constants in the PTX of two products over tiles of 64 keys x 128 channels; `python -m benchmarks.compile_check`
uses `specifications` and `build` for every row of the tile table."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
import triton.language as tl
from nag_kernels.triton_kernels import attention, configs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
VARIANTS = {
    "joint": {},
    "joint, vsf": {"VSF": True},
    "cross": {"SHARED": False},
    "finish": {"SHARED": False, "FINISH": True},
}


def usage(compiled) -> dict[str, int]:
    """Registers, stack, local and shared memory of a compiled kernel, and its matrix instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        said = subprocess.run([TOOL, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
        code = subprocess.run([TOOL, "-sass", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said.stdout)}
    names = set(re.findall(r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA|FFMA)\b", code))
    return found | {"SHARED": compiled.metadata.shared, "CODE": " ".join(sorted(names - {"FFMA"})) or "FFMA"}


def build(kernel, types: dict[str, str], constants: dict, capability: int, **options: int) -> dict:
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(kernel, signature, constants, aligned)
    return usage(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options))


def branches(size: int, dtype: torch.dtype, capability: int, variant: str) -> dict:
    config = configs.tiles(size, dtype, capability)
    narrow = dtype == torch.bfloat16
    types = {
        "query": POINTERS[dtype],
        "scale": "fp32",
        "bias": "fp32",
        "shared_out": POINTERS[dtype],
        "shared_lse": "*fp32",
    }
    types |= dict.fromkeys(("positive", "negative"), "*fp16" if narrow else "*fp32")
    types |= dict.fromkeys(("scales_positive", "scales_negative"), "*fp32")
    for part in ("positive", "negative", "shared"):
        types |= {f"key_{part}": POINTERS[dtype], f"value_{part}": POINTERS[dtype], f"mask_{part}": "*u8"}
    constants = {
        "HEADS": 24, "REPEATS": 1, "SIZE": size, "SHARED": True, "FINISH": False, "MASK_POSITIVE": True,
        "MASK_NEGATIVE": True, "MASK_SHARED": False, "VSF": False, "NARROW": narrow, "WIDEN": False,
        "BLOCK_D": max(16, triton.next_power_of_2(size)),
        **{name: value for name, value in config.items() if name.startswith("BLOCK")}, **VARIANTS[variant],
    }  # fmt: skip
    return build(
        attention.branches, types, constants, capability, **{k: config[k] for k in ("num_warps", "num_stages")}
    )


def blend(dtype: torch.dtype, block: int, capability: int) -> dict:
    narrow = dtype == torch.bfloat16
    types = dict.fromkeys(("nag_scale", "nag_tau", "nag_alpha", "scales_positive", "scales_negative"), "*fp32")
    types |= dict.fromkeys(("positive", "negative"), "*fp16" if narrow else "*fp32") | {"out": POINTERS[dtype]}
    constants = {"NASA": False, "TENSOR": True, "SIZE": 64 if narrow else 1, "NARROW": narrow, "BLOCK": block}
    return build(attention.blend, types, constants, capability, num_warps=4 if block > 256 else 1)


def largest(capability: int, kernel: str) -> dict:
    """A kernel at its largest head size."""
    if kernel == "blend":
        return blend(torch.bfloat16, 1024, capability)
    kind = kernel.removeprefix("branches, ")
    return branches(
        256, torch.float32 if kind == "float32" else torch.bfloat16, capability, kind.replace("float32", "joint")
    )


@triton.jit
def two_products(query, key, value, out):
    row, token, channel = tl.arange(0, 64)[:, None], tl.arange(0, 64)[:, None], tl.arange(0, 128)[None, :]
    z = tl.zeros((64, 128), tl.float32)
    for start in range(0, 256, 64):
        logits = tl.dot(tl.load(query + row * 128 + channel), tl.trans(tl.load(key + (token + start) * 128 + channel)))
        z = tl.dot(logits.to(tl.bfloat16), tl.load(value + (token + start) * 128 + channel), z)
    tl.store(out + row * 128 + channel, z)


def numbers() -> list[int]:
    source = ASTSource(two_products, {"query": "*bf16", "key": "*bf16", "value": "*bf16", "out": "*fp32"}, {})
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": 2}).asm["ptx"]
    assert "m64n64k16" in ptx
    assert "m64n128k16" in ptx
    return [int(x) for x in re.findall(r"(?:or|add)\.\w+\s+%\w+, %\w+, (\d+);", ptx)]


if __name__ == "__main__":
    asked = {} if sys.argv[1] == "numbers" else json.loads(sys.argv[1])
    made = {chip: {kernel: largest(int(chip), kernel) for kernel in kernels} for chip, kernels in asked.items()}
    print(json.dumps(made or numbers()))
