# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: graphs, streams, tensors beyond 2^31 elements, and the CUDA kernels' arithmetic on one.

`benchmarks/gpu_visit.sh triton cuda both` runs this with NAG_BACKEND=triton, cuda and gpu in turn; more of the Triton kernels'
arithmetic is in test_triton.py, of the CUDA kernels' (emulated) in test_cuda_kernels.py.
"""

import math

import pytest
import torch

import nag_kernels
from nag_kernels import availability, gpu, gpu_table, reference, testing

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="any GPU"),
    pytest.mark.skipif(not gpu.turned_on(), reason="the kernels for a GPU are off: NAG_BACKEND=triton, cuda or gpu"),
]
SETTINGS = (5.0, 2.5, 0.25)


def make_inputs(**options):
    return testing.make_inputs(**{"device": "cuda", "dtype": torch.bfloat16} | options)


def attend(inputs, *settings, rule="nag"):
    return nag_kernels.fused_guided_attention(**testing.with_settings(inputs, settings or SETTINGS), rule=rule)


def on_device(*values):
    return [torch.tensor(x, device="cuda") for x in values]


@pytest.mark.parametrize("shape", [{"positive": 7, "negative": 9}, {"shared": 70, "masks": True, "batch": 2}], ids=str)
@pytest.mark.parametrize("rule", ["nag", "nasa", "vsf"])
def test_short(rule, shape):
    inputs = make_inputs(length=70, heads=2, size=40, **shape)
    before = sum(availability.counts()[name] for name in ("cuda", "triton"))
    testing.assert_within_baseline(attend(inputs, rule=rule), inputs, *SETTINGS, rule=rule)
    nag_kernels.guidance(*torch.randn(2, 3, 5, 100, device="cuda").unbind(0), *SETTINGS)
    assert sum(availability.counts()[name] for name in ("cuda", "triton")) == before + 2


def test_a_plan_in_cpp_meets_python_once():
    inputs = make_inputs(length=70, heads=2, size=40, positive=7, negative=9)
    first = attend(inputs)
    before = sum(gpu.calls.values())
    assert torch.equal(attend(inputs), first)
    assert sum(gpu.calls.values()) - before == (not plan_of(inputs).startswith("cuda"))


# --- every plan by itself: the same cases for each --------------------------------------------------------------------

CASES = {
    "cross": {"positive": 77, "negative": 77},
    "cross masks": {"batch": 2, "positive": 33, "negative": 20, "masks": True},
    "grouped queries": {"heads": 6, "kv_heads": 2, "positive": 9, "negative": 17},
    "negative of batch 1": {"batch": 3, "negative_batch": 1, "positive": 9, "negative": 9, "masks": True},
    "many heads": {"heads": 40, "positive": 300, "negative": 512},
    "joint": {"positive": 12, "negative": 70, "shared": 300},
    "joint, masks": {"batch": 2, "positive": 12, "negative": 20, "shared": 333, "masks": True},
    "joint, bias": {"positive": 12, "negative": 9, "shared": 256, "bias": math.log(3)},
    "empty texts": {"positive": 0, "negative": 0},
    "empty negative": {"positive": 9, "negative": 0, "shared": 270},
}
OWN = {"nag": SETTINGS, "nasa": (0.5, 2.5, 0.25), "vsf": (3.5, 2.5, 0.25)}


def call_of(inputs, rule="nag"):
    return gpu.call_of(inputs["query"], inputs["key_positive"], inputs["key_negative"], inputs.get("key_shared"),
                       inputs.get("mask_shared"), rule)  # fmt: skip


def plan_of(inputs):
    return gpu.choose(call_of(inputs), gpu.turned_on())[0]


def run_plan(plan, inputs, *settings, rule="nag"):
    """By one plan, or a skip where it refuses the call or its kernels are off."""
    call = call_of(inputs, rule)
    why = gpu_table.refusal(plan, call)
    if plan.split()[0] not in gpu.turned_on() or why is not None:
        pytest.skip(f"{plan}: {why or 'off'}")
    with torch.cuda.device(inputs["query"].device):
        return gpu.run_plan(plan, **testing.with_settings(inputs, settings or SETTINGS), rule=rule)


plans = pytest.mark.parametrize("plan", gpu_table.PLANS)


def by_another(plan):
    """Whether another attention takes part, whose bits and strides are not ours to promise."""
    return "finish" in plan or plan.endswith("guidance")


def assert_right(plan, out, inputs, *settings, rule="nag"):
    testing.assert_within_baseline(out, inputs, *settings, rule=rule, rounded=plan.endswith("guidance"))


@plans
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", OWN)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_plan(plan, case, rule, dtype):
    inputs = make_inputs(**{"length": 300, "heads": 3, "size": 64, "dtype": dtype, **CASES[case]})
    out = run_plan(plan, inputs, *OWN[rule], rule=rule)
    assert torch.equal(out, run_plan(plan, inputs, *OWN[rule], rule=rule)), "other bits in a second run"
    assert_right(plan, out, inputs, *OWN[rule], rule=rule)


@plans
@pytest.mark.parametrize("size", range(32, 257, 8))
def test_every_plan_at_every_head_size(plan, size):
    shared = {"shared": 300} if "finish" in plan else {}
    inputs = make_inputs(size=size, heads=2, length=130, positive=77, negative=9, **shared)
    assert_right(plan, run_plan(plan, inputs), inputs, *SETTINGS)


@plans
def test_every_plan_alone_or_in_a_batch_the_same_bits(plan):
    shared = {"shared": 300} if "finish" in plan else {}
    inputs = make_inputs(batch=3, length=300, heads=4, size=64, positive=77, negative=20, **shared)
    whole = run_plan(plan, inputs)
    for b in range(3):
        alone = {name: x[b : b + 1] for name, x in inputs.items()}
        if not by_another(plan):
            assert torch.equal(run_plan(plan, alone)[0], whole[b])


@plans
def test_every_plan_with_rows_that_are_not_aligned(plan):
    shared = {"shared": 300} if "finish" in plan else {}
    inputs = make_inputs(length=70, heads=2, size=64, positive=20, negative=9, **shared)
    expected = run_plan(plan, inputs)
    odd = {}
    for name, x in inputs.items():
        room = torch.empty(x.numel() + 1, device="cuda", dtype=x.dtype)[1:].view_as(x)
        odd[name] = room.copy_(x)
    if plan.endswith("guidance"):
        assert_right(plan, run_plan(plan, odd), inputs, *SETTINGS)
    else:
        assert torch.equal(run_plan(plan, odd), expected)


@pytest.mark.parametrize("rule", OWN)
@pytest.mark.parametrize("shape", [
    {"length": 1000, "heads": 24, "size": 128, "positive": 512, "negative": 300, "shared": 1000},
    {"length": 600, "heads": 38, "size": 64, "positive": 333, "negative": 77, "shared": 600},
    {"batch": 2, "length": 300, "heads": 12, "size": 96, "positive": 200, "negative": 90, "shared": 170, "masks": True},
    {"length": 200, "heads": 5, "size": 64, "positive": 9, "negative": 12},
], ids=str)  # fmt: skip
def test_clusters_of_every_kind(shape, rule):
    """Eight, six and five blocks, several heads each; tiles by the copy engine and by threads; more tiles than slots."""
    inputs = make_inputs(**shape)
    testing.assert_within_baseline(
        run_plan("cuda cluster", inputs, *OWN[rule], rule=rule), inputs, *OWN[rule], rule=rule
    )


@pytest.mark.parametrize("shape", [
    {"length": 4096, "heads": 10, "size": 64},
    {"length": 1024, "heads": 20, "size": 112, "positive": 300, "negative": 300},
    {"length": 4096, "heads": 24, "size": 128, "positive": 512, "negative": 512, "shared": 4096},
    {"length": 4096, "heads": 38, "size": 64, "positive": 333, "negative": 333, "shared": 4096},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_real_layers(shape, dtype):
    """Against float64, on every eighth query: the truth holds its logits in memory."""
    inputs = make_inputs(dtype=dtype, **shape)
    plan = plan_of(inputs)
    if plan == "sdpa":
        pytest.skip(f"no kernel that is on takes {dtype}")
    whole = attend(inputs)
    part = inputs | {"query": inputs["query"][:, ::8].contiguous()}
    testing.assert_within_baseline(attend(part), part, *SETTINGS)
    if not by_another(plan) and plan_of(part) == plan:
        assert torch.equal(attend(part), whole[:, ::8])
    assert torch.equal(attend(inputs), whole)


@pytest.mark.parametrize("shared", [0, 300])
def test_settings_change_inside_a_captured_graph(shared):
    inputs = make_inputs(length=256, heads=4, size=64, **({"shared": shared} if shared else {}))
    settings = on_device(*SETTINGS)
    attend(inputs, *settings)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(inputs, *settings)
    for values in (SETTINGS, (1.0, 2.5, 0.5), (3.0, float("inf"), 1.0)):
        for setting, value in zip(settings, values, strict=True):
            setting.fill_(value)
        graph.replay()
        assert torch.equal(out, attend(inputs, *on_device(*values)))


@pytest.mark.parametrize("shared", [0, 300])
def test_another_stream(shared):
    inputs = make_inputs(length=2048, heads=8, size=64, **({"shared": shared} if shared else {}))
    expected = attend(inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        fresh = {name: x * 1 for name, x in inputs.items()}  # ready on this stream alone
        out = attend(fresh)
    stream.synchronize()
    assert torch.equal(out, expected)


def test_compiled_without_a_break():
    inputs = make_inputs(length=256, heads=4, size=64)
    compiled = torch.compile(nag_kernels.fused_guided_attention, fullgraph=True)
    for values in (SETTINGS, (3.0, 1.5, 1.0)):
        settings = testing.with_settings(inputs, on_device(*values))
        assert torch.equal(compiled(**settings), attend(inputs, *on_device(*values)))


def test_guidance_at_every_width():
    for channels in (1, 7, 8, 64, 320, 1280, 3072, 5120, 20000):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            positive, negative = torch.randn(2, 3, 5, channels, device="cuda").to(dtype).unbind(0)
            out = nag_kernels.guidance(positive, negative, *SETTINGS)
            exact = reference.guidance(positive.double(), negative.double(), *SETTINGS)
            bound = 2 * torch.finfo(dtype).eps
            torch.testing.assert_close(out.double(), exact, rtol=bound, atol=8 * bound)


def test_more_than_two_to_the_31_elements():
    length, heads, size = 560_000, 30, 128
    if torch.cuda.get_device_properties(0).total_memory < 45 << 30:
        pytest.skip("a GPU with 45 GiB")
    inputs = make_inputs(length=1, heads=heads, size=size, positive=9, negative=7)
    inputs["query"] = torch.randn(1, length, heads, size, device="cuda", dtype=torch.bfloat16)
    assert inputs["query"].numel() > 2**31
    out = attend(inputs)
    last = inputs | {"query": inputs["query"][:, -64:].contiguous()}
    if plan_of(last) == plan_of(inputs):
        assert torch.equal(attend(last), out[:, -64:])
    testing.assert_within_baseline(out[:, -64:].contiguous(), last, *SETTINGS)


@plans
def test_strides_beyond_two_to_the_31(plan):
    if by_another(plan):
        pytest.skip("the other attention's strides are not ours to promise")
    inputs = make_inputs(length=2, heads=2, size=16, positive=2, negative=2)
    expected = run_plan(plan, inputs)
    far = torch.empty(2**31 + 64, device="cuda", dtype=torch.bfloat16)
    for name in ("query", "key_positive", "value_negative"):
        apart = far.as_strided((1, 2, 2, 16), (0, 2**31, 16, 1))
        apart.copy_(inputs[name])
        assert torch.equal(run_plan(plan, inputs | {name: apart}), expected)
