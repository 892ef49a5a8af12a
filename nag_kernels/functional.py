# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The public functions: documented front doors of `torch.ops.nag`, with keyword arguments and defaults."""

import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _ops, availability, backends, checks, gpu
from .gpu import call_of, explain
from .namespace import operations


def _settings(op: str, like: Tensor, *values: float | Tensor) -> tuple[float | Tensor, ...]:
    """All three as numbers, or, where any is a tensor, all three as tensors (by a fill, never by a transfer)."""
    if not any(isinstance(x, Tensor) for x in values):
        return values
    checks.check_scalars(f"nag::{op}", *(None if isinstance(x, Tensor) else x for x in values))
    device = getattr(like, "device", None)
    return tuple(x if isinstance(x, Tensor) else torch.full((), x, dtype=torch.float32, device=device) for x in values)


def _call(op: str, backend: str | None, operation: Any, arguments: tuple[Any, ...], tensors: bool) -> Tensor:
    forced = backend or availability.FORCED
    if forced is not None:
        chosen = backends.choose(op, _ops.device_type(arguments), forced)
        if chosen in _ops.PLAIN:
            return _ops.force_plain(chosen, op, *arguments)
        if backend in ("cuda", "triton"):
            if torch.compiler.is_compiling():
                raise ValueError(f"nag::{op}: backend={backend!r} by name is chosen call by call and cannot be compiled; "
                                 f"NAG_BACKEND={backend} before the import chooses for the process")  # fmt: skip
            with gpu.only(backend):
                return _call(op, None, operation, arguments, tensors)
    run: Callable[..., Tensor] = operation.tensor if tensors else operation.default
    try:  # the kernel checks its input (and autocast acts before that): a second check here would cost more than it
        return run(*arguments)
    except NotImplementedError:
        sharding = f"{__package__}.sharding"
        if sharding in sys.modules or not any(hasattr(x, "device_mesh") for x in arguments):
            raise
        importlib.import_module(sharding)  # the first DTensor
        return run(*arguments)
    except RuntimeError as error:  # all that a kernel can raise, and torch for an argument that is no tensor
        if _ops.BEHIND_FAILED in str(error):
            raise _ops.error_behind() from None
        checks.CHECKS[op](*_ops.autocasted(op, arguments))  # the same words as a ValueError or TypeError
        if "out of memory" in str(error) and not isinstance(error, torch.OutOfMemoryError):
            # The stable ABI keeps the text alone; hosts catch the type.
            raise torch.OutOfMemoryError(str(error)) from None
        raise


def fused_guided_attention(
    query: Tensor, key_positive: Tensor, value_positive: Tensor, key_negative: Tensor, value_negative: Tensor,
    nag_scale: float | Tensor, nag_tau: float | Tensor = 2.5, nag_alpha: float | Tensor = 0.25, *,
    key_shared: Tensor | None = None, value_shared: Tensor | None = None,
    mask_positive: Tensor | None = None, mask_negative: Tensor | None = None, mask_shared: Tensor | None = None,
    softmax_scale: float | None = None, negative_logit_bias: float = 0.0, rule: str = "nag",
    backend: str | None = None,
) -> Tensor:  # fmt: skip
    """Attention to the prompt (text+), steered away from attention to the negative prompt (text-), in one pass.

        Z+  = softmax(Q [Ks | K+]^T * softmax_scale) [Vs | V+]
        Z-  = softmax(Q [Ks | K-]^T * softmax_scale + bias on K-) [Vs | V-]
        G   = nag_scale Z+ - (nag_scale - 1) Z-                            # extrapolate
        f   = min(1, nag_tau |Z+|_1 / |G|_1), and 1 where |G|_1 = 0        # normalise and clip, over all heads of a token
        out = nag_alpha f G + (1 - nag_alpha) Z+                           # blend           (rule "nag")
        out = Z+ - nag_scale Z-                                            #                 (rule "nasa")

    Rule "vsf" has no Z-. It has one softmax over all keys, in which the values of text- are multiplied by -nag_scale:

        out = softmax(Q [Ks | K+ | K-]^T * softmax_scale + bias on K-) [Vs | V+ | -nag_scale V-]
            = ((ls + l+) Z+ - nag_scale l- T-) / (ls + l+ + l-)            # T- attends to text- alone; l are softmax sums

    Sources: NAG, arXiv 2505.21179, section on the method (its phi is `nag_scale - 1`); NASA, arXiv 2412.02687 (SNOOPI);
    VSF (Value Sign Flip), arXiv 2508.10931.

    Args:
        query: [B, S, H, D], float32, float16, bfloat16 or float64. Any strides. If the last stride is 1, it is not copied.
        key_positive, value_positive: [B, Tp, Hkv, D], query's dtype and device; H is a multiple of Hkv.
        key_negative, value_negative: [B or 1, Tn, Hkv, D]. A batch of 1 serves every sample.
        nag_scale: how far to extrapolate. For "nag" 1 does nothing, for "nasa" 0 does nothing. For "vsf" no value leaves
            text- out; hide it with mask_negative. A float, or a float32 tensor [] or [B] on query's device. Tensors may change
            without recompiling a compiled caller or recapturing a graph; their values are not checked. If you call
            `torch.ops.nag` yourself, call the overload `.tensor` for tensors: the default overload reads a tensor of one number
            as a float, without a gradient.
        nag_tau: the clip, above 0; inf is no clip. A float or a tensor, like nag_scale. Used by "nag" alone.
        nag_alpha: the share of the guided output, 0 to 1. A float or a tensor, like nag_scale. Used by "nag" alone.
        key_shared, value_shared: [B, Ts, Hkv, D], seen by both branches (the image tokens of joint attention).
        mask_positive, mask_negative, mask_shared: bool [B or 1, T]. A key that is False is not seen. If a branch sees no key,
            its output is zero.
        softmax_scale: None is 1/sqrt(D).
        negative_logit_bias: a number added to the logits of key_negative. log r weighs text- like r copies of it. For rules
            other than "vsf" it needs key_shared.
        rule: "nag", "nasa" or "vsf".
        backend: None takes the fastest backend that can run here. A name of `available_backends()` forces that backend. "cuda"
            and "triton" cannot be forced under torch.compile, where NAG_BACKEND chooses.

    Returns: [B, S, H, D], contiguous, query's dtype. Softmax, norms and blend are computed in float32 (float64 for float64).
        The result is differentiable in every tensor except the masks. The gradient recomputes the attention from the inputs,
        block by block, in memory that is linear in the lengths (gradient.py). Second derivatives and forward mode hold all
        logits.
    Raises: TypeError (a tensor or dtype of the wrong kind) or ValueError (shape, device, value, backend). The message names the
        argument, what it got and what it needs.
    """
    scale, tau, alpha = _settings("fused_guided_attention", query, nag_scale, nag_tau, nag_alpha)
    arguments = (query, key_positive, value_positive, key_negative, value_negative, scale, tau, alpha,
                 key_shared, value_shared, mask_positive, mask_negative, mask_shared,
                 softmax_scale, negative_logit_bias, rule)  # fmt: skip
    operation = operations().fused_guided_attention
    return _call("fused_guided_attention", backend, operation, arguments, isinstance(scale, Tensor))


def guidance(
    positive: Tensor, negative: Tensor, nag_scale: float | Tensor, nag_tau: float | Tensor = 2.5,
    nag_alpha: float | Tensor = 0.25, *, rule: str = "nag", backend: str | None = None,
) -> Tensor:  # fmt: skip
    """One attention output steered away from another: `fused_guided_attention` without its two attentions.

        G   = nag_scale Z+ - (nag_scale - 1) Z-
        f   = min(1, nag_tau |Z+|_1 / |G|_1), and 1 where |G|_1 = 0
        out = nag_alpha f G + (1 - nag_alpha) Z+           (rule "nag")
        out = Z+ - nag_scale Z-                            (rule "nasa")

    Sources: NAG, arXiv 2505.21179, section on the method (its phi is `nag_scale - 1`); NASA, arXiv 2412.02687 (SNOOPI).

    Args:
        positive, negative: Z+ and Z-, [..., C], with all heads of a token in C. Same shape, dtype and device; float32,
            float16, bfloat16 or float64; any strides. The norms run over C, so pass [B, S, H * D], not [B, S, H, D].
        nag_scale, nag_tau, nag_alpha: floats, or float32 tensors [] or [B] (B is the first dimension of positive).
        rule: "nag" or "nasa". ("vsf" is no function of Z+ and Z-.)
        backend: None takes the fastest backend that can run here.

    Returns: [..., C], contiguous, positive's dtype. Computed in float32 (float64 for float64). Differentiable.
    Raises: TypeError or ValueError. The message names the argument, what it got and what it needs.
    """
    scale, tau, alpha = _settings("guidance", positive, nag_scale, nag_tau, nag_alpha)
    arguments = (positive, negative, scale, tau, alpha, rule)
    return _call("guidance", backend, operations().guidance, arguments, isinstance(scale, Tensor))


def warmup(
    *layers: dict[str, Any], device: str | torch.device = "cuda", dtype: torch.dtype = torch.bfloat16
) -> list[str]:
    """Compiles and loads what layers of these shapes need, ahead of their first call. It tunes nothing.

    Args:
        layers: a dict for each layer, with length, heads, size, positive and negative, and optionally batch, kv_heads, shared,
            masks (True: every key set has a mask) and rule. The settings are passed as tensors, as the processors pass them.
        device, dtype: those of the layers' tensors.
    Returns: a line for each layer, which says which plan serves it.
    """
    said = []
    for layer in layers:
        layer = {"batch": 1, "kv_heads": layer["heads"], "shared": 0, "masks": False, "rule": "nag"} | layer
        batch, heads, size = layer["batch"], layer["heads"], layer["size"]
        query = torch.zeros(batch, layer["length"], heads, size, dtype=dtype, device=device)
        inputs: dict[str, Any] = {"query": query}
        for part in ("positive", "negative", "shared"):
            if part != "shared" or layer["shared"]:
                key = query.new_zeros(batch, layer[part], layer["kv_heads"], size)
                inputs |= {f"key_{part}": key, f"value_{part}": key.clone()}
                if layer["masks"]:
                    inputs[f"mask_{part}"] = torch.ones(batch, layer[part], dtype=torch.bool, device=device)
        settings = [torch.full((), x, device=device) for x in (2.0, 2.5, 0.25)]
        fused_guided_attention(
            **inputs, nag_scale=settings[0], nag_tau=settings[1], nag_alpha=settings[2], rule=layer["rule"]
        )
        call = call_of(query, inputs["key_positive"], inputs["key_negative"], inputs.get("key_shared"),
                       inputs.get("mask_shared"), layer["rule"])  # fmt: skip
        served = explain(call, device=query.device).splitlines()[0] if query.is_cuda else f"{device}: no GPU kernel"
        said.append(
            f"{layer['length']} x {heads} x {size}, texts {layer['positive']} and {layer['negative']}: {served}"
        )
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return said
