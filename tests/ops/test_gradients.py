# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Gradients of the operations."""

import pytest
import torch
from test_ops import both, operation, samples
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import nag_kernels
from nag_kernels import _ops, availability, gradient, reference, testing
from nag_kernels.checks import Attention

without_kernel = pytest.mark.skipif(availability.refusal("cpu", "cpu") is not None, reason="cpu is not here: not built")


def differentiable(call):
    names = [n for n, x in call.items() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    return names, [call[n].detach().clone().requires_grad_() for n in names]


def gradients(function, call, push, **settings):
    """dL/d of every floating tensor of a call, by name, where dL/dout is push."""
    names, tensors = differentiable(call)
    out = function(**{**call, **dict(zip(names, tensors, strict=True)), **settings})
    found = torch.autograd.grad(out, tensors, push, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


def python_gradients(call, push):
    """The same by gradient.py, which serves where there is no compiled kernel."""
    arguments = Attention(**call)
    found = gradient.fused_guided_attention(push, [isinstance(x, torch.Tensor) for x in arguments[:10]], *arguments)
    return {
        name: x for name, x in zip(Attention._fields, found, strict=False) if isinstance(call.get(name), torch.Tensor)
    }


def settings_of(rule, each):
    """Tensors, of each sample or of all; in part of the tokens f clips."""
    values = {"nag_scale": [3.0, 1.5], "nag_tau": [1.25, float("inf")], "nag_alpha": [0.5, 0.25]}
    return {name: torch.tensor(x if each else x[0]) for name, x in values.items()} | {"rule": rule}


@pytest.mark.parametrize("rule", ["nag", "nasa", "vsf"])
@pytest.mark.parametrize("path", ["registered", "python, weights kept", "python, weights again"])
def test_blocks_against_the_reference(rule, path, monkeypatch):
    """The reference's gradient: of what is registered (on a CPU the compiled kernel, where it is built), and of gradient.py
    in blocks of 7 rows and groups of heads, with the weights of step 1 kept or computed again."""
    monkeypatch.setitem(gradient.ROWS, "cpu", 7)
    monkeypatch.setitem(gradient.NUMBERS, "cpu", 70 if path.endswith("again") else 10_000)
    calls = [
        {"shared": 9}, {"positive": 5, "negative": 11}, {"shared": 9, "negative_batch": 1, "masks": True, "bias": 0.7},
        {"shared": 9, "kv_heads": 2, "masks": True}, {"kv_heads": 1, "negative": 0}, {"positive": 0, "shared": 3},
        {"positive": 0, "negative": 0}, {"positive": 0, "negative": 0, "shared": 5}, {"length": 0}, {"batch": 2, "length": 1},
        {"length": 70, "shared": 130, "positive": 100, "heads": 2, "size": 40}, {"shared": 9, "softmax_scale": -0.7},
    ]  # fmt: skip
    for i, shape in enumerate(calls):
        given = {"softmax_scale": shape.pop("softmax_scale", None)}
        call = testing.make_inputs(**({"batch": 2, "length": 17, "heads": 4, "size": 6, "positive": 4, "negative": 3,
                                       "dtype": torch.float64} | shape)) | given  # fmt: skip
        if shape.get("masks"):  # a sample that sees nothing of a key set or of a branch, and NaN where nothing is seen
            call["mask_positive"][1] = call["mask_shared"][1 if "kv_heads" in shape else 0] = False
            call["key_positive"][1] = call["value_shared"][1 if "kv_heads" in shape else 0] = float("nan")
        settings = settings_of(rule, each=i % 2 == 0)
        push = torch.randn_like(call["query"])
        if path == "registered":
            found = gradients(nag_kernels.fused_guided_attention, call | settings, push)
        else:
            found = python_gradients(call | settings, push)
        expected = gradients(reference.fused_guided_attention, call | settings, push)
        assert len(found) >= 8
        for name in found:
            bound = 1e-5 if found[name].dtype == torch.float32 else 1e-10  # settings are float32
            torch.testing.assert_close(found[name], expected[name], rtol=bound, atol=bound, msg=f"{name} of {shape}")


@pytest.mark.parametrize("rule", ["nag", "nasa"])
def test_gradient_of_guidance_against_the_reference(rule):
    for each, shape in ((True, (2, 9, 12)), (False, (2, 9, 12)), (False, (12,))):
        call = {name: torch.randn(*shape, dtype=torch.float64) for name in ("positive", "negative")}
        call["positive"] *= torch.linspace(0, 1, shape[0])[:, None, None] if len(shape) > 1 else 1  # zeros too
        push = torch.randn(*shape, dtype=torch.float64)
        both_ = [gradients(f, call | settings_of(rule, each), push) for f in (nag_kernels.guidance, reference.guidance)]
        for name, x in both_[0].items():
            bound = 1e-5 if x.dtype == torch.float32 else 1e-10
            torch.testing.assert_close(x, both_[1][name], rtol=bound, atol=bound, msg=name)


def test_one_gradient_alone_is_that_among_all():
    call = testing.make_inputs(length=9, heads=2, size=4, positive=3, negative=5, shared=4) | {
        "nag_scale": torch.tensor(3.0), "nag_tau": torch.tensor(1.2), "nag_alpha": torch.tensor(0.5)}  # fmt: skip
    for rule in ("nag", "vsf"):
        push = torch.randn_like(call["query"])
        every = gradients(nag_kernels.fused_guided_attention, call, push, rule=rule)
        for name, wanted in every.items():
            alone = call[name].clone().requires_grad_()
            out = nag_kernels.fused_guided_attention(**{**call, name: alone}, rule=rule)
            if out.requires_grad:
                assert torch.equal(torch.autograd.grad(out, alone, push)[0], wanted), name


class Largest(TorchDispatchMode):
    """The most numbers in a tensor that an operation of torch gives, also inside the gradient, which is an operation itself."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.nag.fused_guided_attention_backward.default:
            with self:
                return gradient.fused_guided_attention(*args)
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def test_memory_of_the_gradient_is_linear():
    """Nothing is as large as all logits, 8 million here, but the logits of one head and of 512 rows."""
    call = testing.make_inputs(length=1024, heads=2, size=64, positive=64, negative=64, shared=4096)
    _, (query, *_) = differentiable(call)
    out = nag_kernels.fused_guided_attention(**{**call, "query": query}, nag_scale=5.0)
    with Largest() as largest:
        out.sum().backward()
    assert largest.numbers == 1 << 21


def test_gradient_of_a_sample_has_the_same_bits_in_a_batch_and_again():
    call = testing.make_inputs(batch=3, length=40, heads=4, size=16, positive=7, negative=5, shared=9, masks=True)
    push = torch.randn_like(call["query"])
    whole, again = (gradients(nag_kernels.fused_guided_attention, call, push, nag_scale=5.0) for _ in range(2))
    torch.testing.assert_close(whole, again, rtol=0, atol=0)
    for i in range(3):
        own = {name: x[i : i + 1] for name, x in call.items()}
        alone = gradients(nag_kernels.fused_guided_attention, own, push[i : i + 1], nag_scale=5.0)
        for name, x in alone.items():
            assert torch.equal(x[0], whole[name][i]), name


@pytest.mark.parametrize("rule", ["nag", "vsf"])
def test_gradient_where_one_text_outweighs_the_other_beyond_float32(rule):
    """exp(L+ - L-) is no float32 here, in one token because of text+, in another because of text-."""
    call = testing.make_inputs(length=2, heads=2, size=4, positive=3, negative=3, shared=5)
    call["query"][:, :, :, 0] = torch.tensor([400.0, -400.0])[:, None]
    call["key_positive"][..., 0], call["key_negative"][..., 0] = 1.0, -1.0
    call["negative_logit_bias"] = -3.0
    push = torch.randn_like(call["query"])
    found = gradients(nag_kernels.fused_guided_attention, call, push, nag_scale=5.0, rule=rule)
    expected = gradients(
        reference.fused_guided_attention, testing.cast(call, torch.float64), push.double(), nag_scale=5.0, nag_tau=2.5,
        nag_alpha=0.25, rule=rule,
    )  # fmt: skip
    for name, x in found.items():
        torch.testing.assert_close(x.double(), expected[name], rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("logit", [4e3, 4e7])
def test_gradient_where_logits_are_large_and_equal(logit):
    """Beside them the logarithm of a sum of exponentials is nothing in float32."""
    call = testing.make_inputs(length=2, heads=2, size=4, positive=3, negative=5, shared=4)
    for name in [x for x in call if x.startswith(("query", "key"))]:
        call[name] = torch.full_like(call[name], (logit / 2) ** 0.5)
    push = torch.randn_like(call["query"])
    found = gradients(nag_kernels.fused_guided_attention, call, push, nag_scale=5.0)
    expected = gradients(
        reference.fused_guided_attention, testing.cast(call, torch.float64), push.double(), nag_scale=5.0, nag_tau=2.5,
        nag_alpha=0.25,
    )  # fmt: skip
    for name in ("value_positive", "value_negative", "value_shared"):
        assert testing.error(found[name], expected[name]) < 1e-6, name


def test_gradient_where_a_bias_hides_the_negative():
    call = testing.make_inputs(length=9, heads=2, size=4, positive=3, negative=3, shared=5)
    push = torch.randn_like(call["query"])
    biased = call | {"negative_logit_bias": torch.finfo(torch.float32).min}
    hidden = call | {"mask_negative": torch.zeros(1, 3, dtype=torch.bool)}
    found, expected = (gradients(nag_kernels.fused_guided_attention, x, push, nag_scale=5.0) for x in (biased, hidden))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_half_precision_are_no_worse_than_those_of_the_eager_formula(dtype):
    call = testing.make_inputs(length=128, heads=4, size=32, positive=20, negative=30, shared=128, dtype=dtype)
    push = torch.randn_like(call["query"])
    exact = gradients(
        reference.fused_guided_attention, testing.cast(call, torch.float64), push.double(), nag_scale=5.0, nag_tau=2.5,
        nag_alpha=0.25,
    )  # fmt: skip
    ours = gradients(nag_kernels.fused_guided_attention, call, push, nag_scale=5.0)
    eager = gradients(lambda **inputs: testing.eager(inputs, 5.0, 2.5, 0.25), call, push)
    for name, x in exact.items():
        assert testing.error(ours[name], x) < 1.05 * testing.error(eager[name], x), name


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


@both
@pytest.mark.parametrize("requires_grad", [False, True])
def test_forward_mode(op, overload, requires_grad):
    """What it gives along a direction, beside what backward gives: <w, J v> = <J^T w, v>."""
    generator = torch.Generator().manual_seed(2)
    for call in samples(op, overload, dtype=torch.float64):
        names, tensors = differentiable({k: v for k, v in call.items() if not k.startswith("nag_")})
        plain = [x.detach().requires_grad_(requires_grad) for x in tensors]

        def f(*tensors, call=call, names=names):
            return operation(op, overload)(**{**call, **dict(zip(names, tensors, strict=True))})

        along = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in plain]
        out = f(*tensors)
        weight = torch.randn(out.shape, dtype=out.dtype, generator=generator)
        wanted = sum((x * y).sum() for x, y in zip(torch.autograd.grad(out, tensors, weight), along, strict=True))
        value, pushed = torch.func.jvp(f, tuple(plain), tuple(along))
        torch.testing.assert_close(value.detach(), out.detach())
        torch.testing.assert_close((weight * pushed).sum().detach(), wanted)
        with forward_ad.dual_level():
            dual = f(*(forward_ad.make_dual(x, y) for x, y in zip(plain, along, strict=True)))
            pushed = forward_ad.unpack_dual(dual).tangent
        torch.testing.assert_close((weight * pushed).sum().detach(), wanted)


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
