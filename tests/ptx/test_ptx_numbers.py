# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Arithmetic, comparisons, conversions and moves of the PTX machine, on instructions written by hand."""

import math
import struct

import pytest
from handwritten import bits, one, run
from ptx_machine import Kernel, PtxError, entries

MINUS = 1 << 32
NAN = 0x7FC00000
INTEGERS = {
    "add.s32 d, a, b": (7, MINUS - 9, MINUS - 2),
    "sub.u32 d, a, b": (3, 5, MINUS - 2),
    "mul.lo.s32 d, a, b": (0x10001, 0x10001, 0x20001),
    "mul.hi.s32 d, a, b": (MINUS - 2, 1 << 30, MINUS - 1),
    "mul.hi.u32 d, a, b": (MINUS - 2, 1 << 30, (1 << 30) - 1),
    "mad.lo.s32 d, a, b, 5": (3, MINUS - 4, MINUS - 7),
    "div.s32 d, a, b": (MINUS - 7, 2, MINUS - 3),
    "rem.s32 d, a, b": (MINUS - 7, 2, MINUS - 1),
    "div.u32 d, a, b": (MINUS - 7, 2, (MINUS - 7) // 2),
    "min.s32 d, a, b": (MINUS - 1, 1, MINUS - 1),
    "min.u32 d, a, b": (MINUS - 1, 1, 1),
    "max.s32 d, a, b": (MINUS - 1, 1, 1),
    "and.b32 d, a, b": (0b1100, 0b1010, 0b1000),
    "or.b32 d, a, b": (0b1100, 0b1010, 0b1110),
    "xor.b32 d, a, b": (0b1100, 0b1010, 0b0110),
    "shl.b32 d, a, b": (3, 31, 1 << 31),
    "shl.b32 d, a, b ": (3, 32, 0),
    "shr.u32 d, a, b": (1 << 31, 40, 0),
    "shr.s32 d, a, b": (1 << 31, 40, MINUS - 1),
    "bfe.u32 d, a, 4, b": (0xABCD, 8, 0xBC),
    "bfe.s32 d, a, 4, b": (0xABCD, 8, MINUS - (256 - 0xBC)),
    "prmt.b32 d, a, b, 0x5410": (0x33221100, 0x77665544, 0x55441100),
    "prmt.b32 d, a, b, 0x7632": (0x33221100, 0x77665544, 0x77663322),
    "not.b32 d, a": (5, MINUS - 6),
    "neg.s32 d, a": (5, MINUS - 5),
    "mov.b32 d, a": (5, 5),
}


@pytest.mark.parametrize("instruction", INTEGERS)
def test_integers(instruction):
    *given, expected = INTEGERS[instruction]
    assert one(instruction, *given) == expected


FLOATS = {
    "add.f32 d, a, b": (1.5, 2.25, 3.75),
    "add.rn.f32 d, a, b": (1.0, 2.0**-24, 1.0),
    "sub.f32 d, a, b": (1.5, 2.25, -0.75),
    "mul.f32 d, a, b": (-1.5, 2.0, -3.0),
    "fma.rn.f32 d, a, b, 0fBF800000": (1 + 2.0**-12, 1 - 2.0**-12, -(2.0**-24)),
    "div.full.f32 d, a, b": (1.0, 4.0, 0.25),
    "div.rn.f32 d, a, b": (1.0, 0.0, math.inf),
    "max.f32 d, a, b": (math.nan, 2.0, 2.0),
    "min.f32 d, a, b": (3.0, math.nan, 3.0),
    "ex2.approx.ftz.f32 d, a": (-3.0, 0.125),
    "ex2.approx.ftz.f32 d, a ": (-math.inf, 0.0),
    "ex2.approx.ftz.f32 d, a  ": (-130.0, 0.0),
    "rcp.rn.f32 d, a": (4.0, 0.25),
    "sqrt.rn.f32 d, a": (9.0, 3.0),
    "neg.f32 d, a": (4.0, -4.0),
    "abs.f32 d, a": (-4.0, 4.0),
    "mul.ftz.f32 d, a, b": (2.0**-100, 2.0**-40, 0.0),
}


@pytest.mark.parametrize("instruction", FLOATS)
def test_floats(instruction):
    *given, expected = FLOATS[instruction]
    assert one(instruction, *(bits(x) for x in given)) == bits(expected)


def test_maximum_that_keeps_nan():
    assert math.isnan(_float(one("max.NaN.f32 d, a, b", NAN, bits(2.0))))


def _float(word: int) -> float:
    return struct.unpack("<f", struct.pack("<I", word))[0]


CONVERSIONS = {
    "cvt.rn.bf16x2.f32 d, a, b": (bits(1.0), bits(-2.0), 0x3F80C000),
    "cvt.rn.bf16x2.f32 d, a, b ": (0x3F808000, 0x3F818000, 0x3F803F82),  # ties go to the even number
    "cvt.rn.f16x2.f32 d, a, b": (bits(1.0), bits(65520.0), 0x3C007C00),
    "cvt.rzi.s32.f32 d, a": (bits(-2.75), MINUS - 2),
    "cvt.rni.s32.f32 d, a": (bits(2.5), 2),
    "cvt.rn.f32.s32 d, a": (MINUS - 3, bits(-3.0)),
    "cvt.s32.s8 d, a": (0x80, MINUS - 128),
    "cvt.u32.u16 d, a": (0x12348001, 0x8001),
}


@pytest.mark.parametrize("instruction", CONVERSIONS)
def test_conversions(instruction):
    *given, expected = CONVERSIONS[instruction]
    assert one(instruction, *given) == expected


def test_halves_of_a_word():
    body = """
    ld.global.b32 %r10, [%rd1];
    mov.b32 {%h1, %h2}, %r10;
    cvt.f32.bf16 %f1, %h1;
    cvt.f32.f16 %f2, %h2;
    mov.b32 %r11, {%h2, %h1};
    st.global.f32 [%rd0], %f1;
    st.global.f32 [%rd0+4], %f2;
    st.global.b32 [%rd0+8], %r11;
    """
    out = run("setp.ne.u32 %p1, %r0, 0;\n@%p1 ret;" + body, [0x3C003F80], threads=32)
    assert out[:3] == [bits(1.0), bits(1.0), 0x3F803C00]


def test_wide_arithmetic():
    body = """
    mul.wide.s32 %rd4, %r10, %r11;
    mad.wide.u32 %rd4, 2, 3, %rd4;
    cvt.s64.s32 %rd5, %r10;
    add.s64 %rd4, %rd4, %rd5;
    shr.s64 %rd5, %rd4, 32;
    cvt.u32.u64 %r12, %rd4;
    cvt.u32.u64 %r13, %rd5;
    """
    loads = "ld.global.b32 %r10, [%rd1]; ld.global.b32 %r11, [%rd1+4];"
    stores = "st.global.v2.b32 [%rd4], {%r12, %r13};"
    low, high, *_ = run(f"{loads} {body} mad.wide.u32 %rd4, %r0, 8, %rd0; {stores}", [MINUS - 100000, 100000])
    assert (low & 0xFFFFFFFF) + (high << 32) == -(10**10) + 6 - 100000


COMPARED = [
    ("eq.f32", 1.0, 1.0, True), ("ne.f32", math.nan, 1.0, False), ("neu.f32", math.nan, 1.0, True), ("lt.f32", 1.0, 2.0, True),
    ("geu.f32", math.nan, 2.0, True), ("ge.f32", math.nan, 2.0, False), ("gt.f32", 3.0, 2.0, True), ("le.f32", 3.0, 2.0, False),
]  # fmt: skip


@pytest.mark.parametrize(("how", "a", "b", "expected"), COMPARED)
def test_comparisons_of_floats(how, a, b, expected):
    assert one(f"setp.{how} %p1, a, b; selp.b32 d, 1, 0, %p1", bits(a), bits(b)) == expected


def test_the_upper_half_of_a_product_of_16_bits():
    assert one("cvt.u16.u32 %h1, a; mul.hi.u16 %h2, %h1, -21845; cvt.u32.u16 d, %h2", 9) == 9 * 43691 >> 16
    assert one("cvt.u16.u32 %h1, a; mul.hi.s16 %h2, %h1, -21845; cvt.s32.s16 d, %h2", 9) == MINUS - 3


def test_comparisons_of_integers_know_the_sign():
    assert one("setp.lt.s32 %p1, a, b; selp.b32 d, 1, 0, %p1", MINUS - 1, 1) == 1
    assert one("setp.lt.u32 %p1, a, b; selp.b32 d, 1, 0, %p1", MINUS - 1, 1) == 0
    assert one("setp.lt.u32 %p2, 1, 2; setp.lt.and.u32 %p1, a, b, %p2; selp.b32 d, 1, 0, %p1", 1, 3) == 1


def test_two_floats_in_64_bits():
    body = """
    mov.b64 %rd4, {%r10, %r11};
    fma.rn.f32x2 %rd4, %rd4, %rd4, %rd4;
    add.f32x2 %rd4, %rd4, %rd4;
    mov.b64 {%r12, %r13}, %rd4;
    mad.wide.u32 %rd4, %r0, 8, %rd0;
    st.global.v2.b32 [%rd4], {%r12, %r13};
    """
    out = run("ld.global.v2.b32 {%r10, %r11}, [%rd1];" + body, [bits(2.0), bits(-3.0)])
    assert out[:2] == [bits(12.0), bits(12.0)]


def test_what_was_never_written_is_no_number():
    assert math.isnan(_float(one("add.f32 d, %f9, a", bits(1.0))))


@pytest.mark.parametrize(
    "wrong", ["sin.approx.f32 d, a", "prmt.b32 d, a, a, 0x9999", "div.u32 d, a, b", "cvt.rz.bf16x2.f32 d, a, b"]
)
def test_what_is_not_known_is_refused(wrong):
    with pytest.raises(PtxError, match=r"not known|sign|zero"):
        one(wrong, 1, 0)


def test_several_entries_and_inner_scopes():
    text = """
    .visible .entry first(.param .u32 x) { ret; }
    .visible .entry second(.param .u8 small, .param .align 8 .b8 large[24], .param .u32 last)
    {
        .reg .b32 %r<3>;
        .shared .align 16 .b8 own[40];
        mov.u32 %r0, 1;  // a comment; with a semicolon
        { .reg .b32 %r0; mov.u32 %r0, 2; }
        @!%p bra $L; $L: mov.u32 %r1, %r0; ret;
    }
    """.replace("@!%p bra $L;", "")
    kernel = Kernel.of(text, "second")
    assert entries(text) == ["first", "second"]
    assert [(p.offset, p.size) for p in kernel.parameters.values()] == [(0, 1), (8, 24), (32, 4)]
    assert kernel.static_shared == 40
    assert kernel.labels == {"$L": 2}
    assert kernel.code[0].operands[0] != kernel.code[1].operands[0]
    assert kernel.code[0].operands[0] == kernel.code[2].operands[1]
    with pytest.raises(PtxError, match="2 entries"):
        Kernel.of(text)
