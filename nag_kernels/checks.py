# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The one validator of the operations in Python: the public functions, the fake kernels and the fallback call it.

`csrc/checks.h` repeats it for calls that meet no Python; tests/ops/bad_inputs.py feeds one table through both.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

RULES = ("nag", "nasa", "vsf")
FLOAT32_MAX = torch.finfo(torch.float32).max
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Attention(NamedTuple):
    """The arguments of `fused_guided_attention` in the order of its schema, for what hands them on; see there for the shapes."""

    query: Tensor
    key_positive: Tensor
    value_positive: Tensor
    key_negative: Tensor
    value_negative: Tensor
    nag_scale: float | Tensor
    nag_tau: float | Tensor
    nag_alpha: float | Tensor
    key_shared: Tensor | None = None
    value_shared: Tensor | None = None
    mask_positive: Tensor | None = None
    mask_negative: Tensor | None = None
    mask_shared: Tensor | None = None
    softmax_scale: float | None = None
    negative_logit_bias: float = 0.0
    rule: str = "nag"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return "(" + ", ".join(str(n) for n in tensor.shape) + ")"


def _refuse(op: str, message: str, error: type[Exception] = ValueError) -> NoReturn:
    raise error(f"nag::{op}: {message}")


def _check_tensor(op: str, name: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        _refuse(op, f"{name} must be a tensor, got {type(x).__name__}", TypeError)


def _check_dtype(op: str, name: str, x: Tensor) -> None:
    if x.dtype not in DTYPES:
        _refuse(op, f"{name} must be float32, float16, bfloat16 or float64, got {_dtype_name(x.dtype)}", TypeError)


def _check_like(op: str, name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    if x.dtype != like.dtype:
        _refuse(op, f"{name} must be {_dtype_name(like.dtype)} like {like_name}, got {_dtype_name(x.dtype)}", TypeError)
    if x.device != like.device:
        _refuse(op, f"{name} must be on {like.device} like {like_name}, got {x.device}")


def _check_4d(op: str, name: str, x: Any) -> None:
    _check_tensor(op, name, x)
    if x.ndim != 4:
        _refuse(op, f"{name} must be 4-D (batch, length, heads, head size), got shape {_shape(x)}")


def _layout_hint(query: Tensor, key: Tensor) -> str:
    """Where tensors of the other layout are likely: their number of heads lies where the length should, equal in both."""
    if query.shape[1] != key.shape[1]:
        return ""
    return "; if these are (batch, heads, length, head size), call x.transpose(1, 2) on each"


def check_rule(where: str, rule: str) -> None:
    if rule not in RULES:
        raise ValueError(f"{where}: rule must be 'nag', 'nasa' or 'vsf', got '{rule}'")


def _check_number(where: str, name: str, x: Any) -> None:
    if not isinstance(x, (numbers.Real, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{where}: {name} must be a number, got {type(x).__name__}")


def check_scalars(
    where: str, nag_scale: float | None = None, nag_tau: float | None = None, nag_alpha: float | None = None
) -> None:  # fmt: skip
    """Settings as numbers, each checked unless it is None; `where` begins the message."""
    if nag_scale is not None:
        _check_number(where, "nag_scale", nag_scale)
        if not math.isfinite(nag_scale):
            raise ValueError(f"{where}: nag_scale must be finite, got {nag_scale:g}")
        if abs(nag_scale) > FLOAT32_MAX:
            raise ValueError(f"{where}: nag_scale must be finite in float32, got {nag_scale:g}")
    if nag_tau is not None:
        _check_number(where, "nag_tau", nag_tau)
        if not nag_tau > 0:
            raise ValueError(f"{where}: nag_tau must be above 0 (inf is no clip), got {nag_tau:g}")
        if FLOAT32_MAX < nag_tau < math.inf:
            raise ValueError(f"{where}: nag_tau must be finite in float32, or inf (no clip), got {nag_tau:g}")
    if nag_alpha is not None:
        _check_number(where, "nag_alpha", nag_alpha)
        if not 0 <= nag_alpha <= 1:
            raise ValueError(f"{where}: nag_alpha must be between 0 and 1, got {nag_alpha:g}")


def _check_settings(
    op: str, nag_scale: Any, nag_tau: Any, nag_alpha: Any, rule: str, like_name: str, like: Tensor
) -> None:  # fmt: skip
    check_rule(f"nag::{op}", rule)
    if op == "guidance" and rule == "vsf":
        _refuse(op, "rule 'vsf' needs how much of one softmax each text takes, which two attention outputs do not hold; "
                    "use fused_guided_attention")  # fmt: skip
    settings = (("nag_scale", nag_scale), ("nag_tau", nag_tau), ("nag_alpha", nag_alpha))
    if isinstance(nag_scale, Tensor):  # the values are not read: that would wait for the device
        samples = like.shape[0] if like.ndim > 1 else 1
        for name, x in settings:
            _check_tensor(op, name, x)
            if x.dtype != torch.float32:
                _refuse(op, f"{name} must be float32, got {_dtype_name(x.dtype)}", TypeError)
            if x.device != like.device:
                _refuse(op, f"{name} must be on {like.device} like {like_name}, got {x.device}")
            if x.ndim != 0 and (x.ndim != 1 or x.shape[0] != samples):
                _refuse(op, f"{name} must have shape () or ({samples},), got {_shape(x)}")
        return
    check_scalars(f"nag::{op}", nag_scale, nag_tau, nag_alpha)


def check_guidance(
    positive: Any, negative: Any, nag_scale: Any, nag_tau: Any, nag_alpha: Any, rule: str = "nag"
) -> None:  # fmt: skip
    """Of whatever was given for the arguments of `guidance`."""
    op = "guidance"
    _check_tensor(op, "positive", positive)
    _check_tensor(op, "negative", negative)
    _check_dtype(op, "positive", positive)
    if positive.ndim < 1:
        _refuse(op, "positive must have at least 1 dimension (all heads of a token), got shape ()")
    _check_like(op, "negative", negative, "positive", positive)
    if negative.shape != positive.shape:
        _refuse(op, f"negative must have shape {_shape(positive)} like positive, got {_shape(negative)}")
    _check_settings(op, nag_scale, nag_tau, nag_alpha, rule, "positive", positive)


def check_fused_guided_attention(*arguments: Any, **named: Any) -> None:
    """Of whatever was given for the fields of `Attention`."""
    op = "fused_guided_attention"
    call = Attention(*arguments, **named)
    query, key_positive, key_shared, value_shared = call.query, call.key_positive, call.key_shared, call.value_shared
    _check_4d(op, "query", query)
    _check_dtype(op, "query", query)
    batch, _, heads, size = query.shape
    if size < 1:
        _refuse(op, f"query must have a head size of at least 1, got {size}")
    if (key_shared is None) != (value_shared is None):
        given = "value_shared" if key_shared is None else "key_shared"
        _refuse(op, f"key_shared and value_shared must be given together, got only {given}")
    _check_4d(op, "key_positive", key_positive)
    kv_heads = key_positive.shape[2]
    if kv_heads < 1 or heads % kv_heads != 0:
        hint = _layout_hint(query, key_positive)
        _refuse(op, f"key_positive must have a number of heads that divides query's {heads}, got {kv_heads}{hint}")
    for part in ("positive", "negative", "shared"):
        key, value, mask = (getattr(call, f"{kind}_{part}") for kind in ("key", "value", "mask"))
        if key is not None:
            for name, x in ((f"key_{part}", key), (f"value_{part}", value)):
                _check_4d(op, name, x)
                _check_like(op, name, x, "query", query)
                if x.shape[3] != size:
                    _refuse(op, f"{name} must have head size {size} like query, got {x.shape[3]}")
                if x.shape[2] != kv_heads:
                    hint = _layout_hint(query, x)
                    _refuse(op, f"{name} must have {kv_heads} heads like key_positive, got {x.shape[2]}{hint}")
                if x.shape[0] != batch and part != "negative":
                    _refuse(op, f"{name} must have batch {batch} like query, got {x.shape[0]}")
                if x.shape[0] != batch and x.shape[0] != 1:
                    _refuse(op, f"{name} must have batch {batch} or 1, got {x.shape[0]}")
            if value.shape != key.shape:
                _refuse(op, f"value_{part} must have shape {_shape(key)} like key_{part}, got {_shape(value)}")
        if mask is not None:
            name = f"mask_{part}"
            if key is None:
                _refuse(op, f"{name} must come with key_{part}, got None for that")
            _check_tensor(op, name, mask)
            if mask.dtype != torch.bool:
                _refuse(op, f"{name} must be bool (False = not seen), got {_dtype_name(mask.dtype)}", TypeError)
            if mask.device != query.device:
                _refuse(op, f"{name} must be on {query.device} like query, got {mask.device}")
            if mask.ndim != 2 or (mask.shape[0] != batch and mask.shape[0] != 1) or mask.shape[1] != key.shape[1]:
                _refuse(op, f"{name} must have shape ({batch} or 1, {key.shape[1]}), got {_shape(mask)}")
    softmax_scale, negative_logit_bias, rule = call.softmax_scale, call.negative_logit_bias, call.rule
    if softmax_scale is not None:
        _check_number(f"nag::{op}", "softmax_scale", softmax_scale)
        if not math.isfinite(softmax_scale):
            _refuse(op, f"softmax_scale must be finite, got {softmax_scale:g}")
    _check_number(f"nag::{op}", "negative_logit_bias", negative_logit_bias)
    if not math.isfinite(negative_logit_bias):
        _refuse(op, f"negative_logit_bias must be finite, got {negative_logit_bias:g}")
    if key_shared is None and negative_logit_bias != 0 and rule != "vsf":
        _refuse(op, f"negative_logit_bias must be 0 without key_shared (it would cancel), got {negative_logit_bias:g}")
    _check_settings(op, call.nag_scale, call.nag_tau, call.nag_alpha, rule, "query", query)


CHECKS: dict[str, Callable[..., None]] = {
    "fused_guided_attention": check_fused_guided_attention,
    "guidance": check_guidance,
}
