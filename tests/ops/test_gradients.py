# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Gradients of the operations."""

import pytest
import torch
from test_ops import both, operation, samples
from torch.autograd import forward_ad

import nag_kernels
from nag_kernels import _ops, testing


def differentiable(call):
    names = [n for n, x in call.items() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    return names, [call[n].detach().clone().requires_grad_() for n in names]


@both
def test_gradients_against_finite_differences(op, overload):
    for call in samples(op, overload, dtype=torch.float64):
        names, tensors = differentiable({k: v for k, v in call.items() if not k.startswith("nag_")})

        def f(*tensors, call=call, names=names):
            return operation(op, overload)(**{**call, **dict(zip(names, tensors, strict=True))})

        assert torch.autograd.gradcheck(f, tensors)


@pytest.mark.parametrize("rule", ["nag", "vsf"])
def test_second_derivatives_against_finite_differences(rule):
    small = {"length": 2, "heads": 2, "size": 3, "positive": 2, "negative": 2, "shared": 2, "dtype": torch.float64}
    names, tensors = differentiable(testing.make_inputs(**small))

    def f(*tensors):
        return nag_kernels.fused_guided_attention(**dict(zip(names, tensors, strict=True)), nag_scale=5.0, nag_tau=1.2,
                                                  rule=rule)  # fmt: skip

    assert torch.autograd.gradgradcheck(f, tensors)


@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_where_one_input_is_made_from_another(create_graph):
    inputs = testing.make_inputs(length=3, heads=2, size=4, positive=3, negative=3, dtype=torch.float64)
    query, key, negative = (inputs[name].requires_grad_() for name in ("query", "key_positive", "key_negative"))

    def gradients(function):
        out = function(query, key * 2, key, negative, negative, 5.0, 1.2, 0.25)
        return torch.autograd.grad(out.sum(), (query, key, negative), create_graph=create_graph)

    found, expected = gradients(torch.ops.nag.fused_guided_attention), gradients(_ops.reference.fused_guided_attention)
    torch.testing.assert_close(found, expected)


def test_gradients_in_an_autocast_region_are_those_outside():
    inputs = testing.make_inputs(length=9, heads=2, size=8, positive=3, negative=3)
    query = inputs["query"].requires_grad_()
    out = nag_kernels.fused_guided_attention(**inputs, nag_scale=5.0).sum()
    (expected,) = torch.autograd.grad(out, query, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = torch.autograd.grad(out, query)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rule", ["nag", "vsf"])
def test_gradients_of_the_settings(rule):
    inputs = testing.make_inputs(batch=2, length=3, heads=2, size=4, positive=3, negative=3)
    settings = [torch.tensor(x, requires_grad=True) for x in (3.0, 1.2, 0.5)]
    nag_kernels.fused_guided_attention(**inputs, nag_scale=settings[0], nag_tau=settings[1],
                                       nag_alpha=settings[2], rule=rule).sum().backward()  # fmt: skip
    found = [x.grad for x in settings]
    wide = testing.cast(inputs, torch.float64)
    exact = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (3.0, 1.2, 0.5)]
    nag_kernels.reference.fused_guided_attention(**wide, nag_scale=exact[0], nag_tau=exact[1],
                                                 nag_alpha=exact[2], rule=rule).sum().backward()  # fmt: skip
    for a, b in zip(found, exact, strict=True):
        wanted = torch.zeros_like(b) if b.grad is None else b.grad  # "vsf" does not use tau and alpha
        torch.testing.assert_close(a.double(), wanted, rtol=1e-4, atol=1e-4)
    assert found[0] != 0


def test_gradients_of_vsf_beside_hidden_nan():
    """Not even into the gradient of the scale does a hidden value come through."""
    inputs = testing.make_inputs(batch=2, length=3, heads=2, size=4, positive=3, negative=3, masks=True)
    scale = torch.tensor(2.0, requires_grad=True)
    gradients = []
    for hidden in (0.0, float("nan")):
        inputs["value_negative"][~inputs["mask_negative"]] = hidden
        out = nag_kernels.fused_guided_attention(**inputs, nag_scale=scale, rule="vsf")
        gradients += torch.autograd.grad(out.sum(), scale)
    assert torch.equal(*gradients)


def test_forward_mode_is_refused():
    inputs = testing.make_inputs(length=3, heads=2, size=4, positive=3, negative=3)
    query = inputs.pop("query")
    for tensor in (query, query.clone().requires_grad_()):
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
            dual = forward_ad.make_dual(tensor, torch.ones_like(tensor))
            nag_kernels.fused_guided_attention(dual, **inputs, nag_scale=5.0)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(
            lambda q: nag_kernels.fused_guided_attention(q, **inputs, nag_scale=5.0),
            (query,),
            (torch.ones_like(query),),
        )


@both
def test_transforms_of_torch_func(op, overload):
    """grad, vjp, jacrev, vmap over grad, and grad of functional_call give what backward gives."""
    for call in samples(op, overload, dtype=torch.float64):
        names, tensors = differentiable({k: v for k, v in call.items() if not k.startswith("nag_")})

        def f(*tensors, call=call, names=names):
            return operation(op, overload)(**{**call, **dict(zip(names, tensors, strict=True))}).sin()

        out = f(*tensors)
        expected = torch.autograd.grad(out.sum(), tensors)
        plain = [x.detach() for x in tensors]
        places = tuple(range(len(plain)))
        found = [torch.func.grad(lambda *x: f(*x).sum(), argnums=places)(*plain)]
        value, pull = torch.func.vjp(f, *plain)
        torch.testing.assert_close(value, out.detach())
        found.append(pull(torch.ones_like(out)))
        found.append(
            [x.sum_to_size(x.shape) for x in torch.func.jacrev(lambda *x: f(*x).sum(), argnums=places)(*plain)]
        )
        for gradients in found:
            torch.testing.assert_close(list(gradients), list(expected))


def test_gradient_of_a_functional_call():
    inputs = testing.make_inputs(length=3, heads=2, size=4, positive=3, negative=3, dtype=torch.float64)
    query = inputs.pop("query")
    torch.manual_seed(0)

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4, dtype=torch.float64)

        def forward(self, x):
            return nag_kernels.fused_guided_attention(self.linear(x), **inputs, nag_scale=5.0)

    layer = Layer()
    layer(query).sum().backward()
    parameters = {name: x.detach() for name, x in layer.named_parameters()}
    found = torch.func.grad(lambda p: torch.func.functional_call(layer, p, (query,)).sum())(parameters)
    for name, x in layer.named_parameters():
        torch.testing.assert_close(found[name], x.grad)


def test_nothing_is_saved_without_requires_grad():
    saved = []
    inputs = testing.make_inputs(length=3)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        out = nag_kernels.fused_guided_attention(**inputs, nag_scale=5.0)
        assert not out.requires_grad
        assert not saved
        inputs["query"].requires_grad_()
        assert nag_kernels.fused_guided_attention(**inputs, nag_scale=5.0).requires_grad
        assert saved


def test_bfloat16_gradients_are_near_the_float64_ones():
    inputs = testing.make_inputs(batch=2, length=20, shared=10, masks=True, dtype=torch.bfloat16)
    names, tensors = differentiable(inputs)
    call = {**inputs, **dict(zip(names, tensors, strict=True))}
    nag_kernels.fused_guided_attention(**call, nag_scale=5.0).sum().backward()
    wide = testing.cast(inputs, torch.float64)
    _, exact = differentiable(wide)
    testing_call = {**wide, **dict(zip(names, exact, strict=True))}
    nag_kernels.reference.fused_guided_attention(
        **testing_call, nag_scale=5.0, nag_tau=2.5, nag_alpha=0.25
    ).sum().backward()
    for name, a, b in zip(names, tensors, exact, strict=True):
        assert a.grad.dtype == torch.bfloat16
        assert testing.error(a.grad, b.grad) < 6e-3, name
