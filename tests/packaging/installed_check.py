# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Run by the Python of an environment into which nag_kernels was installed: the short list of what must work there. Writes
what was found as JSON, or fails. No GPU is needed; with a CUDA build of torch the CUDA library must load all the same."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import sys

os.environ["NAG_BACKEND"] = "gpu"  # so that the GPU kernels are registered; tensors on the CPU are served as ever
import torch

import nag_kernels
from nag_kernels import availability, info, testing

text = info.report()
print(text, file=sys.stderr)

for backend, dtype in (("cpu", torch.float32), ("cpu", torch.bfloat16), ("sdpa", torch.float32)):
    if availability.refusal(backend, "cpu") is None:
        for settings in ({"length": 70, "shared": 9, "masks": True}, {"length": 33}):
            inputs = testing.make_inputs(dtype=dtype, **settings)
            out = nag_kernels.fused_guided_attention(**inputs, nag_scale=5.0, backend=backend)
            testing.assert_within_baseline(out, inputs, 5.0, 2.5, 0.25)
out = nag_kernels.guidance(*torch.randn(2, 3, 64), nag_scale=5.0)
assert out.isfinite().all()

cuda = availability.refusal("cuda", "cuda")
if torch.version.cuda and cuda is None:
    for operation in ("nag::fused_guided_attention", "nag_cuda::fused_guided_attention", "nag_cuda::guidance"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(operation, "CUDA"), operation

if importlib.util.find_spec("diffusers") and importlib.util.find_spec("transformers"):
    from nag_kernels.diffusers import guide
    from nag_kernels.shapes.pipeline import load

    pipe = load()
    pipe.set_progress_bar_config(disable=True)

    def draw():
        generator = torch.Generator().manual_seed(0)
        return pipe("a large circle", num_inference_steps=1, generator=generator, output_type="pt").images[0]

    plain = draw()
    with guide(pipe, "red", nag_scale=5.0):
        steered = draw()
    assert (steered - plain).abs().max() > 0.01
    assert torch.equal(draw(), plain)


def version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def state(reason: str | None) -> str:
    return "loaded" if reason is None else "not built" if "not built" in reason else reason


print(
    json.dumps(
        {
            "torch": torch.__version__,
            "CUDA of torch": torch.version.cuda or "none",
            "Python": platform.python_version(),
            **{name: version(name) for name in ("triton", "diffusers", "transformers")},
            "cpu": state(availability.refusal("cpu", "cpu")),
            "cuda": state(cuda),
        }
    )
)
