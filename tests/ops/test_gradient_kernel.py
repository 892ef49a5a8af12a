# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The gradient's compiled kernel on a CPU, beside the plain PyTorch that serves without it and beside float64."""

import pytest
import torch
from test_gradients import gradients, python_gradients, settings_of, without_kernel

import nag_kernels
from nag_kernels import availability, reference, testing
from nag_kernels.checks import Attention


@without_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradient_of_the_kernel_is_that_of_python(dtype):
    """Against float64, on what is made of several panels, blocks and groups of queries, from strides of any kind."""
    call = testing.make_inputs(batch=2, length=150, heads=6, size=40, positive=77, negative=50, shared=130, kv_heads=3,
                               negative_batch=1, masks=True, bias=0.5, dtype=dtype)  # fmt: skip
    for name in [x for x in call if x.startswith(("query", "key", "value"))]:
        call[name] = call[name].transpose(1, 2).contiguous().transpose(1, 2)
    call["key_shared"] = call["key_shared"].transpose(1, 3).contiguous().transpose(1, 3)
    push = torch.randn(150, 2, 6, 40).to(dtype).transpose(0, 1)
    before = availability._CPU.calls().copy()
    for rule in ("nag", "nasa", "vsf"):
        settings = settings_of(rule, each=True)
        found = gradients(nag_kernels.fused_guided_attention, call | settings, push)
        python = python_gradients(call | settings, push)
        exact = gradients(reference.fused_guided_attention, testing.cast(call, torch.float64) | settings, push.double())
        for name, x in exact.items():
            assert found[name].dtype == call.get(name, settings.get(name)).dtype
            # Z+ and Z-, which the settings' gradients come from, may be off by one rounding, as they are in the forward.
            # A setting's is one number, a sum of terms of both signs: Python's error may be 0 by luck.
            lucky = 4 if name.startswith("nag_") else 1
            allowed = 1.5 * testing.error(python[name], x) + lucky * testing.rounding_floor(dtype)
            assert testing.error(found[name], x) <= allowed, (name, rule)
    counted = {name: n - before.get(name, 0) for name, n in availability._CPU.calls().items() if "backward" in name}
    assert sum(counted.values()) == 3


@without_kernel
def test_gradient_of_the_kernel_takes_no_rounded_branches():
    """Where f clips, the sign of Z+ counts, and pairs of bfloat16 would flip it where Z+ is nearly 0."""
    call = testing.make_inputs(batch=1, length=256, heads=8, size=64, dtype=torch.bfloat16)
    call["value_positive"] *= 0.02
    call |= {"nag_scale": 5.0, "nag_tau": 1.0, "nag_alpha": 0.5}
    push = torch.randn_like(call["query"])
    found, python = gradients(nag_kernels.fused_guided_attention, call, push), python_gradients(call, push)
    exact = gradients(reference.fused_guided_attention, testing.cast(call, torch.float64), push.double())
    for name, x in exact.items():
        assert testing.error(found[name], x) <= 1.1 * testing.error(python[name], x), name


@without_kernel
@pytest.mark.parametrize("rule", ["nag", "vsf"])
def test_gradient_has_the_same_bits_for_every_number_of_threads(rule):
    call = testing.make_inputs(
        batch=3, length=150, heads=5, size=24, positive=30, negative=20, shared=110, negative_batch=1
    )
    push = torch.randn_like(call["query"])
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            found.append(gradients(nag_kernels.fused_guided_attention, call | settings_of(rule, each=False), push))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


@without_kernel
@pytest.mark.parametrize(
    "change", [{"push": torch.zeros(1, 64, 4, 32)}, {"push": torch.zeros(1, 64, 4, 64).half()}, {"wanted": [True] * 9},
               {"query": torch.zeros(64, 4, 64)}]
)  # fmt: skip
def test_gradient_refuses_what_does_not_fit(change):
    call = testing.make_inputs() | {"nag_scale": 5.0, "nag_tau": 2.5, "nag_alpha": 0.25} | change
    push, wanted = call.pop("push", torch.zeros(1, 64, 4, 64)), call.pop("wanted", [True] * 10)
    with pytest.raises(RuntimeError, match="must"):
        torch.ops.nag.fused_guided_attention_backward(push, wanted, *Attention(**call))
