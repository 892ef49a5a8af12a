# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""A thread that computes as the one that starts it.

torch and Python keep much for each thread: whether gradients are taken, autocast, the stream, the modes that see every operation
(`torch.set_default_device` is one, the count of operations another), the transforms of torch.func, and context variables. A new
thread begins without them, and its results or derivatives would differ in silence.
"""

import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

Mode = Callable[[], contextlib.AbstractContextManager[Any]]


def second_thread(work: Callable[[Mode], None]) -> threading.Thread:
    """A thread for `work`, which gets a context in which operations are computed as in this thread now."""
    modes, context = _modes(), contextvars.copy_context()

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode())
            yield

    return threading.Thread(target=context.run, args=(work, entered))


def _modes() -> list[Mode]:
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    modes: list[Mode] = [lambda: torch.inference_mode(inference), lambda: torch.set_grad_enabled(grad)]
    for device in ("cpu", "cuda", "mps", "xpu"):
        if torch.is_autocast_enabled(device):
            modes.append(functools.partial(torch.autocast, device, torch.get_autocast_dtype(device)))
    if torch.cuda.is_initialized():
        modes.append(functools.partial(torch.cuda.stream, torch.cuda.current_stream()))
    if torch.compiler.is_exporting():
        from . import exported_threads  # of much that torch does not promise to keep

        modes.append(exported_threads.for_another_thread())
    try:
        return [*modes, *_saved_tensors(), *_transforms(), *_stacks()]
    except (AttributeError, ImportError) as error:  # torch does not promise to keep these names either
        raise RuntimeError(
            "guide: this model runs twice, in two threads, and this version of torch does not tell which modes and transforms "
            f"of torch.func the second thread must have ({error}): take an earlier torch"
        ) from error


def _saved_tensors() -> list[Mode]:
    """What is done to the tensors that a gradient will need (`torch.autograd.graph.saved_tensors_hooks`)."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore[reportAttributeAccessIssue]
    return [] if hooks is None else [lambda: torch.autograd.graph.saved_tensors_hooks(*hooks)]


def _transforms() -> list[Mode]:
    """The transforms of torch.func that are running."""
    if torch._C._functorch.peek_interpreter_stack() is None:  # pyright: ignore[reportAttributeAccessIssue]
        return []
    from torch._functorch import pyfunctorch

    forward = torch._C._is_fwd_grad_enabled()
    with pyfunctorch.temporarily_clear_interpreter_stack() as transforms:
        pass  # the only way to see them is to take them off
    return [
        lambda: torch.autograd.forward_ad._set_fwd_grad_enabled(forward),
        lambda: pyfunctorch.temporarily_restore_interpreter_stack(transforms),
    ]


def _stacks() -> list[Mode]:
    """The modes that see every function and every operation. They are not entered once more, as some begin anew then."""
    from torch.overrides import _get_current_function_mode_stack
    from torch.overrides import _pop_mode as pop_function_mode
    from torch.overrides import _push_mode as push_function_mode
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
    from torch.utils._python_dispatch import _pop_mode as pop_dispatch_mode
    from torch.utils._python_dispatch import _push_mode as push_dispatch_mode

    functions, operations = _get_current_function_mode_stack(), _get_current_dispatch_mode_stack()

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for mode in functions:
                push_function_mode(mode)
                stack.callback(pop_function_mode)
            for mode in operations:
                push_dispatch_mode(mode)
                stack.callback(pop_dispatch_mode, getattr(mode, "_mode_key", None))
            yield

    return [entered]
