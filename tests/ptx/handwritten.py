# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Runs a few instructions written by hand."""

import re
import struct

import torch
from ptx_machine import GlobalMemory, Kernel, Machine

MODULE = """
.version 9.0
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 memory[];
.visible .entry example(.param .u64 out, .param .u64 in, .param .align 64 .b8 more[192])
{
    .reg .pred %p<8>; .reg .b16 %h<16>; .reg .b32 %r<40>; .reg .b64 %rd<16>; .reg .f32 %f<40>;
    ld.param.u64 %rd0, [out];
    ld.param.u64 %rd1, [in];
    mov.u32 %r0, %tid.x;
    mad.wide.u32 %rd2, %r0, 4, %rd0;  // this thread's word of the output
    mad.wide.u32 %rd3, %r0, 4, %rd1;  // and of the input
    mov.u32 %r1, memory;
BODY
    ret;
}
"""


def module(body: str) -> str:
    return MODULE.replace("BODY", body)


def run(
    body: str, given: list[int] | torch.Tensor = (0,), words: int = 64, threads: int = 32, blocks: int = 1,
    shared: int = 4096, more: bytes = b"", together: int = 8, **how,
) -> list[int]:  # fmt: skip
    """The words that the body has stored, -1 where it has stored none."""
    given = given if isinstance(given, torch.Tensor) else torch.tensor([_signed(x) for x in given], dtype=torch.int32)
    out = torch.full((words,), -1, dtype=torch.int32)
    memory = GlobalMemory()
    memory.add(given)
    memory.add(out, writable=True)
    machine = Machine(Kernel.of(module(body)), memory, threads, shared, **how)
    machine.launch((blocks,), struct.pack("<2Q", out.data_ptr(), given.data_ptr()).ljust(64, b"\0") + more, together)
    return out.tolist()


def one(instruction: str, *given: int) -> int:
    """The word that an instruction makes of up to three words: `a`, `b` and `c` in its text are they, `d` the result."""
    names = {"a": "%r10", "b": "%r11", "c": "%r12", "d": "%r13"}
    text = re.sub(r"\b([abcd])\b(?!\.)", lambda match: names[match[1]], instruction)
    loads = "".join(f"ld.global.b32 %r{10 + k}, [%rd1+{4 * k}];\n" for k in range(len(given)))
    return run(f"{loads} {text}; st.global.b32 [%rd2], %r13;", list(given))[0] & 0xFFFFFFFF


def _signed(x: int) -> int:
    return x - (1 << 32) if x >= 1 << 31 else x


def bits(x: float) -> int:
    return struct.unpack("<I", struct.pack("<f", x))[0]
