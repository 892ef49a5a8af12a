# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The host half of the CUDA operations (checks, strides, copies, settings, choice of kernel, launch sizes) as it stands, for
tensors on the CPU over the emulated device (emulated.py). Streams, guards and real launches are for a GPU."""

import itertools
import math
import os
import re
import subprocess
import sys

import bad_inputs
import emulated
import pytest
import torch

from nag_kernels import availability, gpu, gpu_table, reference, testing

pytestmark = pytest.mark.slow  # it compiles

SETTINGS = (5.0, 2.5, 0.25)
OWN = {"nag": SETTINGS, "nasa": (0.5, 2.5, 0.25), "vsf": (3.5, 2.5, 0.25)}
PLANS = ("cuda text", "cuda branches", "cuda cluster")
plans = pytest.mark.parametrize("plan", PLANS)


@pytest.fixture(autouse=True)
def an_h100(monkeypatch):
    monkeypatch.setenv("NAG_EMULATED_CHIP", "90")
    monkeypatch.setenv("NAG_EMULATED_SHARED_KIB", "227")


@pytest.fixture(scope="module", autouse=True)
def operations():
    if availability.refusal("cuda", "cuda") is None:
        pytest.skip("a process without the real CUDA kernels, whose operations have the same names")
    torch.ops.load_library(emulated.host_library())
    return torch.ops.nag_cuda


def make_inputs(**options):
    return testing.make_inputs(**{"dtype": torch.bfloat16, "length": 40, "heads": 2, "size": 24} | options)


def run(plan, inputs, *settings, rule="nag"):
    return gpu.run_plan(plan, **testing.with_settings(inputs, settings or SETTINGS), rule=rule)


CASES = {
    "cross": {"positive": 12, "negative": 9},
    "joint": {"positive": 12, "negative": 70, "shared": 70},
    "masks": {"batch": 2, "positive": 12, "negative": 20, "shared": 33, "masks": True},
    "cross masks": {"batch": 2, "positive": 33, "negative": 20, "masks": True},
    "grouped queries": {"heads": 6, "kv_heads": 2, "positive": 9, "negative": 9},
    "negative of batch 1": {"batch": 3, "negative_batch": 1, "positive": 9, "negative": 9, "masks": True},
    "bias": {"positive": 12, "negative": 9, "shared": 63, "bias": math.log(3)},
    "empty negative": {"positive": 9, "negative": 0, "shared": 33},
    "both texts empty": {"positive": 0, "negative": 0},
    "no queries": {"length": 0, "positive": 3, "negative": 4},
    "float16": {"dtype": torch.float16, "size": 160, "positive": 3, "negative": 4},
}


@plans
@pytest.mark.parametrize("rule", OWN)
@pytest.mark.parametrize("case", CASES)
def test_cases(plan, rule, case):
    if plan == "cuda text" and "shared" in CASES[case]:
        pytest.skip("the one-launch kernel takes no shared keys")
    if plan == "cuda cluster" and "dtype" in CASES[case]:
        pytest.skip("the cluster kernel takes bfloat16")
    inputs = make_inputs(**CASES[case])
    before = gpu.calls[plan]
    testing.assert_within_baseline(run(plan, inputs, *OWN[rule], rule=rule), inputs, *OWN[rule], rule=rule)
    assert gpu.calls[plan] == before + 1


@plans
def test_settings_per_sample(plan):
    inputs = make_inputs(batch=2, positive=5, negative=7)
    tensors = [torch.tensor([1.0, 5.0]), torch.tensor(2.5), torch.tensor([[0.25, 9.0], [0.5, 9.0]])[:, 0]]
    out = run(plan, inputs, *tensors)
    for sample in (0, 1):
        alone = run(plan, inputs, *(float(x[sample] if x.ndim else x) for x in tensors))
        assert torch.equal(out[sample], alone[sample])


@plans
def test_any_strides(plan):
    """Turned views are read in place; what has no unit last stride, or rows that do not begin on 16 bytes, is copied."""
    inputs = make_inputs(batch=2, positive=9, negative=7, masks=True)
    expected = run(plan, inputs)
    masks = {name: x for name, x in inputs.items() if name.startswith("mask")}
    tensors = {name: x for name, x in inputs.items() if not name.startswith("mask")}
    turned = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in tensors.items()}
    apart = {name: torch.stack([x, x], -1)[..., 0] for name, x in tensors.items()}
    odd_rows = {name: torch.cat([x, x[..., :1]], -1)[..., :-1] for name, x in tensors.items()}
    odd_start = {name: torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view_as(x).copy_(x) for name, x in tensors.items()}
    backwards = {name: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) for name, x in tensors.items()}
    for views in (turned, apart, odd_rows, odd_start, backwards):
        assert torch.equal(run(plan, views | masks), expected)
    far = {name: torch.stack([x, ~x], -1)[..., 0] for name, x in masks.items()}
    assert torch.equal(run(plan, tensors | far), expected)
    one = tensors | {name: x[:1].expand(2, -1, -1, -1) for name, x in tensors.items()}
    assert torch.equal(run(plan, one)[0], run(plan, one)[1])


def test_kept_in_shared_memory_or_computed_twice(monkeypatch):
    """As the chip's shared memory allows; 227 KiB is an H100's."""
    inputs = make_inputs(heads=30, size=64, length=20, positive=9, negative=7)
    found = []
    for kib in ("99", "227"):
        monkeypatch.setenv("NAG_EMULATED_SHARED_KIB", kib)
        found.append(run("cuda text", inputs))
    assert torch.equal(*found)


def test_two_tiles_of_queries_for_long_inputs():
    inputs = make_inputs(length=2050, heads=1, size=16, positive=5, negative=4)
    few = inputs | {"query": inputs["query"][:, -50:].contiguous()}
    assert torch.equal(run("cuda text", inputs)[:, -50:], run("cuda text", few))


@pytest.mark.parametrize("rule", ["nag", "nasa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "shape", [(1,), (7,), (3, 100), (2, 3, 4, 40), (0, 8), (4, 0), (2, 3, 1048), (2, 9000)], ids=str
)
def test_guidance(operations, shape, dtype, rule):
    positive, negative = torch.randn(2, *shape).to(dtype).unbind(0)
    out = operations.guidance(positive, negative, *SETTINGS, rule)
    exact = reference.guidance(positive.double(), negative.double(), *SETTINGS, rule=rule)
    bound = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), exact, rtol=bound, atol=8 * bound)
    assert out.is_contiguous()


def test_guidance_of_any_strides(operations):
    whole = torch.randn(2, 3, 4, 5, 48)
    tensors = [torch.tensor(x) for x in ([1.0, 5.0, 3.0], [math.inf, 2.5, 1.0], [0.25, 0.25, 0.5])]
    for view in (
        lambda x: x, lambda x: x.transpose(1, 2), lambda x: x.transpose(0, 2).transpose(0, 1).transpose(0, 1)[:3],
        lambda x: x[..., :40], lambda x: x[..., 1:41], lambda x: x.transpose(2, 3), lambda x: x[:, :1].expand(-1, 4, -1, -1),
    ):  # fmt: skip
        positive, negative = view(whole[0]), view(whole[1])
        settings = [x[: positive.shape[0]] for x in tensors]
        out = operations.guidance(positive, negative, *settings, "nag")
        torch.testing.assert_close(out, reference.guidance(positive, negative, *settings), rtol=1e-5, atol=1e-6)


def full(inputs: dict, form: str | None) -> dict:
    names = ("key_shared", "value_shared", "mask_positive", "mask_negative", "mask_shared", "softmax_scale")
    return {**dict.fromkeys(names), "negative_logit_bias": 0.0, **inputs, "form": form}


@pytest.mark.parametrize(("change", "form", "said"), [
    ({"dtype": torch.float32}, "branches", "cuda cannot run float32"),
    ({"dtype": torch.float64}, "branches", "cuda cannot run float64"),
    ({"size": 20}, "branches", "cuda cannot run head size 20"),
    ({"size": 264, "heads": 1}, "branches", "cuda cannot run head size 264"),
    ({"size": 168}, "text", "head sizes up to 160"),
    ({"positive": 513}, "text", "texts up to 512"),
    ({"shared": 3}, "text", "takes no shared keys"),
    ({}, "other", "form must be 'text', 'branches' or 'cluster', got 'other'"),
    ({"dtype": torch.float16}, "cluster", "the cluster kernel takes bfloat16"),
    ({"size": 136}, "cluster", "head sizes up to 128"),
    ({"heads": 41}, "cluster", "no room for 41 heads of 24"),
], ids=str)  # fmt: skip
def test_limits(operations, change, form, said):
    inputs = testing.with_settings(make_inputs(**{"positive": 5, "negative": 4} | change), SETTINGS)
    with pytest.raises(RuntimeError, match=said):
        operations.fused_guided_attention(**full(inputs, form), rule="nag")


@pytest.mark.parametrize("chip", [80, 89, 100, 120])
def test_the_cluster_kernel_is_for_one_chip(operations, monkeypatch, chip):
    monkeypatch.setenv("NAG_EMULATED_CHIP", str(chip))
    inputs = make_inputs(positive=5, negative=4)
    with pytest.raises(RuntimeError, match="machine code of sm_90a, and this GPU has another"):
        run("cuda cluster", inputs)


@pytest.mark.parametrize(("device", "variable", "value", "form", "said"), [
    (1, "DRIVER", 12090, "text", "the driver is for CUDA 12.9, the library was built with CUDA 13.0: it needs a newer driver"),
    (2, "DRIVER", 12090, "guidance", "the driver is for CUDA 12.9"),
    (3, "IMAGE", 0, "branches", r"no code of the kernel that this device takes \(CUDA error 209\): build it with TORCH_CUDA"),
    (4, "IMAGE", 0, "cluster", "no code of the kernel"),
    (5, "CLUSTERS", 0, "cluster", "this device, or its slice, cannot run a cluster of 8 blocks at once"),
    (6, "CLUSTERS", 0, "text", "^$"),
    (7, "DRIVER", 13010, "guidance", "^$"),
    (9, "DRIVER", 0, "text", "there is no CUDA driver"),
    (64, "DRIVER", 13000, "guidance", "the library takes 64 devices"),
    (8, "DRIVER", 13000, "other", "no kernel is of the form 'other'"),
], ids=str)  # fmt: skip
def test_what_a_device_cannot_run_is_said_before_any_launch(
    operations, monkeypatch, device, variable, value, form, said
):
    """Each device is asked once: what holds afterwards does not matter."""
    monkeypatch.setenv(f"NAG_EMULATED_{variable}", str(value))
    first = operations.device_refusal(device, form)
    assert re.search(said, first)
    monkeypatch.delenv(f"NAG_EMULATED_{variable}")
    assert operations.device_refusal(device, form) == first


REFUSED = """
import os, sys, torch
from nag_kernels import availability, gpu, gpu_table, testing
torch.ops.load_library(sys.argv[1])
gpu._families = lambda: ("cuda",)
gpu._chip = lambda device: 90
inputs = testing.make_inputs(dtype=torch.bfloat16, length=3, heads=1, size=24, positive=5, negative=4)
full = testing.with_settings(inputs, (5.0, 2.5, 0.25))
for form in ("text", "branches", "cluster"):
    try:
        gpu.run_plan(f"cuda {form}", **full)
    except RuntimeError as error:
        print(form, error)
try:
    torch.ops.nag_cuda.guidance(torch.ones(2, 8), torch.ones(2, 8), 5.0, 2.5, 0.25, "nag")
except RuntimeError as error:
    print("guidance", error)
call = gpu_table.Call(90, 3, 1, 24, 5, 4)
chosen, others = gpu.choose(call, ("cuda",), None, torch.device("cpu"))
print(chosen, dict(others)["cuda text"])
"""


def test_a_device_without_code_is_served_by_torch():
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, emulated.host_library()], capture_output=True, text=True,
        env={**os.environ, "NAG_EMULATED_IMAGE": "0", "NAG_EMULATED_SHARED_KIB": "227"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [x.split()[0] for x in lines] == ["text", "branches", "cluster", "guidance", "sdpa"]
    assert all("the library has no code of the kernel that this device takes" in x for x in lines)


@pytest.mark.slow
def test_rows_that_the_copy_engine_does_not_take():
    """Keys of one token, one head or one sample that stand for many, as `expand` makes them."""
    inputs = make_inputs(batch=2, heads=4, positive=9, negative=7, shared=70)
    for part in ("positive", "negative", "shared"):
        for dim in (0, 1, 2):
            one = {name: inputs[name].narrow(dim, 0, 1) for name in (f"key_{part}", f"value_{part}")}
            expanded = {name: x.expand_as(inputs[name]) for name, x in one.items()}
            whole = {name: x.contiguous() for name, x in expanded.items()}
            assert torch.equal(run("cuda cluster", inputs | expanded), run("cuda cluster", inputs | whole))


def test_what_the_chooser_lets_through_is_taken_here(operations):
    """Both know the limits: the sentence in Python comes before the error in C++."""
    for size, text, shared, dtype in itertools.product(
        (8, 20, 128, 160, 168, 256, 264), (4, 512, 513), (0, 3), (torch.float16, torch.bfloat16, torch.float32)
    ):
        inputs = make_inputs(length=1, heads=1, size=size, positive=text, negative=1, shared=shared, dtype=dtype)
        call = gpu_table.Call(90, 1, 1, size, text, 1, shared, dtype=dtype)
        for plan in PLANS:
            if gpu_table.refusal(plan, call) is None:
                assert run(plan, inputs).isfinite().all()
            else:
                with pytest.raises(RuntimeError):
                    run(plan, inputs)


ROWS = [row for row in bad_inputs.table() if "another device" not in row[2].name and not row[2].schema]


@pytest.mark.parametrize(("op", "overload", "row"), ROWS, ids=[f"{op}.{o}: {row.name}" for op, o, row in ROWS])
def test_bad_inputs(operations, op, overload, row):
    """The whole table of bad inputs, with the same words as on every other path."""
    inputs, message = bad_inputs.bad_call(op, overload, row)
    if any(isinstance(x, torch.Tensor) and x.device.type != "cpu" for x in inputs.values()):
        pytest.skip("a process with one device")
    if op == "fused_guided_attention":
        inputs = full(inputs, "branches")
    with pytest.raises(RuntimeError) as caught:
        getattr(getattr(operations, op), overload)(**inputs)
    assert message in str(caught.value)
