# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Imported by a process of test_gpu_choice.py without the CPU kernels, in whose place csrc/cuda/choice.cpp serves nag:: of CPU
tensors, over the emulated device. The process's argument is the library; it prints what came of each part.
"""

import json
import sys
import traceback
from pathlib import Path

import pytest
import quick_interpreter  # noqa: F401
import torch

import nag_kernels
from nag_kernels import _ops, gpu, reference, testing

sys.path.append(str(Path(__file__).parents[1] / "ops"))
import bad_inputs

torch.ops.load_library(sys.argv[1])
gpu._families = lambda: ("cuda", "triton")
gpu._chip = lambda device: 90
_ops.register_kernels(lambda: gpu.KERNELS, "CPU", behind=True)
SETTINGS = (5.0, 2.5, 0.25)
CROSS = {"dtype": torch.bfloat16, "length": 40, "heads": 2, "size": 24, "positive": 12, "negative": 9}


def attend(inputs, *settings):
    return nag_kernels.fused_guided_attention(**testing.with_settings(inputs, settings or SETTINGS))


def python_calls(call):
    before = sum(gpu.calls.values()) + sum(_ops.torch_calls.values())
    call()
    return sum(gpu.calls.values()) + sum(_ops.torch_calls.values()) - before


def verdict():
    """Where plans need a verdict, nothing in C++ serves what the verdict does not let it; it stands before all others here."""
    table = gpu.verdict_of
    right, wrong = {"state": "right"}, {"state": "wrong"}
    known = gpu.Verdict(
        {}, {"cuda text": wrong, "cuda branches": right, "cuda guidance": wrong, "triton guidance": right}
    )
    inputs = testing.make_inputs(**CROSS | {"length": 23})
    pair = torch.randn(2, 3, 48).unbind(0)
    try:
        gpu.verdict_of = lambda device: gpu.NOTHING_KNOWN
        for _ in range(2):
            before = _ops.torch_calls["sdpa"]
            attend(inputs)
            nag_kernels.guidance(*pair, *SETTINGS)
            assert _ops.torch_calls["sdpa"] == before + 1 + 1
        gpu.verdict_of = lambda device: known
        branches, blends = gpu.calls["cuda branches"], gpu.calls["triton guidance"]
        assert python_calls(lambda: attend(inputs)) == 1
        assert gpu.calls["cuda branches"] == branches + 1
        assert python_calls(lambda: attend(inputs)) == 0
        testing.assert_within_baseline(attend(inputs), inputs, *SETTINGS)
        for _ in range(2):
            nag_kernels.guidance(*pair, *SETTINGS)
        assert gpu.calls["triton guidance"] == blends + 2
    finally:
        gpu.verdict_of = table


def served():
    """The first call of its kind goes by Python, which chooses; the others do not, and have the same bits."""
    for dtype in (torch.bfloat16, torch.float16):
        for i, masks in enumerate((False, True)):  # masks of the texts and the batch are not what the choice depends on
            inputs = testing.make_inputs(**CROSS | {"dtype": dtype, "masks": masks, "batch": 1 + i})
            assert python_calls(lambda inputs=inputs: attend(inputs)) == 1 - i
            assert python_calls(lambda inputs=inputs: attend(inputs)) == 0
            expected = gpu.run_plan("cuda text", **testing.with_settings(inputs, SETTINGS))
            assert torch.equal(attend(inputs), expected)
            testing.assert_within_baseline(expected, inputs, *SETTINGS)
    pair = torch.randn(2, 3, 48).unbind(0)
    assert python_calls(lambda: nag_kernels.guidance(*pair, *SETTINGS)) == 1
    assert python_calls(lambda: nag_kernels.guidance(*pair, *SETTINGS)) == 0
    torch.testing.assert_close(nag_kernels.guidance(*pair, *SETTINGS), reference.guidance(*pair, *SETTINGS))


def remembered():
    """A call that differs in anything that the choice depends on is not the one that was remembered."""
    attend(testing.make_inputs(**CROSS))
    changes = (
        {"length": 41},
        {"heads": 4},
        {"size": 32},
        {"positive": 13},
        {"negative": 10},
        {"heads": 4, "kv_heads": 2},
    )
    for change in changes:
        inputs = testing.make_inputs(**CROSS | change)
        assert python_calls(lambda inputs=inputs: attend(inputs)) == 1, change
        assert python_calls(lambda inputs=inputs: attend(inputs)) == 0, change
    inputs = testing.with_settings(testing.make_inputs(**CROSS), (0.5, 2.5, 0.25))
    assert python_calls(lambda: nag_kernels.fused_guided_attention(**inputs, rule="nasa")) == 1
    assert python_calls(lambda: nag_kernels.fused_guided_attention(**inputs, rule="nasa")) == 0
    joint = testing.make_inputs(**CROSS | {"shared": 5})  # a plan in C++ that is not the first of its row
    assert python_calls(lambda: attend(joint)) == 1
    assert python_calls(lambda: attend(joint)) == 0
    masked = joint | {"mask_shared": torch.ones(1, 5, dtype=torch.bool)}
    assert python_calls(lambda: attend(masked)) == 1
    other = [0, 40, 2, 24, 12, 8, 0, 2, 0, 0]
    torch.ops.nag_cuda.remember(1, other, "branches")  # of another device
    assert python_calls(lambda: attend(testing.make_inputs(**CROSS | {"negative": 8}))) == 1
    torch.ops.nag_cuda.remember(0, other, "text")  # what was remembered first stays
    with pytest.raises(RuntimeError, match="a call has 10 numbers, got 2"):
        torch.ops.nag_cuda.remember(0, [1, 2], "text")


def handed_on():
    """What another plan serves: each by Python, every time, and right."""
    for change, plan in (
        ({"dtype": torch.float32, "shared": 5, "masks": True}, "triton"),
        ({"shared": 5, "dtype": torch.float16}, "triton"), ({"positive": 129}, "triton"), ({"size": 20}, "triton"),
        ({"size": 264, "heads": 1}, "cuda guidance"), ({"dtype": torch.float64}, None),
    ):  # fmt: skip
        inputs = testing.make_inputs(**CROSS | {"length": 17} | change)
        before = gpu.calls[plan]
        for _ in range(2):
            assert python_calls(lambda inputs=inputs: attend(inputs)) == 1
        assert plan is None or gpu.calls[plan] == before + 2, change
        if inputs["query"].dtype != torch.bfloat16:
            testing.assert_within_baseline(attend(inputs), inputs, *SETTINGS)
    pair = torch.randn(2, 3, 48, dtype=torch.float64).unbind(0)
    assert python_calls(lambda: nag_kernels.guidance(*pair, *SETTINGS)) == 1


def per_sample():
    inputs = testing.make_inputs(**CROSS | {"batch": 2})
    tensors = [torch.tensor([1.0, 5.0]), torch.tensor(2.5), torch.tensor([0.25, 0.5])]
    attend(inputs, *tensors)
    assert python_calls(lambda: attend(inputs, *tensors)) == 0
    for sample in (0, 1):
        alone = attend(inputs, *(float(x[sample] if x.ndim else x) for x in tensors))
        assert torch.equal(attend(inputs, *tensors)[sample], alone[sample])


def gradient():
    inputs = testing.make_inputs(**CROSS | {"dtype": torch.float32})
    inputs["query"].requires_grad_()
    attend(inputs).sum().backward()
    found, inputs["query"].grad = inputs["query"].grad, None
    reference.fused_guided_attention(**testing.with_settings(inputs, SETTINGS)).sum().backward()
    expected = inputs["query"].grad
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=float(expected.abs().max()) * 1e-5)


def bad_inputs_():
    """The same words as on every other path: raw, and as the front door's ValueError or TypeError."""
    rows = [row for row in bad_inputs.table() if "another device" not in row[2].name and not row[2].schema]
    assert len(rows) > 80
    for op, overload, row in rows:
        inputs, message = bad_inputs.bad_call(op, overload, row)
        with pytest.raises(RuntimeError) as caught:
            getattr(getattr(torch.ops.nag, op), overload)(**inputs)
        assert message in str(caught.value), row.name
        with pytest.raises(row.error) as caught:
            getattr(nag_kernels, op)(**inputs)
        assert message in str(caught.value), row.name
    inputs = testing.with_settings(testing.make_inputs(**CROSS), SETTINGS)
    with pytest.raises(RuntimeError, match=r"key_negative must be 4-D .* got shape \(3\)"):
        torch.ops.nag.fused_guided_attention(**inputs | {"key_negative": torch.zeros(3)})
    with pytest.raises(RuntimeError, match=r"negative must have shape \(2, 8\) like positive, got \(2, 7\)"):
        torch.ops.nag.guidance(torch.zeros(2, 8).double(), torch.zeros(2, 7).double(), *SETTINGS)


def errors():
    """What Python raises behind the C++ comes out of the front door as it was; a raw call says where to look."""
    inputs = testing.with_settings(testing.make_inputs(**CROSS | {"dtype": torch.float32}), SETTINGS)
    kept, gpu.KERNELS = gpu.KERNELS, {"fused_guided_attention": lambda *_: full()}

    def full():
        raise torch.OutOfMemoryError("out of memory")

    try:
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            nag_kernels.fused_guided_attention(**inputs)
        with pytest.raises(RuntimeError, match=r"failed; nag_kernels.fused_guided_attention in place of torch.ops.nag"):
            torch.ops.nag.fused_guided_attention(**inputs)
    finally:
        gpu.KERNELS = kept
    with pytest.raises(ValueError, match="nag_tau must be above 0"):  # and not the error of before
        nag_kernels.fused_guided_attention(**inputs | {"nag_tau": -1.0})


def only():
    """A family that was asked for by name: Python chooses."""
    inputs = testing.make_inputs(**CROSS)
    with gpu.only("triton"):
        before = gpu.calls["triton"]
        assert python_calls(lambda: attend(inputs)) == 1
        assert gpu.calls["triton"] == before + 1
        with gpu.only("cuda"):
            assert python_calls(lambda: attend(inputs)) == 1
        assert python_calls(lambda: attend(inputs)) == 1
        assert python_calls(lambda: nag_kernels.guidance(*torch.randn(2, 3, 8).unbind(0), *SETTINGS)) == 1
    assert python_calls(lambda: attend(inputs)) == 0


found = {}
for part in (verdict, served, remembered, handed_on, per_sample, gradient, bad_inputs_, errors, only):
    torch.manual_seed(0)
    try:
        part()
        found[part.__name__.rstrip("_")] = "as it should"
    except BaseException:
        found[part.__name__.rstrip("_")] = traceback.format_exc()
print(json.dumps(found))
