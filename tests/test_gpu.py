# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show of the Triton kernels: graphs, streams, tensors beyond 2^31 elements.

`benchmarks/gpu_visit.sh test` runs this with NAG_BACKEND=triton; the kernels' arithmetic is in test_triton.py.
"""

import pytest
import torch

import nag_kernels
from nag_kernels import backends, testing

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="any GPU"),
    pytest.mark.skipif(backends.refusal("triton", "cuda") is not None, reason="triton on a GPU is off"),
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
    before = backends.counts()["triton"]
    testing.assert_within_baseline(attend(inputs, rule=rule), inputs, *SETTINGS, rule=rule)
    nag_kernels.guidance(*torch.randn(2, 3, 5, 100, device="cuda").unbind(0), *SETTINGS)
    assert backends.counts()["triton"] == before + 2


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
    whole = attend(inputs)
    part = inputs | {"query": inputs["query"][:, ::8].contiguous()}
    testing.assert_within_baseline(attend(part), part, *SETTINGS)
    assert torch.equal(attend(part), whole[:, ::8])
    assert torch.equal(attend(inputs), whole)


def test_settings_change_inside_a_captured_graph():
    inputs = make_inputs(length=256, heads=4, size=64)
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


def test_another_stream():
    inputs = make_inputs(length=2048, heads=8, size=64)
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


def test_more_than_two_to_the_31_elements():
    length, heads, size = 560_000, 30, 128
    if torch.cuda.get_device_properties(0).total_memory < 45 << 30:
        pytest.skip("a GPU with 45 GiB")
    inputs = make_inputs(length=1, heads=heads, size=size, positive=9, negative=7)
    inputs["query"] = torch.randn(1, length, heads, size, device="cuda", dtype=torch.bfloat16)
    assert inputs["query"].numel() > 2**31
    out = attend(inputs)
    last = inputs | {"query": inputs["query"][:, -64:].contiguous()}
    assert torch.equal(attend(last), out[:, -64:])
    testing.assert_within_baseline(attend(last), last, *SETTINGS)


def test_strides_beyond_two_to_the_31():
    inputs = make_inputs(length=2, heads=2, size=16, positive=2, negative=2)
    expected = attend(inputs)
    far = torch.empty(2**31 + 64, device="cuda", dtype=torch.bfloat16)
    for name in ("query", "key_positive", "value_negative"):
        apart = far.as_strided((1, 2, 2, 16), (0, 2**31, 16, 1))
        apart.copy_(inputs[name])
        assert torch.equal(attend(inputs | {name: apart}), expected)
