# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The operations in an exported program, as torch's own attention and arithmetic, in onnxruntime and in OpenVINO."""

import functools

import pytest
import torch
from torch.export import Dim, default_decompositions, export

pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from runtimes import ONNXRuntime, OpenVINO

import nag_kernels
from nag_kernels.export import decompose, decompositions, onnx_program, openvino_model
from nag_kernels.testing import make_inputs, truth

TOLERANCE = 1e-6  # of float32; the aim of the whole page docs/export.md


def error(got, wanted):
    return ((got.double() - wanted.double()).norm() / wanted.double().norm()).item()


def masked(*hidden, seed=0, **lengths):
    """A call of which nothing is to be seen in the parts that are hidden."""
    inputs = make_inputs(length=9, masks=True, seed=seed, **lengths)
    for part in hidden:
        inputs[f"mask_{part}"][:] = False
        inputs[f"value_{part}"][:] = float("nan")  # does not come through
    return inputs


# What the program is exported with, what it is then called with, and the settings that are written into it.
CASES = {
    "joint": (
        make_inputs(length=9, shared=9, positive=7, negative=12),
        make_inputs(length=9, shared=9, positive=7, negative=12, seed=1),
        {"nag_scale": 5.0, "softmax_scale": 0.3, "negative_logit_bias": 0.7},
    ),
    "masks": (masked(shared=5, kv_heads=2), masked(shared=5, kv_heads=2, seed=1), {"nag_scale": 5.0}),
    "hidden negative": (masked(), masked("negative"), {"nag_scale": 5.0}),
    "hidden prompt": (masked(shared=5), masked("positive", shared=5), {"nag_scale": 5.0}),
    "no negative": (make_inputs(length=9, negative=0), make_inputs(length=9, negative=0, seed=1), {"nag_scale": 5.0}),
    "vsf": (masked(), masked("negative"), {"nag_scale": 2.0, "rule": "vsf", "negative_logit_bias": -0.5}),
}  # fmt: skip
WITH_ATTENTION = ("joint", "masks", "hidden prompt")  # what opset 23 could have in another way
RUNTIMES = {
    "onnxruntime": ONNXRuntime,
    "onnxruntime, opset 23": functools.partial(ONNXRuntime, opset_version=23),
    "OpenVINO": OpenVINO,
}
two_runtimes = pytest.mark.parametrize("runtime", ["onnxruntime", "OpenVINO"])


class Cases(torch.nn.Module):
    def forward(self, calls):
        return [nag_kernels.fused_guided_attention(**call, **CASES[name][2]) for name, call in calls.items()]


@functools.cache
def outputs_of(runtime):
    """The outputs of one program with all cases in it, by the name of the case, and the operators of the model."""
    names = WITH_ATTENTION if "opset" in runtime else tuple(CASES)
    model = RUNTIMES[runtime](export(Cases(), ({name: CASES[name][0] for name in names},)))
    return dict(zip(names, model({name: CASES[name][1] for name in names}), strict=True)), model.operators


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "case"),
    [(x, case) for x in RUNTIMES for case in CASES if "opset" not in x or case in WITH_ATTENTION],
)
def test_a_runtime_agrees_with_float64(case, runtime):
    _, called, settings = CASES[case]
    numbers = {"nag_scale": 0.0, "nag_tau": 2.5, "nag_alpha": 0.25} | settings
    rule = numbers.pop("rule", "nag")
    options = {x: numbers.pop(x) for x in ("softmax_scale", "negative_logit_bias") if x in numbers}
    wanted = truth(called | options, *numbers.values(), rule=rule)
    assert error(outputs_of(runtime)[0][case], wanted) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "operator", "number"),
    # Two in a case, but one for rule "vsf" and where the negative has no tokens.
    [("OpenVINO", "ScaledDotProductAttention", 2 * len(CASES) - 2), ("onnxruntime, opset 23", "Attention", 6)],
)
def test_attention_stays_whole(runtime, operator, number):
    operators = outputs_of(runtime)[1]
    assert operators[operator] == number
    assert "Softmax" not in operators


class Layer(torch.nn.Module):
    def forward(self, call, settings):
        return nag_kernels.fused_guided_attention(**call, **settings)


def changing_call(scale, *, positive, negative):
    inputs = make_inputs(batch=2, length=9, positive=positive, negative=negative)
    return inputs, {"nag_scale": torch.tensor(scale), "nag_tau": torch.tensor(2.0)}


@functools.cache
def changing_program():
    call = changing_call([1.0, 5.0], positive=7, negative=12)
    free = {name: {1: Dim.DYNAMIC} if "_" in name else None for name in call[0]}  # but the query's
    return export(Layer(), call, dynamic_shapes=(free, {"nag_scale": None, "nag_tau": None}))


@pytest.mark.slow
@two_runtimes
def test_settings_and_lengths_may_change(runtime):
    model = RUNTIMES[runtime](changing_program())
    for scale, positive, negative in (([1.0, 5.0], 7, 12), ([9.0, 1.0], 5, 20)):
        inputs, settings = changing_call(scale, positive=positive, negative=negative)
        wanted = truth(inputs, settings["nag_scale"].double(), 2.0, 0.25)
        assert error(model(inputs, settings)[0], wanted) < TOLERANCE


@pytest.mark.slow
@two_runtimes
def test_float16(runtime):
    inputs = make_inputs(length=9, shared=5, masks=True, dtype=torch.float16)
    settings = {"nag_scale": torch.tensor(5.0)}
    got = RUNTIMES[runtime](export(Layer(), (inputs, settings)))(inputs, settings)[0]
    assert got.dtype == torch.float16
    eager = nag_kernels.fused_guided_attention(**inputs, nag_scale=5.0, backend="sdpa")
    wanted = truth(inputs, 5.0, 2.5, 0.25)
    assert error(got, wanted) < 1.5 * error(eager, wanted)


class Guidance(torch.nn.Module):
    def forward(self, positive, negative, scale):
        by_number = nag_kernels.guidance(positive, negative, 5.0)
        return by_number, nag_kernels.guidance(positive, negative, scale, rule="nasa")


@two_runtimes
def test_guidance(runtime):
    positive, negative, scale = torch.randn(2, 9, 32), torch.randn(2, 9, 32), torch.tensor([0.5, 0.0])
    positive[0, 0] = negative[0, 1] = 0  # no norm to divide by
    negative[0, 0] = 0
    calls = (positive, negative, scale)
    got = RUNTIMES[runtime](export(Guidance(), calls))(*calls)
    for x, wanted in zip(got, Guidance()(*calls), strict=True):
        assert error(x, wanted) < TOLERANCE


def test_torch_s_table_of_decompositions_stays_as_it_is():
    """Fake tensors and DTensor look there for what an operation gives."""
    assert not [x for x in torch._decomp.decomposition_table if getattr(x, "namespace", "") == "nag"]


@pytest.mark.parametrize("export", [decompose, onnx_program])
def test_a_model_is_no_program(export):
    with pytest.raises(TypeError, match=rf"{export.__name__}: program must be an ExportedProgram, got Layer; write"):
        export(Layer())


def test_a_program_of_core_aten_alone():
    inputs, settings = make_inputs(length=9, shared=5, masks=True), {"nag_scale": torch.tensor(5.0)}
    table = default_decompositions()
    table.update(decompositions())
    program = export(Layer(), (inputs, settings)).run_decompositions(table)
    assert not {x for x in _targets(program) if not x.startswith("aten.") or "scaled_dot_product" in x}
    assert error(program.module()(inputs, settings), truth(inputs, 5.0, 2.5, 0.25)) < TOLERANCE


def test_decompose_changes_nothing_else():
    class Other(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.silu(torch.nn.functional.linear(x, x))

    program = export(Other(), (torch.randn(3, 3),))
    assert _targets(decompose(program)) == _targets(program) == ["aten.linear.default", "aten.silu.default"]


def _targets(program):
    return [str(x.target) for x in program.graph.nodes if x.op == "call_function"]


def test_openvino_needs_the_decomposition():
    """Why `openvino_model` is there; without it this is what a user reads."""
    import openvino

    program = export(Layer(), (make_inputs(length=9), {"nag_scale": torch.tensor(5.0)}))
    with pytest.raises(Exception, match=r"No conversion rule found for operations: nag\.fused_guided_attention"):
        openvino.convert_model(program)


@pytest.mark.parametrize("function", [decompose, openvino_model])
def test_what_is_not_exported_is_refused(function):
    with pytest.raises(TypeError, match=r"program must be an ExportedProgram, got Layer; write .*torch.export.export"):
        function(Layer())
