# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The ways to compute one guided attention that the benchmarks time, and those that bound it from below.

A provider takes the inputs of the operation and returns [B, S, H, D]; `PROVIDERS` holds functions that set one up.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.workloads import Workload
from nag_kernels import availability, gpu, reference, sdpa, testing

SETTINGS = (5.0, 2.5, 0.25)
Run = Callable[[dict], Tensor]


@dataclass(frozen=True)
class Provider:
    """set_up: (device) to the function; RuntimeError where it cannot run there. says: one line for `--help`.

    guided: whether it computes guided attention; the others are bounds. usual: whether it is timed unless others are named.
    shared: whether it needs shared keys.
    """

    set_up: Callable[[str], Run]
    says: str
    guided: bool = True
    usual: bool = True
    shared: bool = False

    def takes(self, workload: Workload) -> bool:
        return workload.shared > 0 or not self.shared


def _joined(inputs: dict, part: str) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of one branch [B, H, S, D], image keys first."""
    names = [name for name in ("shared", part) if f"key_{name}" in inputs]
    pair = (testing.whole([inputs[f"{kind}_{name}"] for name in names]) for kind in ("key", "value"))
    return tuple(x.transpose(1, 2) for x in (inputs["query"], *pair))


def _unguided(device: str) -> Run:
    return lambda inputs: F.scaled_dot_product_attention(*_joined(inputs, "positive")).transpose(1, 2)


def _cfg(device: str) -> Run:
    attend = F.scaled_dot_product_attention

    def run(inputs: dict) -> Tensor:
        out = [attend(*_joined(inputs, part)) for part in ("positive", "negative")]
        return out[0].transpose(1, 2)

    return run


def _eager(device: str) -> Run:
    return lambda inputs: testing.eager(inputs, *SETTINGS)


def _compiled(device: str) -> Run:
    formula = torch.compile(testing.eager_guidance, dynamic=True)  # one graph for all shapes of a dtype
    return lambda inputs: formula(*testing.eager_branches(inputs), *SETTINGS).view(inputs["query"].shape)


def _merged(shared: Tensor, shared_sum: Tensor, text: Tensor, text_sum: Tensor) -> Tensor:
    """[B, S, H D] of two attentions [B, H, S, D] with their logarithmic sums [B, H, S]."""
    weight = torch.sigmoid(text_sum - shared_sum)[..., None]
    return torch.lerp(shared.float(), text.float(), weight).transpose(1, 2).flatten(2)


def _merge_and_guide(shared, shared_sum, positive, positive_sum, negative, negative_sum, scale, tau, alpha):
    branches = (_merged(shared, shared_sum, x, y) for x, y in ((positive, positive_sum), (negative, negative_sum)))
    return testing.eager_guidance(*branches, scale, tau, alpha).to(shared.dtype)


def _composed(device: str) -> Run:
    if torch.device(device).type == "cpu":
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    else:
        attend = torch.ops.aten._scaled_dot_product_flash_attention
    formula = torch.compile(_merge_and_guide, dynamic=True)

    def run(inputs: dict) -> Tensor:
        query = inputs["query"].transpose(1, 2)
        parts = []
        for name in ("shared", "positive", "negative"):
            found = attend(query, *(inputs[f"{kind}_{name}"].transpose(1, 2) for kind in ("key", "value")))
            parts += found[:2]
        return formula(*parts, *SETTINGS).view(inputs["query"].shape)

    return run


def _flex(device: str) -> Run:
    from torch._dynamo import config
    from torch.nn.attention.flex_attention import flex_attention

    # A graph for each shape, as it is fastest; past the limit Dynamo would quietly run it uncompiled.
    config.recompile_limit, config.fail_on_recompile_limit_hit = 64, True
    attend = torch.compile(flex_attention, dynamic=False)
    formula = torch.compile(testing.eager_guidance, dynamic=True)

    def run(inputs: dict) -> Tensor:
        branches = [attend(*_joined(inputs, part)).transpose(1, 2).flatten(2) for part in ("positive", "negative")]
        return formula(*branches, *SETTINGS).view(inputs["query"].shape)

    return run


def _reference(device: str) -> Run:
    return lambda inputs: reference.fused_guided_attention(**testing.with_settings(inputs, SETTINGS))


def _sdpa(device: str) -> Run:
    return lambda inputs: sdpa.fused_guided_attention(**testing.with_settings(inputs, SETTINGS))


def served(device: str) -> tuple[str, str]:
    """The kernels that are there for the operation on `device`, and why they do not take it, "" where they do."""
    kind = torch.device(device).type
    if kind == "cpu":
        return "cpu", availability.refusal("cpu", kind) or ""
    here = gpu.turned_on()
    return " and ".join(here) or "triton", "" if here else availability.refusal("triton", kind) or ""


def _ours(device: str) -> Run:
    backend, refusal = served(device)
    if refusal:
        raise RuntimeError(f"{backend}: {refusal}")
    op = torch.ops.nag.fused_guided_attention
    scale, tau, alpha = SETTINGS
    return lambda inputs: op(**inputs, nag_scale=scale, nag_tau=tau, nag_alpha=alpha)


PROVIDERS = {
    "unguided": Provider(_unguided, "one attention to the prompt: what a model pays without a negative", guided=False),
    "cfg": Provider(_cfg, "two attentions and no formula: what classifier-free guidance pays in this layer", guided=False),
    "eager": Provider(_eager, "two calls of scaled_dot_product_attention and the formula in eager mode, as published"),
    "compiled": Provider(_compiled, "the same with the formula through torch.compile"),
    "composed": Provider(
        _composed, "torch's attention to image, text+ and text- once each, merged by logsumexp in a compiled formula",
        shared=True,
    ),
    "flex": Provider(_flex, "FlexAttention twice, compiled for each shape, and the compiled formula", usual=False),
    "sdpa": Provider(_sdpa, "nag_kernels.sdpa: what serves where no kernel of ours does", usual=False),
    "reference": Provider(_reference, "nag_kernels.reference, plain PyTorch", usual=False),
    "ours": Provider(_ours, "torch.ops.nag.fused_guided_attention through its backend for the device"),
}  # fmt: skip


def verify(name: str, run: Run, inputs: dict) -> None:
    """Raises RuntimeError where a guided provider's relative error against float64 is not that of its dtype."""
    exact = testing.truth(inputs, *SETTINGS)
    found = testing.error(run(inputs), exact)
    if name == "ours":
        allowed = testing.limit(inputs, exact, SETTINGS, "nag")
    else:  # the others round the branches before the blend, whose extrapolation multiplies that error by up to 9
        allowed = 10 * torch.finfo(inputs["query"].dtype).eps
    if not found <= allowed:
        raise RuntimeError(f"{name} is wrong and not timed: error {found:.3g} against float64, allowed {allowed:.3g}")
