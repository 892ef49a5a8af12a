# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""A process that compiles Triton kernels for GPUs that are not here: one line of JSON in, one line out.

It is a process of its own because the tests run Triton's interpreter, which is chosen when triton is imported."""

import json
import sys

from nag_kernels.triton_kernels import attention
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

for line in sys.stdin:
    asked = json.loads(line)
    kernel = getattr(attention, asked["kernel"])
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in asked["aligned"]}
    source = ASTSource(kernel, asked["signature"], asked["constants"], attributes)
    made = compile(source, target=GPUTarget("cuda", asked["chip"], 32), options=asked["options"])
    print("made " + json.dumps({"ptx": made.asm["ptx"], "shared": made.metadata.shared}), flush=True)
