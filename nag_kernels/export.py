# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Export: the operations as torch's own attention and arithmetic, for which ONNX, OpenVINO and others have rules.

torch.export and AOTInductor keep an operation as it is, and a kernel of this package serves it. A runtime without torch does not
know the operation, so its formula is written into the exported program. A user asks for that by calling a function of this file.
It cannot happen by itself: torch has one global table of decompositions, which fake tensors and DTensor use as well, and these
need the operation's own rules.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OperatorBase
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from . import reference, sdpa
from .checks import Attention
from .namespace import operations

Decompositions = dict[OperatorBase, Callable[..., Any]]


def decompositions() -> Decompositions:
    """A formula for each overload of each operation, for `torch.export.ExportedProgram.run_decompositions`.

    Attention stays whole, as torch's scaled_dot_product_attention. To decompose it as well, put these formulas into a table that
    does so:

        table = torch.export.default_decompositions()
        table.update(decompositions())

    A program from `run_decompositions(table)` then has only operations of core ATen.
    """
    return _table(fused_guided_attention)


def decompose(program: ExportedProgram) -> ExportedProgram:
    """The program with each operation of this package replaced by torch's own attention and arithmetic. The rest stays.

    Attention stays whole, so a runtime with an attention of its own, like OpenVINO, holds no logits.

    Args:
        program: what `torch.export.export` returns. It may be a program without the operations.

    Raises: TypeError if program is not an ExportedProgram.
    """
    _check_program("decompose", program)
    return program.run_decompositions(decompositions())


def _check_program(where: str, program: Any) -> None:
    if not isinstance(program, ExportedProgram):
        raise TypeError(
            f"{where}: program must be an ExportedProgram, got {type(program).__name__}; write {where}("
            "torch.export.export(model, arguments))"
        )


def openvino_model(program: ExportedProgram) -> Any:
    """The program as an `openvino.Model`, whose inputs have the names that they have in the program.

    Its attention is OpenVINO's own (ScaledDotProductAttention). On processors that are fast at bfloat16, OpenVINO computes in
    bfloat16, whatever the model's dtype. `openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})` computes in
    float32.

    Args:
        program: what `torch.export.export` returns.

    Raises: TypeError if program is not an ExportedProgram, ImportError without openvino, and what OpenVINO raises if it has no
        rule for an operation of the model itself.
    """
    whole = decompose(program)
    try:
        import openvino
    except ImportError as error:
        raise ImportError("openvino_model needs OpenVINO: pip install openvino") from error
    model = openvino.convert_model(whole)
    _name_inputs(model, whole)
    return model


def onnx_program(program: ExportedProgram, **options: Any) -> Any:
    """The program as a torch.onnx.ONNXProgram. Its method `save` writes a file.

    Args:
        program: what `torch.export.export` returns.
        options: options of `torch.onnx.export`. With opset_version=23 attention stays whole, as the operator Attention.

    Raises: TypeError if program is not an ExportedProgram, ImportError without onnx and onnxscript, and what torch.onnx.export
        raises if it has no rule for an operation of the model itself.
    """
    _check_program("onnx_program", program)
    # With masks as onnxruntime's Attention takes them.
    table = _table(functools.partial(fused_guided_attention, whole_masks=True))
    return torch.onnx.export(program.run_decompositions(table), **options)


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


def _table(attention: Callable[..., Tensor]) -> Decompositions:
    formulas = {"fused_guided_attention": attention, "guidance": reference.guidance}
    return {
        getattr(getattr(operations(), name), overload): formula
        for name, formula in formulas.items()
        for overload in ("default", "tensor")
    }
