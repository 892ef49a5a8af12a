# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Out of torch: the operations as torch's own attention and arithmetic, which ONNX, OpenVINO and others have rules for.

torch.export and AOTInductor keep an operation as it is, and a kernel of this package serves it. What runs without torch knows
no such operation, so `decompose` writes its formula into the exported program. `torch.onnx.export` does that by itself, as torch
lets a package register a decomposition for it; OpenVINO's converter looks at no such table.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, _decomp
from torch._ops import OperatorBase
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from . import reference, sdpa
from ._ops import fake_output
from .checks import Attention

Decompositions = dict[OperatorBase, Callable[..., Any]]


def decompositions() -> Decompositions:
    """A formula for each overload of each operation, for `torch.export.ExportedProgram.run_decompositions`.

    Attention stays whole, as torch's scaled_dot_product_attention, unless the table that these are put into takes that apart:

        table = torch.export.default_decompositions()
        table.update(decompositions())

    Of a program that `run_decompositions(table)` gives then nothing is left but core ATen.
    """
    return _table(fused_guided_attention)


def decompose(program: ExportedProgram) -> ExportedProgram:
    """The program with each operation of this package as torch's own; all else in it stays.

    Attention stays whole, so a runtime that has an attention of its own, as OpenVINO, holds no logits.

    Args:
        program: of `torch.export.export`; one without the operations is taken too.

    Raises: TypeError for anything else.
    """
    if not isinstance(program, ExportedProgram):
        raise TypeError(
            f"decompose: program must be an ExportedProgram, got {type(program).__name__}; write decompose("
            "torch.export.export(model, arguments))"
        )
    return program.run_decompositions(decompositions())


def openvino_model(program: ExportedProgram) -> Any:
    """The program as an `openvino.Model`, whose inputs have the names that they have in the program.

    Its attention is OpenVINO's own (ScaledDotProductAttention). On processors that are fast at bfloat16 OpenVINO computes in it,
    whatever the model's dtype; `openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})` ends that.

    Args:
        program: of `torch.export.export`.

    Raises: TypeError for anything else, ImportError without openvino, and what OpenVINO raises for operations of the model itself
        that it has no rule for.
    """
    whole = decompose(program)
    try:
        import openvino
    except ImportError as error:
        raise ImportError("openvino_model needs OpenVINO: pip install openvino") from error
    model = openvino.convert_model(whole)
    _name_inputs(model, whole)
    return model


def _name_inputs(model: Any, program: ExportedProgram) -> None:
    """OpenVINO gives inputs the names of forward's parameters one after another, and one parameter may hold several tensors."""
    inputs = [x.arg for x in program.graph_signature.input_specs if x.kind is InputKind.USER_INPUT]
    parameters = list(model.get_parameters())
    if len(parameters) < len(inputs):  # it has left out what is None
        inputs = [x for x in inputs if getattr(x, "value", 0) is not None]
    for parameter, argument in zip(parameters, inputs, strict=True):
        if isinstance(argument, ConstantArgument):  # a number that is written into the program
            model.remove_parameter(parameter)
        else:
            parameter.get_output_tensor(0).set_names({argument.name})


def fused_guided_attention(*arguments: Any, whole_masks: bool = False, **named: Any) -> Tensor:
    """torch.ops.nag.fused_guided_attention, of its arguments.

    whole_masks: as in `sdpa.attention`.
    """
    call = _with_a_key_head_for_each_query_head(Attention(*arguments, **named))
    outputs = [x.flatten(2) for x in sdpa.branches(call, whole_masks)]
    if call.rule == "vsf":
        return outputs[0].view(call.query.shape).contiguous()
    settings = (call.nag_scale, call.nag_tau, call.nag_alpha)
    return reference.guidance(outputs[0], outputs[1], *settings, call.rule).view(call.query.shape)


def _with_a_key_head_for_each_query_head(call: Attention) -> Attention:
    """Grouped queries are torch's: OpenVINO's converter drops the argument that says so."""
    repeats = call.query.shape[2] // call.key_positive.shape[2]
    if repeats == 1:
        return call
    names = [f"{kind}_{part}" for kind in ("key", "value") for part in ("positive", "negative", "shared")]
    there = {name: x for name in names if (x := getattr(call, name)) is not None}
    return call._replace(**{name: x.repeat_interleave(repeats, 2) for name, x in there.items()})


def _for_onnx(op: str, formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The formula where a program is written down. Fake tensors of free lengths ask the same table what an operation gives, and
    are told that by its own fake kernel."""

    def run(*arguments: Any, **named: Any) -> Tensor:
        return fake_output(op, *arguments, **named) if get_proxy_mode() is None else formula(*arguments, **named)

    return run


def _table(attention: Callable[..., Tensor]) -> Decompositions:
    formulas = {"fused_guided_attention": attention, "guidance": reference.guidance}
    return {
        getattr(getattr(torch.ops.nag, name), overload): formula
        for name, formula in formulas.items()
        for overload in ("default", "tensor")
    }


def register_with_onnx() -> None:
    """From now on torch.onnx.export takes a model with the operations: its table begins with torch's, into which these go."""
    # With masks as onnxruntime's Attention (opset 23) takes them.
    table = _table(functools.partial(fused_guided_attention, whole_masks=True))
    _decomp.decomposition_table.update({call: _for_onnx(_name(call), formula) for call, formula in table.items()})


def _name(call: Any) -> str:
    return call._schema.name.removeprefix("nag::")
