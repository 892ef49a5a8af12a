# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The C++ CPU kernels against float64: the same bits always, accuracy, memory, strides. test_cpu_paths.py has the SIMD paths."""

import os
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from nag_kernels import availability, backends, testing

ROOT = pathlib.Path(__file__).parents[2]
CSRC = ROOT / "csrc"
LIBRARY = pathlib.Path(backends.__file__).parent / "_C.abi3.so"
SETTINGS = (5.0, 2.5, 0.25)
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
pytestmark = pytest.mark.skipif(availability.refusal("cpu", "cpu") is not None, reason="cpu is not here: not built")


def attend(inputs, *settings, rule="nag"):
    names = ("nag_scale", "nag_tau", "nag_alpha")
    return torch.ops.nag.fused_guided_attention(**inputs, **dict(zip(names, settings, strict=True)), rule=rule)


def bounded(path, code, *arguments):
    """Runs Python code in a process of its own, with `path` as the upper bound of the SIMD path."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


# --- the same bits ----------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("shared", [0, 150])
@pytest.mark.parametrize("rule", ["nag", "vsf"])
def test_same_bits_for_any_threads_and_any_company(rule, dtype, shared):
    """A token's bits depend neither on the threads, nor on the batch, nor on which tokens share its tile."""
    inputs = testing.make_inputs(batch=2, length=150, heads=3, size=40, shared=shared, masks=True, dtype=dtype)
    threads = torch.get_num_threads()
    try:
        outs = []
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            outs.append(attend(inputs, *SETTINGS, rule=rule))
        assert all(torch.equal(out, outs[0]) for out in outs)
        for first, last in ((0, 1), (3, 20), (149, 150), (17, 131)):
            some = {**inputs, "query": inputs["query"][:, first:last]}
            assert torch.equal(attend(some, *SETTINGS, rule=rule), outs[0][:, first:last])
        one = {name: x[1:] for name, x in inputs.items()}
        assert torch.equal(attend(one, *SETTINGS, rule=rule)[0], outs[0][1])
        positive, negative = torch.randn(2, 4000, 77).to(dtype)
        guided = torch.ops.nag.guidance(positive, negative, *SETTINGS)
        torch.set_num_threads(1)
        assert torch.equal(torch.ops.nag.guidance(positive, negative, *SETTINGS), guided)
        assert torch.equal(torch.ops.nag.guidance(positive[5], negative[5], *SETTINGS), guided[5])
    finally:
        torch.set_num_threads(threads)


@dtypes
@pytest.mark.parametrize("rule", ["nag", "vsf"])
def test_hidden_keys_leave_no_trace(rule, dtype):
    """Masked keys are dropped when packing: the bits are those of the shorter text."""
    inputs = testing.make_inputs(batch=1, length=20, positive=40, negative=30, shared=130, masks=True, dtype=dtype)
    kept = {"query": inputs["query"]}
    for part in ("positive", "negative", "shared"):
        for kind in ("key", "value"):
            kept[f"{kind}_{part}"] = inputs[f"{kind}_{part}"][:, inputs[f"mask_{part}"][0]]
    assert torch.equal(attend(inputs, *SETTINGS, rule=rule), attend(kept, *SETTINGS, rule=rule))


@dtypes
def test_scale_one_and_equal_branches_give_plain_attention(dtype):
    inputs = testing.make_inputs(length=70, shared=20, dtype=dtype)
    plain = attend(inputs, 0.0, 2.5, 0.25, rule="nasa")
    assert torch.equal(attend(inputs, 1.0, 2.5, 0.25), plain)
    assert torch.equal(attend(inputs, 7.0, 2.5, 0.0), plain)
    hidden = inputs | {"mask_negative": torch.zeros(1, 77, dtype=torch.bool)}
    assert torch.equal(attend(hidden, 7.0, 2.5, 0.25, rule="vsf"), plain)


# --- accuracy where the general tests do not look ---------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("size", [1, 5, 8, 32, 40, 64, 72, 80, 96, 112, 128, 160, 256])
def test_head_sizes_over_several_blocks(size, dtype):
    """Texts and shared keys of more than one key block each, queries of more than one tile."""
    inputs = testing.make_inputs(length=97, heads=2, kv_heads=1, size=size, positive=101, negative=200, shared=300,
                                 masks=True, bias=0.7, dtype=dtype)  # fmt: skip
    for settings, rule in ((SETTINGS, "nag"), ((0.5, 2.5, 0.25), "nasa"), ((3.5, 2.5, 0.25), "vsf")):
        out = attend(inputs, *settings, rule=rule)
        if size > 1:
            testing.assert_within_baseline(out, inputs, *settings, rule=rule)
        else:  # the eager formula hardly errs on one channel, so a share of its error is no measure
            exact = testing.truth(inputs, *settings, rule=rule)
            assert testing.error(out, exact) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("scale", [-0.3, 0.0, 2.0])
@pytest.mark.parametrize("rule", ["nag", "vsf"])
@dtypes
def test_softmax_scale(dtype, rule, scale):
    inputs = testing.make_inputs(length=33, size=24, shared=20, bias=0.4, dtype=dtype)
    inputs["softmax_scale"] = scale
    testing.assert_within_baseline(attend(inputs, *SETTINGS, rule=rule), inputs, *SETTINGS, rule=rule)


@pytest.mark.parametrize(("less", "bias"), [(0.0, 3.0), (1024.0, 1000.0), (1024.0, 1027.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bias_beside_huge_logits(less, bias, dtype):
    """Logits of 2^34, to which float32 cannot add the bias: shared and negative key still weigh as 1 and e^(bias - less)."""
    inputs = testing.make_inputs(length=8, heads=1, size=32, shared=1, positive=1, negative=1, bias=bias, dtype=dtype)
    for part in ("shared", "positive", "negative"):
        inputs[f"key_{part}"].zero_()
    inputs["query"][...] = 2.0**17
    inputs["key_shared"][..., 0] = inputs["key_negative"][..., 0] = 2.0**17
    inputs["key_negative"][..., 1] = -less / 2.0**17
    inputs["softmax_scale"] = 1.0
    settings = (2.0, 1e6, 1.0)
    for rule in ("nag", "vsf"):
        exact = testing.truth(inputs, *settings, rule=rule)
        assert testing.error(attend(inputs, *settings, rule=rule), exact) < max(2e-3, torch.finfo(dtype).eps)


def test_long_sums_stay_accurate():
    """The norms over H * D = 5120 channels and sums over 2,000 keys, in float32."""
    inputs = testing.make_inputs(length=16, heads=40, size=128, positive=512, negative=512, shared=1500)
    testing.assert_within_baseline(attend(inputs, *SETTINGS), inputs, *SETTINGS)


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0x7FFFFFFF, 0x7F800001], ids=hex)
def test_every_nan_stays_nan(bits):
    """A NaN's payload must not turn it into a number on its way through the exponential or the rounding."""
    nan = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    inputs = testing.make_inputs(length=5, shared=4, size=8)
    inputs["query"][0, 2, :, 1] = nan
    for dtype in (torch.float32, torch.bfloat16):
        for rule in ("nag", "vsf"):
            out = attend(testing.cast(inputs, dtype), *SETTINGS, rule=rule)
            assert torch.isnan(out[0, 2]).all()
            assert torch.isfinite(out[0, [0, 1, 3, 4]]).all()


# --- memory -----------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("size", [5, 40])
def test_nothing_outside_the_views_is_used(size, dtype):
    """Inputs amid NaN give what they give alone, and the NaN around them stays."""
    inputs = testing.make_inputs(batch=2, length=21, heads=3, size=size, positive=7, negative=9, shared=10, dtype=dtype)
    views, buffers = {}, {}
    for name, x in inputs.items():
        buffer = torch.full([n + 2 for n in x.shape], float("nan"), dtype=dtype)
        views[name] = buffer[1:-1, 1:-1, 1:-1, 1:-1]
        views[name].copy_(x)
        buffers[name] = (buffer, buffer.clone())
    for rule in ("nag", "vsf"):
        assert torch.equal(attend(views, *SETTINGS, rule=rule), attend(inputs, *SETTINGS, rule=rule))
    for buffer, before in buffers.values():
        assert torch.equal(buffer.view(torch.uint8), before.view(torch.uint8))


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_offsets_beyond_32_bits(dim, tmp_path):
    """A stride of more than 2^31 elements, in a sparse file that is mapped, not read."""
    inputs = testing.make_inputs(batch=2, length=2, heads=2, size=8, positive=2, negative=2, dtype=torch.float16)
    stride = 2**31 + 64
    file = tmp_path / "sparse"
    with open(file, "wb") as opened:
        opened.truncate(2 * (stride + 4096))
    try:
        big = torch.from_file(str(file), shared=True, size=stride + 4096, dtype=torch.float16)
        for name in ("query", "key_positive", "value_negative"):
            strides = [1024, 256, 64, 1]
            strides[dim] = stride
            view = big.as_strided((2, 2, 2, 8), strides)
            view.copy_(inputs[name])
            assert torch.equal(attend({**inputs, name: view}, *SETTINGS), attend(inputs, *SETTINGS))
        view = big.as_strided((2, 8), (stride, 1)).copy_(torch.randn(2, 8))
        assert torch.equal(torch.ops.nag.guidance(view, view, *SETTINGS), view)
    finally:
        file.unlink()


PEAK = """
import sys, torch
from nag_kernels import testing
length, heads, size = 12288, 8, 64
inputs = {name: x.expand(1, length if name == "query" else 77, heads, size).clone()
          for name, x in testing.make_inputs(length=1, heads=heads, size=size, positive=1, negative=1).items()}
call = lambda x: torch.ops.nag.fused_guided_attention(**x, nag_scale=5.0, nag_tau=2.5, nag_alpha=0.25)
call({**inputs, "query": inputs["query"][:, :300]})
def peak():
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmHWM")).split()[1]) * 1024
before = peak()
eager = testing.eager if sys.argv[1] == "eager" else None
out = eager(inputs, 5.0, 2.5, 0.25) if eager else call(inputs)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
def test_no_full_length_intermediates():
    """Beyond its output: packed keys and values and a tile per thread, not Z+, Z- (25 MB each here) or logits."""
    out = 12288 * 8 * 64 * 4
    packed = 4 * 77 * 8 * 64 * 4
    found = int(bounded(availability.cpu_capability(), PEAK, "cpu"))
    assert found < out + packed + 2 * 2**20 + 2**20  # one thread's tile, and a margin for the allocator
    assert int(bounded(availability.cpu_capability(), PEAK, "eager")) > 3 * out


RESIDENT = """
import sys, torch
from nag_kernels import testing
torch.set_num_threads(1)
def resident():
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmRSS")).split()[1]) * 1024
def call(keys):
    text = torch.zeros(1, keys, 8, 64)
    torch.ops.nag.fused_guided_attention(torch.zeros(1, 4, 8, 64), text, text, text, text, 5.0, 2.5, 0.25)
for keys in (7, 7000, 40000):
    call(keys)
    print(resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="resident memory is read from /proc")
def test_large_memory_is_given_back():
    """57 MB of packed keys and values stay for the next call, 328 MB do not."""
    nothing, some, much = map(int, bounded(availability.cpu_capability(), RESIDENT).split())
    assert some > nothing + 50 * 2**20
    assert much < some + 32 * 2**20


def test_calls_at_once_have_memory_of_their_own():
    calls = [
        testing.make_inputs(length=70, heads=3, size=40, shared=n, positive=9 + n, seed=n) for n in (0, 40, 300, 900)
    ]
    alone = [attend(inputs, *SETTINGS) for inputs in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for out, expected in zip(pool.map(lambda inputs: attend(inputs, *SETTINGS), calls), alone, strict=True):
                assert torch.equal(out, expected)
