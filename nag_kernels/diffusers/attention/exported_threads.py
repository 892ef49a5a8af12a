# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The two threads of the dual forward under torch.export, which follows one thread.

What torch.export sets up belongs to the thread that calls it: modes that see every operation, which any second thread gets
(`second_thread.py`), and keys of the dispatcher, which it gets here. torch.export also keeps a stack of the modules that are
being called. The runs stop in the midst of a module, so each run puts its own stack back when its turn comes.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import _guards
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def for_another_thread() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A context for another thread with which, and with the modes of this one, operations are written down as in this one."""
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    in_python = include.has(torch._C.DispatchKey.PythonDispatcher)
    tracing, stack = _guards.TracingContext.try_get(), stack_of_modules()

    @contextlib.contextmanager
    def entered() -> Iterator[None]:
        stack()
        with contextlib.ExitStack() as kept:
            kept.enter_context(torch._C._ForceDispatchKeyGuard(include, exclude))
            kept.enter_context(_guards.tracing(tracing))
            if in_python:
                kept.enter_context(torch._C._EnablePythonDispatcher())
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
