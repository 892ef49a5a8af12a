#!/usr/bin/env bash
# One would guess: a Triton kernel that a GPU of compute capability 9.0 runs is ordered as PTX demands, whatever the release of Triton.
# What really happens: in a pipelined loop (num_stages=2) the tiles come by cp.async, and the matrix instructions (wgmma) read them
#   through the async proxy. PTX demands a fence.proxy.async between the two. Triton 3.6.0 and 3.7.0 write one before the loop, and
#   none within it; 3.7.1 writes it (pull request 10537 of triton-lang/triton; it was seen as results that change from run to run,
#   pytorch/pytorch issue 181248). With num_stages=1 the tiles are stored by threads, and each release has the fence.
# Version: triton 3.6.0, 3.7.0 and 3.7.1, compiled for sm_90 without a GPU.
# Output seen:
#   3.6.0: num_stages=2 0 fences in the loop, num_stages=1 1
#   3.7.0: num_stages=2 0 fences in the loop, num_stages=1 1
#   3.7.1: num_stages=2 1 fences in the loop, num_stages=1 1
# Why it matters here: torch 2.10 and 2.11 bring Triton 3.6.0, and torch 2.12 brings 3.7.0. A kernel that passes its tests on one
#   H100 may read a tile too early on another, or after a driver update. Kernels for these releases take one stage on 9.0 and 10.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
cat > "$folder/loop.py" <<'PY'
import re
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def product(left, right, out, steps):
    row, inner, column = tl.arange(0, 64), tl.arange(0, 64), tl.arange(0, 64)
    total = tl.zeros((64, 64), tl.float32)
    for _ in range(steps):
        a = tl.load(left + row[:, None] * 64 + inner[None, :])
        b = tl.load(right + inner[:, None] * 64 + column[None, :])
        total = tl.dot(a, b, total)
        left += 64 * 64
        right += 64 * 64
    tl.store(out + row[:, None] * 64 + column[None, :], total)


def fences_in_the_loop(stages):
    pointers = {"left": "*bf16", "right": "*bf16", "out": "*fp32", "steps": "i32"}
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(3)}
    source = ASTSource(product, pointers, {}, aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": stages})
    text = made.asm["ptx"]
    labels = [x for x in re.finditer(r"^(\$L__BB\w+):", text, re.M)]
    loops = [text[x.start() : text.index(f"bra \t{x[1]};", x.start())] for x in labels if f"bra \t{x[1]};" in text[x.start() :]]
    loop = next(x for x in loops if "wgmma.mma_async" in x)
    assert ("cp.async" in loop) == (stages == 2)
    return loop.count("fence.proxy.async")


two, one = fences_in_the_loop(2), fences_in_the_loop(1)
print(f"{triton.__version__}: num_stages=2 {two} fences in the loop, num_stages=1 {one}")
sys.exit(0 if one > 0 and (two > 0) == (triton.__version__ == "3.7.1") else 1)
PY
for version in 3.6.0 3.7.0 3.7.1; do
  "$folder/venv/bin/pip" install -q --upgrade "triton==$version" setuptools
  TRITON_CACHE_DIR="$folder/cache-$version" "$folder/venv/bin/python" "$folder/loop.py"
done
