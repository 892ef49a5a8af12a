# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Imported where Triton's interpreter runs kernels: it goes on as it would, in half the time."""

import importlib
import importlib.util
import os
from pathlib import Path

# For the code of another process.
CODE = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import quick_interpreter\n"


def quicken(interpreter) -> None:
    """For a launch the interpreter puts its own functions into triton.language, and takes them out at its end. It also puts
    them in at each call of a function inside a kernel, where they are already: that is left out."""
    run, put, there = interpreter.GridExecutor.__call__, interpreter._patch_lang, set()

    def launched(self, *args, **kwargs):
        there.clear()
        try:
            return run(self, *args, **kwargs)
        finally:
            there.clear()

    def put_once(function):
        modules = tuple(name for name in ("tl", "core") if name in function.__globals__)
        if modules in there:
            return interpreter._LangPatchScope()
        there.add(modules)
        return put(function)

    interpreter.GridExecutor.__call__, interpreter._patch_lang = launched, put_once


if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    found = importlib.import_module("triton.runtime.interpreter")
    if all(hasattr(found, name) for name in ("GridExecutor", "_patch_lang", "_LangPatchScope")):
        quicken(found)
