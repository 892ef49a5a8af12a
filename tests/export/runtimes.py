# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Exported programs, run out of torch: converted once, called as often as one likes, with the inputs of the program."""

from collections import Counter

import onnxruntime
import openvino
import torch
from torch.utils._pytree import tree_leaves

from nag_kernels.export import onnx_program, openvino_model


def _arrays(inputs):
    """In the order of the program's inputs, without what is None."""
    return [x.numpy() for x in tree_leaves(inputs) if isinstance(x, torch.Tensor)]


class OpenVINO:
    def __init__(self, program):
        model = openvino_model(program)
        self.operators = Counter(x.get_type_name() for x in model.get_ops())
        self.inputs = [x.any_name for x in model.inputs]
        self.compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def __call__(self, *inputs):
        return [torch.tensor(x) for x in self.compiled(_arrays(inputs)).values()]


class ONNXRuntime:
    def __init__(self, program, **options):
        """options: of torch.onnx.export."""
        exported = onnx_program(program, verbose=False, **options)
        self.operators = Counter(x.op_type for x in exported.model.graph)
        self.session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString())
        self.inputs = [x.name for x in self.session.get_inputs()]

    def __call__(self, *inputs):
        return [torch.tensor(x) for x in self.session.run(None, dict(zip(self.inputs, _arrays(inputs), strict=True)))]
