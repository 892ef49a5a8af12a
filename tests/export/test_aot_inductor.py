# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""AOTInductor: a package that runs in a process without Python keeps the operation, and a kernel of ours serves it."""

import pytest
import torch
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from nag_kernels import availability, fused_guided_attention, guidance

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")


def compiler_is_here():
    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False


def packaged(model, inputs, folder):
    program = torch.export.export(model, inputs, strict=False)
    fast = {"aot_inductor.compile_wrapper_opt_level": "O0"}
    path = aoti_compile_and_package(program, package_path=str(folder / "model.pt2"), inductor_configs=fast)
    return program, aoti_load_package(path)


def error(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


class Layer(torch.nn.Module):
    """Guided cross-attention, with settings as numbers and then as tensors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.to_q, self.to_k, self.to_v, self.to_out = (torch.nn.Linear(32, 32) for _ in range(4))

    def forward(self, image, positive, negative, nag_scale):
        def heads(x):
            return x.unflatten(-1, (2, 16))

        texts = [heads(layer(text)) for text in (positive, negative) for layer in (self.to_k, self.to_v)]
        out = fused_guided_attention(heads(self.to_q(image)), *texts, 5.0)
        out = fused_guided_attention(out, *texts, nag_scale).flatten(2)
        return guidance(self.to_out(out), out, nag_scale)


class Both(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, *call):
        return [layer(*call) for layer in self.layers]


@pytest.mark.skipif(not compiler_is_here(), reason="no C++ compiler for AOTInductor")
@pytest.mark.slow
def test_a_package_runs_the_operations(tmp_path):
    """With settings as numbers and as inputs, and after torchao's int8."""
    quantization = pytest.importorskip("torchao.quantization")
    layers = torch.nn.ModuleList([Layer(), Layer()])
    quantization.quantize_(layers[1], quantization.Int8WeightOnlyConfig())
    model = Both(layers)
    image, positive, negative = torch.randn(2, 9, 32), torch.randn(2, 7, 32), torch.randn(2, 5, 32)
    program, package = packaged(model, (image, positive, negative, torch.tensor([1.0, 5.0])), tmp_path)
    operations = [str(x.target) for x in program.graph.nodes if x.op == "call_function" and "nag." in str(x.target)]
    assert operations == 2 * [
        "nag.fused_guided_attention.default", "nag.fused_guided_attention.tensor", "nag.guidance.tensor"
    ]  # fmt: skip
    for scale in ([1.0, 5.0], [3.0, 1.0]):
        call = (image, positive, negative, torch.tensor(scale))
        before = availability.counts()
        got = package(*call)
        assert sum(availability.counts().values()) - sum(before.values()) == len(operations)
        for x, wanted in zip(got, model(*call), strict=True):
            assert error(x, wanted) < 1e-6
