# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The compiled operations of a gradient on a CPU (csrc/cpu/gradient.cpp), beside what stands for them in plain PyTorch."""

import math

import pytest
import torch
from test_gradients import gradients

from nag_kernels import fused_guided_attention, gradient, testing
from nag_kernels.namespace import operations

pytestmark = pytest.mark.skipif(gradient._library() is None, reason="the CPU kernels are not here: not built")
LOWEST = torch.finfo(torch.float32).min


def plainly(function, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient, "_library", lambda: None)
        return function(*arguments)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 77, 300])
def test_exponentials(length):
    logits = 10 * torch.randn(3, 5, length)
    logits[0, 0] = -math.inf  # nothing is seen
    logits[1, 1, : length // 2] = -math.inf
    logits[2, 2] += 1e7
    largest, total = torch.empty(2, 3, 5, 1)
    weights = logits.clone()
    gradient.exponentials_(weights, largest, total, True)
    tops = logits.amax(-1, keepdim=True).clamp_min(LOWEST)
    exact = (logits - tops).double().exp()
    assert torch.equal(largest, tops)
    depth = (tops - logits).clamp_max(90).double()  # without fused products the argument is rounded
    assert bool(((weights - exact).abs() <= (6e-7 + 8e-8 * depth) * exact + 1e-37).all())
    assert not weights[logits == -math.inf].any()
    torch.testing.assert_close(total.double(), exact.sum(-1, keepdim=True), rtol=1e-6, atol=0)
    again = logits.clone()
    gradient.exponentials_(again, largest, total.fill_(7), False)
    assert torch.equal(again, weights)
    assert (total == 7).all()


def test_a_nan_logit_stays_in_its_row():
    logits = torch.randn(2, 3, 40)
    logits[1, 1, 5] = math.nan
    largest, total = torch.empty(2, 2, 3, 1)
    gradient.exponentials_(logits, largest, total, True)
    assert total.isnan().nonzero().tolist() == [[1, 1, 0]]
    assert logits.isnan().nonzero().tolist() == [[1, 1, 5]]


@pytest.mark.parametrize("size", [1, 7, 16, 40, 64])
@pytest.mark.parametrize(
    ("rule", "settings"),
    [("nag", (5.0, 2.5, 0.25)), ("nag", (5.0, 1.0, 0.6)), ("nag", (3.0, math.inf, 1.0)), ("nasa", (0.5, 2.5, 0.25))],
)
def test_derivative_of_the_formula(rule, settings, size):
    push, positive, negative = torch.randn(3, 4, 9, size)
    positive[:, 3] = negative[:, 3] = 0
    tensors = [torch.full((1, 1, 1), x) for x in settings]
    found = gradient.derivative(push, [positive, negative], tensors, rule)
    wide = [x.double() for x in (push, positive, negative, *tensors)]
    exact = gradient.derivative(wide[0], wide[1:3], wide[3:], rule)
    for x, y in zip(
        [*found[0], *found[1], torch.stack(found[2])], [*exact[0], *exact[1], torch.stack(exact[2])], strict=True
    ):
        torch.testing.assert_close(x.double(), y, rtol=2e-5, atol=2e-5 * float(y.abs().max()))


@pytest.mark.parametrize("layout", ["heads second", "rows last", "expanded"])
def test_derivative_of_any_strides(layout):
    given = {
        "heads second": torch.randn(3, 9, 4, 16).transpose(1, 2), "rows last": torch.randn(3, 4, 16, 9).transpose(2, 3),
        "expanded": torch.randn(3, 4, 9, 1).expand(3, 4, 9, 16),
    }[layout]  # fmt: skip
    settings = [torch.full((1, 1, 1), x) for x in (5.0, 2.5, 0.25)]
    found, packed = (gradient.derivative(x[0], list(x[1:]), settings, "nag") for x in (given, given.contiguous()))
    for some, others in zip(found, packed, strict=True):
        assert all(map(torch.equal, some, others))


@pytest.mark.parametrize("rule", ["nag", "nasa", "vsf"])
def test_with_and_without_the_library(rule):
    inputs = testing.make_inputs(
        batch=2, length=70, heads=4, kv_heads=2, size=24, positive=9, negative=33, shared=20, masks=True
    )
    push, settings = torch.randn_like(inputs["query"]), (3.0, 2.0, 0.4)
    call = testing.with_settings(inputs, settings)
    found = gradients(fused_guided_attention, call, push, rule=rule)
    others = plainly(lambda: gradients(fused_guided_attention, call, push, rule=rule))
    assert found.keys() == others.keys()
    assert max(testing.error(x, others[name]) for name, x in found.items()) < 2e-6
    assert not all(torch.equal(x, others[name]) for name, x in found.items())  # they are two ways


def test_the_same_bits_on_one_thread_and_on_several():
    inputs = testing.make_inputs(batch=1, length=2000, heads=4, size=32, positive=77, negative=33)
    push, found = torch.randn_like(inputs["query"]), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            heads = 5 * torch.randn(4, 500, 77, generator=torch.Generator().manual_seed(0))
            largest, total = torch.empty(2, 4, 500, 1)
            gradient.exponentials_(heads, largest, total, True)
            rows = [x[0].transpose(0, 1) for x in (push, inputs["query"], push.flip(1))]
            settings = [torch.full((1, 1, 1), x) for x in (5.0, 2.5, 0.25)]
            pushes, deltas, _ = gradient.derivative(rows[0], rows[1:], settings, "nag")
            found.append([heads, largest, total, *pushes, *deltas])
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


def test_what_does_not_fit_is_refused():
    library = operations("_cpu")
    with pytest.raises(RuntimeError, match="one number for each row"):
        library.exponentials_(torch.randn(2, 3), torch.empty(3, 1), torch.empty(3, 1), True)
    with pytest.raises(RuntimeError, match="contiguous, in float32"):
        library.exponentials_(torch.randn(2, 3).double(), torch.empty(2, 1), torch.empty(2, 1), True)
    x = torch.randn(2, 3, 4)
    with pytest.raises(RuntimeError, match="one shape"):
        library.formula_backward(
            x, x, x[:1], *torch.empty(2, 2, 3, 4), torch.empty(2, 2, 3), torch.empty(3, 3), 5.0, 2.5, 0.25, "nag"
        )
