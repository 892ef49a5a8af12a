# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The two threads of the dual forward under torch.export, which follows one thread.

What torch.export sets up belongs to the thread that calls it: modes that see every operation, and keys of the dispatcher. The
other thread gets them too. torch.export also keeps a stack of the modules that are being called. The runs stop in the midst of a
module, so each run puts its own stack back when its turn comes.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import _guards
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.overrides import _get_current_function_mode_stack
from torch.overrides import _pop_mode as pop_function_mode
from torch.overrides import _push_mode as push_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._python_dispatch import _pop_mode as pop_dispatch_mode
from torch.utils._python_dispatch import _push_mode as push_dispatch_mode


def for_another_thread() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A context for another thread, in which operations are written down as they are in this one now."""
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    in_python = include.has(torch._C.DispatchKey.PythonDispatcher)
    functions, modes = _get_current_function_mode_stack(), _get_current_dispatch_mode_stack()
    tracing, stack = _guards.TracingContext.try_get(), stack_of_modules()

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        stack()
        with contextlib.ExitStack() as kept:
            kept.enter_context(torch._C._ForceDispatchKeyGuard(include, exclude))
            kept.enter_context(_guards.tracing(tracing))
            if in_python:
                kept.enter_context(torch._C._EnablePythonDispatcher())
            for mode in functions:
                push_function_mode(mode)
                kept.callback(pop_function_mode)
            for mode in modes:
                push_dispatch_mode(mode)
                kept.callback(pop_dispatch_mode, getattr(mode, "_mode_key", None))
            yield

    return entered


def stack_of_modules() -> Callable[[], None]:
    """What puts the modules that are being called back as they are now, after the other thread's turn."""
    mode: Any = get_proxy_mode()
    stack = getattr(getattr(mode, "tracer", None), "module_stack", None)
    if stack is None:
        return lambda: None
    now = list(stack.items())

    def put_back() -> None:
        stack.clear()
        stack.update(now)

    return put_back
