# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Compile the Triton kernels for a GPU that need not be here: `triton_compile.py 90`. Prints registers and spills as JSON."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from nag_kernels.triton_kernels import attention, configs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}
TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def usage(compiled) -> dict[str, int]:
    """Registers, stack, local and shared memory of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        said = subprocess.run([TOOL, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", said.stdout)}


def build(kernel, types: dict[str, str], constants: dict, capability: int, **options: int) -> dict[str, int]:
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(kernel, signature, constants, aligned)
    return usage(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options))


def main() -> None:
    capability, found = int(sys.argv[1]), {}
    for dtype in POINTERS:
        for size in (64, 128, 256) if dtype == torch.bfloat16 else (128,):
            config = configs.tiles(size, dtype, capability)
            types = {
                "positive": "*fp32",
                "negative": "*fp32",
                "query": POINTERS[dtype],
                "shared_out": POINTERS[dtype],
                "shared_lse": "*fp32",
                "scale": "fp32",
                "bias": "fp32",
            }
            for part in ("positive", "negative", "shared"):
                types |= {f"key_{part}": POINTERS[dtype], f"value_{part}": POINTERS[dtype], f"mask_{part}": "*u8"}
            constants = {
                "HEADS": 24, "REPEATS": 1, "SIZE": size, "SHARED": True, "FINISH": False, "MASK_POSITIVE": True, "MASK_NEGATIVE": True,
                "MASK_SHARED": False, "VSF": False, "WIDEN": False, "BLOCK_D": size,
                **{name: value for name, value in config.items() if name.startswith("BLOCK")},
            }  # fmt: skip
            options = {name: config[name] for name in ("num_warps", "num_stages")}
            name = f"branches, head size {size}, {dtype}"
            found[name] = build(attention.branches, types, constants, capability, **options)
            found[f"{name}, vsf"] = build(attention.branches, types, constants | {"VSF": True}, capability, **options)
    types = dict.fromkeys(("positive", "negative", "nag_scale", "nag_tau", "nag_alpha"), "*fp32") | {"out": "*bf16"}
    constants = {"NASA": False, "TENSOR": True, "BLOCK": 1024}
    found["blend"] = build(attention.blend, types, constants, capability, num_warps=4)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
