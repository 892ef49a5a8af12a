# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The operations as torch sees them: schemas, refusals on every path, fakes, compile, export, autocast."""

import re
import time

import bad_inputs
import pytest
import torch
from torch._dynamo.testing import CompileCounter

import nag_kernels
from nag_kernels import _ops, availability, testing

OPERATIONS = availability.OPERATIONS
CPU = availability.refusal("cpu", "cpu") is None
ROWS = list(bad_inputs.table())
row_ids = [f"{op}.{overload}: {row.name}" for op, overload, row in ROWS]


def operation(op, overload):
    return getattr(getattr(torch.ops.nag, op), overload)


# --- refusals -----------------------------------------------------------------------------------------------------


def refuses(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value), str(caught.value)


@pytest.mark.parametrize(("op", "overload", "row"), ROWS, ids=row_ids)
class TestBadInputs:
    def test_front_door(self, op, overload, row):
        inputs, message = bad_inputs.bad_call(op, overload, row)
        refuses(lambda: getattr(nag_kernels, op)(**inputs), row.error, message)

    def test_front_door_of_the_reference(self, op, overload, row):
        inputs, message = bad_inputs.bad_call(op, overload, row)
        refuses(lambda: getattr(nag_kernels, op)(**inputs, backend="reference"), row.error, message)

    def test_raw_call(self, op, overload, row):
        inputs, message = bad_inputs.bad_call(op, overload, row)
        if row.schema:  # refused by torch before any of our code
            error, message = RuntimeError, "argument"
        else:  # a kernel can only raise RuntimeError; a call whose tensors lie on two devices may meet the fake
            error = (RuntimeError, row.error)
        refuses(lambda: operation(op, overload)(**inputs), error, message)

    def test_fake(self, op, overload, row):
        inputs, message = bad_inputs.bad_call(op, overload, row, device="meta")
        error, message = (RuntimeError, "argument") if row.schema else (row.error, message)
        refuses(lambda: operation(op, overload)(**inputs), error, message)


@pytest.mark.parametrize("op", OPERATIONS)
def test_the_good_inputs_of_the_table_are_good(op):
    for tensors in (False, True):
        make = bad_inputs.attention_inputs if op == "fused_guided_attention" else bad_inputs.guidance_inputs
        assert torch.isfinite(getattr(nag_kernels, op)(**make(tensors=tensors))).all()


@pytest.mark.parametrize(("tau", "error", "message"), [
    (-1.0, ValueError, "nag_tau must be above 0 (inf is no clip), got -1"), ("a", TypeError, "nag_tau must be a number, got str"),
])  # fmt: skip
def test_numbers_beside_tensor_settings_are_checked(tau, error, message):
    inputs = bad_inputs.attention_inputs() | {"nag_scale": torch.tensor(5.0), "nag_tau": tau}
    refuses(lambda: nag_kernels.fused_guided_attention(**inputs), error, message)


def test_the_schemas_are_those_of_the_contract():
    keys = "Tensor query, Tensor key_positive, Tensor value_positive, Tensor key_negative, Tensor value_negative, "
    options = (
        ", Tensor? key_shared=None, Tensor? value_shared=None, Tensor? mask_positive=None, Tensor? mask_negative=None, "
        'Tensor? mask_shared=None, float? softmax_scale=None, float negative_logit_bias=0., str rule="nag") -> Tensor'
    )
    for overload, kind in (("default", "float"), ("tensor", "Tensor")):
        settings = f"{kind} nag_scale, {kind} nag_tau, {kind} nag_alpha"
        suffix = "" if overload == "default" else ".tensor"
        assert str(operation("fused_guided_attention", overload)._schema) == (
            f"nag::fused_guided_attention{suffix}({keys}{settings}{options}"
        )
        assert str(operation("guidance", overload)._schema) == (
            f'nag::guidance{suffix}(Tensor positive, Tensor negative, {settings}, str rule="nag") -> Tensor'
        )


def test_mixed_settings_become_tensors():
    inputs = bad_inputs.attention_inputs()
    expected = nag_kernels.fused_guided_attention(**inputs)
    inputs["nag_scale"] = torch.tensor(5.0)
    assert torch.equal(nag_kernels.fused_guided_attention(**inputs), expected)


# --- registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _ops.SCHEMAS)
def test_schema_and_one_owner_per_key(name):
    dump = torch._C._dispatch_dump(f"nag::{name}")
    assert "CompositeExplicitAutograd[alias]" in dump
    assert "(inactive)" not in dump, dump  # a second registration at a key would leave the first one inactive
    assert bool(re.search(r"^CPU: registered", dump, re.MULTILINE)) == CPU


def samples(op, overload, requires_grad=False, dtype=torch.float32):
    """Calls that together try shared keys, masks, all rules, unequal texts, grouped queries, settings per sample."""
    if op == "guidance":
        torch.manual_seed(0)
        shapes = [{"positive": torch.randn(2, 3, 8, dtype=dtype), "negative": torch.randn(2, 3, 8, dtype=dtype)}]
    else:
        small = {"batch": 2, "length": 3, "heads": 2, "size": 4, "positive": 3, "negative": 2, "dtype": dtype}
        shapes = [testing.make_inputs(**small),
                  testing.make_inputs(**small, shared=3, masks=True, kv_heads=1, bias=0.5),
                  testing.make_inputs(**small, negative_batch=1, masks=True)]  # fmt: skip
    for inputs in shapes:
        rules = {"nag": (5.0, 1.2, 0.25), "nasa": (0.5, 2.5, 0.25), "vsf": (2.0, 2.5, 0.25)}
        if op == "guidance":
            del rules["vsf"]
        for rule, settings in rules.items():
            if overload == "tensor":
                settings = [torch.tensor([settings[0], 1.0])] + [torch.tensor(x) for x in settings[1:]]
            call = {**inputs, **dict(zip(("nag_scale", "nag_tau", "nag_alpha"), settings, strict=True)), "rule": rule}
            if requires_grad:
                call = {
                    name: x.clone().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point()
                    and not name.startswith("nag_") else x for name, x in call.items()
                }  # fmt: skip
            yield call


both = pytest.mark.parametrize(("op", "overload"), [(o, v) for o in OPERATIONS for v in ("default", "tensor")])


@pytest.mark.slow
@both
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(op, overload, requires_grad):
    for call in samples(op, overload, requires_grad):
        passed = torch.library.opcheck(operation(op, overload), (), call)
        assert set(passed.values()) == {"SUCCESS"}
        if not requires_grad:
            names = [x.name for x in operation(op, overload)._schema.arguments][: _ops.DERIVATIVES[op]]
            push, wanted = torch.randn_like(call[names[0]]), [isinstance(call.get(x), torch.Tensor) for x in names]
            passed = torch.library.opcheck(operation(f"{op}_backward", overload), (push, wanted), call)
            assert set(passed.values()) == {"SUCCESS"}


# --- compile, export, autocast, inference mode --------------------------------------------------------------------------


@pytest.mark.slow
@both
@pytest.mark.parametrize("requires_grad", [False, True])
def test_compile_fullgraph(op, overload, requires_grad):
    front_door = getattr(nag_kernels, op)
    for call in samples(op, overload, requires_grad):
        torch._dynamo.reset()
        compiled = torch.compile(lambda c: front_door(**c) * 2, fullgraph=True, backend="aot_eager")
        out, expected = compiled(call), front_door(**call) * 2
        torch.testing.assert_close(out, expected)
        if requires_grad:
            names = [n for n, x in call.items() if isinstance(x, torch.Tensor) and x.requires_grad]
            found = torch.autograd.grad(out.sum(), [call[n] for n in names])
            wanted = torch.autograd.grad(expected.sum(), [call[n] for n in names])
            torch.testing.assert_close(found, wanted)


@pytest.mark.slow
def test_inductor():
    inputs = testing.make_inputs(length=9, shared=5)
    compiled = torch.compile(lambda q: nag_kernels.fused_guided_attention(**{**inputs, "query": q * 2}, nag_scale=5.0) + 1,
                             fullgraph=True)  # fmt: skip
    expected = nag_kernels.fused_guided_attention(**{**inputs, "query": inputs["query"] * 2}, nag_scale=5.0) + 1
    torch.testing.assert_close(compiled(inputs["query"]), expected)


@pytest.mark.parametrize("op", OPERATIONS)
def test_tensor_settings_never_recompile(op):
    torch._dynamo.reset()
    make = bad_inputs.attention_inputs if op == "fused_guided_attention" else bad_inputs.guidance_inputs
    inputs = {k: v for k, v in make().items() if not k.startswith("nag_")}
    counter = CompileCounter()
    compiled = torch.compile(lambda s: getattr(nag_kernels, op)(**inputs, nag_scale=s), fullgraph=True, backend=counter)
    outs = [compiled(torch.tensor(float(s))) for s in range(2, 14)]
    assert counter.frame_count == 1
    assert not torch.equal(outs[0], outs[-1])


def test_dynamic_lengths_compile_once():
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(nag_kernels.fused_guided_attention, fullgraph=True, dynamic=True, backend=counter)
    for length, text in ((9, 5), (17, 6), (33, 12)):
        inputs = testing.make_inputs(length=length, positive=text, negative=text + 3, shared=length)
        out = compiled(**inputs, nag_scale=torch.tensor(5.0))
        torch.testing.assert_close(out, nag_kernels.fused_guided_attention(**inputs, nag_scale=5.0))
    assert counter.frame_count == 1


@both
def test_export(op, overload):
    class Layer(torch.nn.Module):
        def forward(self, call):
            return getattr(nag_kernels, op)(**call)

    for call in samples(op, overload):
        program = torch.export.export(Layer(), (dict(call),))
        assert f"nag.{op}.{overload}" in program.graph_module.code
        torch.testing.assert_close(program.module()(call), Layer()(call))


@both
def test_autocast(op, overload):
    for call in samples(op, overload, requires_grad=True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = getattr(nag_kernels, op)(**call)
        half = testing.cast({k: v for k, v in call.items() if not k.startswith("nag_")}, torch.bfloat16)
        settings = {k: v for k, v in call.items() if k.startswith("nag_")}
        assert out.dtype == torch.bfloat16
        assert torch.equal(out, getattr(nag_kernels, op)(**half, **settings))
        out.sum().backward()
        first = call["query" if op == "fused_guided_attention" else "positive"]
        assert first.grad.dtype == torch.float32
        assert first.grad.abs().max() > 0


def test_autocast_accepts_mixed_dtypes_as_sdpa_does(backend):
    inputs = testing.make_inputs(length=5)
    half = testing.cast(inputs, torch.bfloat16)
    inputs["key_positive"] = half["key_positive"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = nag_kernels.fused_guided_attention(**inputs, nag_scale=5.0, backend=backend)
    assert torch.equal(out, nag_kernels.fused_guided_attention(**half, nag_scale=5.0, backend=backend))
    with pytest.raises(TypeError, match="key_positive must be float32 like query, got bfloat16"):
        nag_kernels.fused_guided_attention(**inputs, nag_scale=5.0)
    inputs["key_positive"] = inputs["key_positive"][..., :8]
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match="must have head size 64 like query"),
    ):
        nag_kernels.fused_guided_attention(**inputs, nag_scale=5.0, backend=backend)


@pytest.mark.parametrize("rule", ["nasa", "vsf"])
def test_settings_that_a_rule_does_not_use_have_a_gradient_of_zero(rule):
    inputs = testing.make_inputs(length=5)
    scale, tau, alpha = (torch.tensor(x, requires_grad=x != 0.5) for x in (0.5, 2.5, 0.25))
    nag_kernels.fused_guided_attention(
        **inputs, nag_scale=scale, nag_tau=tau, nag_alpha=alpha, rule=rule
    ).sum().backward()
    assert tau.grad == 0
    assert alpha.grad == 0


@both
def test_inference_mode(op, overload):
    for call in samples(op, overload):
        expected = getattr(nag_kernels, op)(**call)
        with torch.inference_mode():
            out = getattr(nag_kernels, op)(**call)
            assert out.is_inference()
            assert torch.equal(out, expected)


def test_cost_of_the_autograd_layer_is_printed(capsys):
    """Microseconds per call on a tiny shape; printed, with no limit (speed lives in the benchmarks)."""
    inputs = testing.make_inputs(length=1, heads=1, size=8, positive=1, negative=1)
    call = {**inputs, "nag_scale": 5.0, "nag_tau": 2.5, "nag_alpha": 0.25}

    def microseconds(calls=300):
        start = time.perf_counter()
        for _ in range(calls):
            out = torch.ops.nag.fused_guided_attention(**call)
        return (time.perf_counter() - start) / calls * 1e6, out

    microseconds()
    normal, out = microseconds()
    with torch.no_grad():
        no_grad, _ = microseconds()
    with torch.inference_mode():
        inference, _ = microseconds()
    with capsys.disabled():
        print(
            f"\nraw call, one token: {normal:.1f} us, no_grad {no_grad:.1f} us, inference_mode {inference:.1f} us; "
            f"the autograd layer costs {no_grad - inference:.1f} us under no_grad, nothing in inference mode"
        )
    assert out.shape == inputs["query"].shape


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_under_vmap(backend):
    inputs = testing.make_inputs(length=5, heads=2, size=8, positive=3, negative=4)
    query = torch.stack([inputs.pop("query"), torch.randn(1, 5, 2, 8)])
    run = lambda x: nag_kernels.fused_guided_attention(x, **inputs, nag_scale=5.0, backend=backend)  # noqa: E731
    torch.testing.assert_close(torch.vmap(run)(query), torch.stack([run(x) for x in query]))
