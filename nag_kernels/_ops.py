# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The contract of the operations: for each, its schema, its check, its fake, its floor, its gradient, its autocast.

`check_*` is the one Python validator: the front door, the fake and the floor call it. `csrc/checks.h` repeats it for
calls that meet no Python; tests/bad_inputs.py feeds one table through every path.
"""

import contextlib
import functools
import logging
import math
import numbers
import threading
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference, sdpa

RULES = ("nag", "nasa", "vsf")
FLOAT32_MAX = torch.finfo(torch.float32).max
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)

_KEYS = "Tensor query, Tensor key_positive, Tensor value_positive, Tensor key_negative, Tensor value_negative, "
_OPTIONS = (
    "Tensor? key_shared=None, Tensor? value_shared=None, Tensor? mask_positive=None, Tensor? mask_negative=None, "
    "Tensor? mask_shared=None, float? softmax_scale=None, float negative_logit_bias=0.0, str rule='nag'"
)
_FLOATS = "float nag_scale, float nag_tau, float nag_alpha"
_TENSORS = "Tensor nag_scale, Tensor nag_tau, Tensor nag_alpha"
SCHEMAS = {
    "fused_guided_attention": f"({_KEYS}{_FLOATS}, {_OPTIONS}) -> Tensor",
    "fused_guided_attention.tensor": f"({_KEYS}{_TENSORS}, {_OPTIONS}) -> Tensor",
    "guidance": f"(Tensor positive, Tensor negative, {_FLOATS}, str rule='nag') -> Tensor",
    "guidance.tensor": f"(Tensor positive, Tensor negative, {_TENSORS}, str rule='nag') -> Tensor",
}

LOG = logging.getLogger("nag_kernels")
torch_calls: Counter[str] = Counter()  # how often each backend of plain PyTorch ran


# --- checks -----------------------------------------------------------------------------------------------------------


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape(tensor: Tensor) -> str:
    return "(" + ", ".join(str(n) for n in tensor.shape) + ")"


def _refuse(op: str, message: str, error: type[Exception] = ValueError) -> None:
    raise error(f"nag::{op}: {message}")


def _check_tensor(op: str, name: str, x) -> None:
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


def _check_4d(op: str, name: str, x) -> None:
    _check_tensor(op, name, x)
    if x.ndim != 4:
        _refuse(op, f"{name} must be 4-D (batch, length, heads, head size), got shape {_shape(x)}")


def check_rule(where: str, rule: str) -> None:
    if rule not in RULES:
        raise ValueError(f"{where}: rule must be 'nag', 'nasa' or 'vsf', got '{rule}'")


def _check_number(where: str, name: str, x) -> None:
    if not isinstance(x, (numbers.Real, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{where}: {name} must be a number, got {type(x).__name__}")


def check_scalars(where: str, nag_scale=None, nag_tau=None, nag_alpha=None) -> None:
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


def _check_settings(op: str, nag_scale, nag_tau, nag_alpha, rule: str, like_name: str, like: Tensor) -> None:
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


def check_guidance(positive, negative, nag_scale, nag_tau, nag_alpha, rule="nag") -> None:
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


def check_fused_guided_attention(
    query, key_positive, value_positive, key_negative, value_negative, nag_scale, nag_tau, nag_alpha,
    key_shared=None, value_shared=None, mask_positive=None, mask_negative=None, mask_shared=None,
    softmax_scale=None, negative_logit_bias=0.0, rule="nag",
) -> None:  # fmt: skip
    op = "fused_guided_attention"
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
        _refuse(op, f"key_positive must have a number of heads that divides query's {heads}, got {kv_heads}")
    for part, key, value, mask in (
        ("positive", key_positive, value_positive, mask_positive),
        ("negative", key_negative, value_negative, mask_negative),
        ("shared", key_shared, value_shared, mask_shared),
    ):
        if key is not None:
            for name, x in ((f"key_{part}", key), (f"value_{part}", value)):
                _check_4d(op, name, x)
                _check_like(op, name, x, "query", query)
                if x.shape[3] != size:
                    _refuse(op, f"{name} must have head size {size} like query, got {x.shape[3]}")
                if x.shape[2] != kv_heads:
                    _refuse(op, f"{name} must have {kv_heads} heads like key_positive, got {x.shape[2]}")
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
    if softmax_scale is not None:
        _check_number(f"nag::{op}", "softmax_scale", softmax_scale)
        if not math.isfinite(softmax_scale):
            _refuse(op, f"softmax_scale must be finite, got {softmax_scale:g}")
    _check_number(f"nag::{op}", "negative_logit_bias", negative_logit_bias)
    if not math.isfinite(negative_logit_bias):
        _refuse(op, f"negative_logit_bias must be finite, got {negative_logit_bias:g}")
    if key_shared is None and negative_logit_bias != 0 and rule != "vsf":
        _refuse(op, f"negative_logit_bias must be 0 without key_shared (it would cancel), got {negative_logit_bias:g}")
    _check_settings(op, nag_scale, nag_tau, nag_alpha, rule, "query", query)


# --- definition, fake, floor ------------------------------------------------------------------------------------------

CHECKS = {"fused_guided_attention": check_fused_guided_attention, "guidance": check_guidance}
SETTINGS = {"fused_guided_attention": (5, 6, 7), "guidance": (2, 3, 4)}  # positions among the arguments
REFERENCE = {"fused_guided_attention": reference.fused_guided_attention, "guidance": reference.guidance}
PLAIN = {"reference": REFERENCE, "sdpa": {"fused_guided_attention": sdpa.fused_guided_attention}}  # the formulas


def floor(op: str, dtype: torch.dtype) -> str:
    """Which of `PLAIN` serves where no kernel does."""
    return "sdpa" if op in PLAIN["sdpa"] and dtype != torch.float64 else "reference"


def run_plain(backend: str, op: str, *args, **kwargs) -> Tensor:
    """Check, then a formula in plain PyTorch, on any device."""
    CHECKS[op](*args, **kwargs)
    torch_calls[backend] += 1
    if not torch.compiler.is_compiling():
        LOG.debug("%s runs nag::%s on %s", backend, op, args[0].device)
    return PLAIN[backend][op](*args, **kwargs)


def run_floor(op: str, *args, **kwargs) -> Tensor:
    return run_plain(floor(op, args[0].dtype if isinstance(args[0], Tensor) else torch.float32), op, *args, **kwargs)


def _fake(op: str, *args, **kwargs) -> Tensor:
    CHECKS[op](*args, **kwargs)
    return torch.empty_like(args[0], memory_format=torch.contiguous_format)


# --- gradient: recomputed from the inputs, through the reference ---------------------------------------------------------


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, keyset, *inputs):
        with torch._C._AutoDispatchBelowAutograd():
            output = call.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)
        ctx.op = call._schema.name.removeprefix("nag::")
        ctx.others = [None if isinstance(x, Tensor) else (x,) for x in inputs]
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor):
        saved = iter(ctx.saved_tensors)
        inputs = [next(saved) if other is None else other[0] for other in ctx.others]
        wanted = [i for i, need in enumerate(ctx.needs_input_grad[2:]) if need]
        second_order = torch.is_grad_enabled()
        with torch.enable_grad(), _no_autocast(gradient.device.type):
            for i in wanted:
                # A view is a leaf of this derivative alone (two inputs may be one tensor, or one made from the other),
                # and still leads to the saved tensor, so that a second derivative is right as well.
                inputs[i] = inputs[i].view_as(inputs[i]) if second_order else inputs[i].detach().requires_grad_()
            output = REFERENCE[ctx.op](*inputs)
            if output.requires_grad:
                found = torch.autograd.grad(
                    output, [inputs[i] for i in wanted], gradient, create_graph=second_order, materialize_grads=True
                )
            else:  # NASA and VSF do not use tau and alpha
                found = [torch.zeros_like(inputs[i]) for i in wanted]
        grads: list[Tensor | None] = [None] * (len(inputs) + 2)
        for i, grad in zip(wanted, found, strict=True):
            grads[i + 2] = grad
        return tuple(grads)


def _autograd(call):
    """What torch.library.register_autograd would register, and the refusal of forward mode, which that drops silently
    where no input requires a gradient."""

    def run(keyset, *args):
        if forward_ad._current_level >= 0 and any(
            isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in args
        ):
            raise NotImplementedError(
                f"{call._schema.name}: forward-mode derivatives are not implemented; use backward"
            )
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return _Recompute.apply(call, keyset, *args)
        with torch._C._AutoDispatchBelowAutograd():
            return call.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    return run


# --- autocast: every floating tensor to the autocast dtype, as SDPA does; settings stay float32 --------------------------


def _no_autocast(device: str):
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else contextlib.nullcontext()


def _cast(op: str, device: str, args: tuple) -> tuple:
    dtype, kept = torch.get_autocast_dtype(device), SETTINGS[op]

    def cast(x):
        if not isinstance(x, Tensor) or x.device.type != device or not x.is_floating_point():
            return x
        return x if x.dtype == torch.float64 else x.to(dtype)  # float64 is left alone, as autocast leaves it

    return tuple(x if i in kept else cast(x) for i, x in enumerate(args))


def _autocast(call, op: str, device: str):
    keys = torch._C.DispatchKeySet(torch._C._parse_dispatch_key(f"Autocast{device.upper()}"))

    def run(*args):
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return call(*_cast(op, device, args))

    return run


def device_type(args: tuple) -> str:
    """Where a call runs, which its first argument says; "cpu" where that is no tensor, and will be refused."""
    return args[0].device.type if isinstance(args[0], Tensor) else "cpu"


def autocasted(op: str, args: tuple) -> tuple:
    """The arguments as the dispatcher would hand them on: cast where autocast is on."""
    device = device_type(args)
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return _cast(op, device, args) if enabled else args


def force_plain(backend: str, op: str, *args) -> Tensor:
    """`run_plain`, with what the dispatcher does about autocast before it."""
    args = autocasted(op, args)
    with _no_autocast(device_type(args)):
        return run_plain(backend, op, *args)


def _register(library: torch.library.Library) -> None:
    for name, schema in SCHEMAS.items():
        op, _, overload = name.partition(".")
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))

        def fake(*args, op=op, **kwargs):
            return _fake(op, *args, **kwargs)

        library.impl(name, functools.partial(run_floor, op), "CompositeExplicitAutograd")
        torch.library.register_fake(f"nag::{name}", fake, lib=library)
        call = getattr(getattr(torch.ops.nag, op), overload or "default")
        library.impl(name, _autograd(call), "Autograd", with_keyset=True)
        for device in ("cpu", "cuda"):
            library.impl(name, _autocast(call, op, device), f"Autocast{device.upper()}")


LIBRARY = torch.library.Library("nag", "DEF")
_register(LIBRARY)


def register_kernels(kernels: Callable[[], Mapping[str, Callable]], key: str, behind: bool = False) -> None:
    """Let Python kernels serve a dispatch key ("CUDA"); `kernels` gives them by operation, at the first call.

    They get checked input of any dtype but float64, which stays with the floor.
    behind: as nag_gpu::, for a compiled kernel of nag:: that hands on what it does not serve (csrc/cuda/choice.cpp).
    """

    def serve(op: str, *args, **kwargs) -> Tensor:
        if args[0].dtype == torch.float64:
            return run_floor(op, *args, **kwargs)
        CHECKS[op](*args, **kwargs)
        with torch.cuda.device(args[0].device) if args[0].is_cuda else contextlib.nullcontext():
            return kernels()[op](*args, **kwargs)

    def serve_behind(op: str, *args, **kwargs) -> Tensor:
        try:
            return serve(op, *args, **kwargs)
        except Exception as error:
            _thread.error = error
            raise

    for name, schema in SCHEMAS.items():
        library, kernel = (BEHIND, serve_behind) if behind else (LIBRARY, serve)
        if behind:
            library.define(name + schema)
        library.impl(name, functools.partial(kernel, name.partition(".")[0]), key)


BEHIND = torch.library.Library("nag_gpu", "DEF")
# So says choice.cpp: no exception comes through the stable ABI.
BEHIND_FAILED = "the Python that serves this call failed"
_thread = threading.local()


def error_behind() -> Exception:
    """What nag_gpu:: raised last in this thread."""
    return _thread.__dict__.pop("error")
