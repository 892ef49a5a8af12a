# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Registers `torch.ops.nag`: for each operation its schema, fake kernel, fallback, gradient and autocast; checks.py checks its
input, gradient.py computes its first derivative."""

import contextlib
import functools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import gradient, reference, sdpa
from .checks import CHECKS
from .namespace import NAMESPACE, operations

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
# How many arguments, the first ones, have a derivative; `wanted` has one entry for each.
DERIVATIVES = {"fused_guided_attention": 10, "guidance": 5}


def _gradient_schema(name: str) -> str:
    tensors = ", ".join(["Tensor"] * DERIVATIVES[name.partition(".")[0]])
    return f"(Tensor gradient, bool[] wanted, {SCHEMAS[name].removeprefix('(').partition(') ->')[0]}) -> ({tensors})"


LOG = logging.getLogger("nag_kernels")
torch_calls: Counter[str] = Counter()  # how often each backend of plain PyTorch ran

# --- definition, fake, fallback ---------------------------------------------------------------------------------------

SETTINGS = {"fused_guided_attention": (5, 6, 7), "guidance": (2, 3, 4)}  # positions among the arguments
Operations = Mapping[str, Callable[..., Tensor]]  # what computes each operation
REFERENCE: Operations = {"fused_guided_attention": reference.fused_guided_attention, "guidance": reference.guidance}
PLAIN: Mapping[str, Operations]  # the formulas
PLAIN = {
    "reference": REFERENCE,
    "sdpa": {"fused_guided_attention": sdpa.fused_guided_attention, "guidance": sdpa.guidance},
}


def fallback(op: str, dtype: torch.dtype) -> str:
    """Which of `PLAIN` serves where no kernel does."""
    return "reference" if dtype == torch.float64 else "sdpa"


def run_plain(backend: str, op: str, *args: Any, **kwargs: Any) -> Tensor:
    """Check, then a formula in plain PyTorch, on any device."""
    CHECKS[op](*args, **kwargs)
    torch_calls[backend] += 1
    if not torch.compiler.is_compiling():
        LOG.debug("%s runs nag::%s on %s", backend, op, args[0].device)
    return PLAIN[backend][op](*args, **kwargs)


def run_fallback(op: str, *args: Any, **kwargs: Any) -> Tensor:
    return run_plain(fallback(op, args[0].dtype if isinstance(args[0], Tensor) else torch.float32), op, *args, **kwargs)


def _fake(op: str, *args: Any, **kwargs: Any) -> Tensor:
    CHECKS[op](*args, **kwargs)
    return torch.empty_like(args[0], memory_format=torch.contiguous_format)


# --- gradient: recomputed from the inputs, by gradient.py ----------------------------------------------------------------

GRADIENT = {"fused_guided_attention": gradient.fused_guided_attention, "guidance": gradient.guidance}


def _run_gradient(op: str, push: Tensor, wanted: Sequence[bool], *args: Any) -> list[Tensor]:
    with torch.no_grad(), _no_autocast(push.device.type):
        return GRADIENT[op](push, wanted, *args)


def _fake_gradient(op: str, push: Tensor, wanted: Sequence[bool], *args: Any) -> list[Tensor]:
    return [
        torch.empty_like(args[i], memory_format=torch.contiguous_format) if want else push.new_empty(0)
        for i, want in enumerate(wanted)
    ]


class _Derivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: Any, keyset: Any, *inputs: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            output = call.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)
        ctx.op, ctx.overload = call._schema.name.removeprefix(f"{NAMESPACE}::"), call._overloadname
        ctx.others = [None if isinstance(x, Tensor) else (x,) for x in inputs]
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
        return output

    @staticmethod
    def backward(ctx: Any, push: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride] one output, one gradient
        saved = iter(ctx.saved_tensors)
        inputs = [next(saved) if other is None else other[0] for other in ctx.others]
        wanted = list(ctx.needs_input_grad[2:])
        found: Sequence[Tensor]
        if torch.is_grad_enabled():
            found = _differentiable(ctx.op, push, wanted, inputs)
        else:
            length = DERIVATIVES[ctx.op]
            call = getattr(getattr(operations(), f"{ctx.op}_backward"), ctx.overload)
            found = call(push, (wanted + [False] * length)[:length], *inputs)
        grads = [found[i] if i < len(found) and want else None for i, want in enumerate(wanted)]
        return None, None, *grads


def _differentiable(op: str, push: Tensor, wanted: Sequence[bool], inputs: list[Any]) -> list[Tensor]:
    """A gradient that has derivatives itself: through the reference, with the logits in memory."""
    with torch.enable_grad(), _no_autocast(push.device.type):
        # A view is a leaf of this derivative alone (two inputs may be one tensor, or one made from the other), and still leads
        # to the saved tensor, so that a second derivative is right as well.
        inputs = [x.view_as(x) if want else x for x, want in zip(inputs, wanted, strict=True)]
        leaves = [x for x, want in zip(inputs, wanted, strict=True) if want]
        output = REFERENCE[op](*inputs)
        found = [torch.zeros_like(x) for x in leaves]  # NASA and VSF do not use tau and alpha
        if output.requires_grad:
            found = list(torch.autograd.grad(output, leaves, push, create_graph=True, materialize_grads=True))
    rest = iter(found)
    return [next(rest) if want else push.new_empty(0) for want in wanted]


def _autograd(call: Any) -> Callable[..., Tensor]:
    """What torch.library.register_autograd would register, and forward mode, which that drops silently where no input requires a
    gradient. In forward mode, and in transforms of torch.func, torch differentiates what it sees: the reference's own steps."""

    op = call._schema.name.removeprefix(f"{NAMESPACE}::")

    def run(keyset: Any, *args: Any) -> Tensor:
        forward = forward_ad._current_level >= 0 and any(
            isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in args
        )
        backward = torch.is_grad_enabled() and torch._C._any_requires_grad(*args)
        if forward or (backward and torch._C._are_functorch_transforms_active()):
            CHECKS[op](*args)
            return REFERENCE[op](*args)
        if backward:
            return _Derivative.apply(call, keyset, *args)
        with torch._C._AutoDispatchBelowAutograd():
            return call.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    return run


# --- autocast: every floating tensor to the autocast dtype, as SDPA does; settings stay float32 --------------------------


def _no_autocast(device: str) -> AbstractContextManager[object]:
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else contextlib.nullcontext()


def _cast(op: str, device: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype, kept = torch.get_autocast_dtype(device), SETTINGS[op]

    def cast(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.device.type != device or not x.is_floating_point():
            return x
        return x if x.dtype == torch.float64 else x.to(dtype)  # float64 is left alone, as autocast leaves it

    return tuple(x if i in kept else cast(x) for i, x in enumerate(args))


def _autocast(call: Any, op: str, device: str) -> Callable[..., Tensor]:
    key: Any = torch._C._parse_dispatch_key(f"Autocast{device.upper()}")
    keys = torch._C.DispatchKeySet(key)

    def run(*args: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return call(*_cast(op, device, args))

    return run


def device_type(args: tuple[Any, ...]) -> str:
    """Where a call runs, which its first argument says; "cpu" where that is no tensor, and will be refused."""
    return args[0].device.type if isinstance(args[0], Tensor) else "cpu"


def autocasted(op: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments as the dispatcher would hand them on: cast where autocast is on."""
    device = device_type(args)
    enabled = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return _cast(op, device, args) if enabled else args


def force_plain(backend: str, op: str, *args: Any) -> Tensor:
    """`run_plain`, with what the dispatcher does about autocast before it."""
    args = autocasted(op, args)
    with _no_autocast(device_type(args)):
        return run_plain(backend, op, *args)


def _register(library: torch.library.Library) -> None:
    for name, schema in SCHEMAS.items():
        op, _, overload = name.partition(".")
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))

        def fake(*args: Any, op: str = op, **kwargs: Any) -> Tensor:
            return _fake(op, *args, **kwargs)

        library.impl(name, functools.partial(run_fallback, op), "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
        call = getattr(getattr(operations(), op), overload or "default")
        library.impl(name, _autograd(call), "Autograd", with_keyset=True)
        for device in ("cpu", "cuda"):
            library.impl(name, _autocast(call, op, device), f"Autocast{device.upper()}")
        backward = name.replace(op, f"{op}_backward")
        library.define(backward + _gradient_schema(name), tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(backward, functools.partial(_run_gradient, op), "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{backward}", functools.partial(_fake_gradient, op), lib=library)


LIBRARY = torch.library.Library(NAMESPACE, "DEF")
_register(LIBRARY)


def register_kernels(kernels: Callable[[], Operations], key: str, behind: bool = False) -> None:
    """Register Python kernels for a dispatch key ("CUDA"); `kernels` gives them by operation, at the first call.

    Kernels receive validated tensors; float64 goes to the fallback.
    behind: registers them as nag_gpu::*, the operator that _C_cuda calls when none of its compiled kernels fits
        (csrc/cuda/choice.cpp).
    """

    def serve(op: str, *args: Any, **kwargs: Any) -> Tensor:
        if args[0].dtype == torch.float64:
            return run_fallback(op, *args, **kwargs)
        CHECKS[op](*args, **kwargs)
        with torch.cuda.device(args[0].device) if args[0].is_cuda else contextlib.nullcontext():
            return kernels()[op](*args, **kwargs)

    def serve_behind(op: str, *args: Any, **kwargs: Any) -> Tensor:
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


BEHIND = torch.library.Library(f"{NAMESPACE}_gpu", "DEF")
# So says choice.cpp: no exception comes through the stable ABI.
BEHIND_FAILED = "the Python that serves this call failed"
_thread = threading.local()


def error_behind() -> Exception:
    """What nag_gpu:: raised last in this thread."""
    error: Exception = _thread.__dict__.pop("error")
    return error
