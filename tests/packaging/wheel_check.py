# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Run by build_wheels.sh with the Python of an environment that has torch, numpy and one wheel of nag_kernels.

python wheel_check.py pure
python wheel_check.py compiled cuda=0
python wheel_check.py compiled cuda=1 STUB     with a library in the place of libtorch_cuda.so, for a torch without CUDA
"""

import ctypes
import importlib.util
import pathlib
import platform
import sys

import torch

import nag_kernels
from nag_kernels import availability, gpu_table, testing

compiled, cuda = sys.argv[1] == "compiled", "cuda=1" in sys.argv
here = pathlib.Path(nag_kernels.__file__).parent
assert (here / "_C_cuda.abi3.so").exists() == (compiled and cuda)
assert gpu_table.read()
assert not [name for name in ("tiles.csv", "attention.py") if not (here / "triton_kernels" / name).exists()]
assert not [name for name in ("triton_kernels", "cuda_build") if importlib.util.find_spec(name)]
assert (availability.refusal("cpu", "cpu") is None) == compiled, nag_kernels.explain()

for threads in (1, 2):
    torch.set_num_threads(threads)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64) if compiled else (torch.float32,):
        inputs = testing.make_inputs(length=70, shared=9, masks=True, dtype=dtype)
        testing.assert_within_baseline(
            nag_kernels.fused_guided_attention(**inputs, nag_scale=5.0), inputs, 5.0, 2.5, 0.25
        )

if compiled:
    path, cpuinfo = availability.cpu_capability(), pathlib.Path("/proc/cpuinfo")
    if platform.machine() == "aarch64":
        assert path == "neon", path
    elif cpuinfo.exists() and {"avx2", "fma", "f16c"} <= set(cpuinfo.read_text().split()):
        assert path not in ("default", "neon"), f"{path}, where the processor has AVX2"
    x = torch.randn(1, 8, 2, 16)
    said = "a wrong shape was taken"
    try:  # a raw call, which Python has not checked; an exception that torch does not know would end the process
        torch.ops.nag.guidance(x, x[:, :4], 5.0, 2.5, 0.25)
    except RuntimeError as error:
        said = str(error)
    assert "negative must have shape (1, 8, 2, 16) like positive, got (1, 4, 2, 16)" in said, said

if compiled and cuda:
    if torch.version.cuda is None:
        ctypes.CDLL(sys.argv[3], mode=ctypes.RTLD_LOCAL)
    from nag_kernels import _C_cuda

    assert set(_C_cuda.launches().values()) == {0}
    for operation in ("nag_cuda::fused_guided_attention", "nag_cuda::guidance"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(operation, "CUDA"), operation

print(
    "right:", platform.machine(), "torch", torch.__version__, "| backends:", *nag_kernels.available_backends(),
    "| cpu path:", availability.cpu_capability(), "| cuda library:", "loaded" if compiled and cuda else "none",
)  # fmt: skip
