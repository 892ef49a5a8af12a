# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Matrix instructions and asynchronous copies of the PTX machine. Where elements lie in fragments is written here once more,
element by element, from the tables of the manual (sections 9.7.14 and 9.7.15)."""

import pytest
import torch
from handwritten import run
from ptx_machine import PtxError

LANES = range(32)
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}


def words(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int32)


def packed(low: torch.Tensor, high: torch.Tensor) -> int:
    return int(torch.stack([low, high]).view(torch.int32)[0])


def left_fragments(a: torch.Tensor) -> list[list[int]]:
    """a [16, k]: word i of each lane."""
    return [
        [packed(*a[lane // 4 + i % 2 * 8, lane % 4 * 2 + i // 2 * 8 :][:2]) for lane in LANES]
        for i in range(a.shape[1] // 4)
    ]


def right_fragments(b: torch.Tensor) -> list[list[int]]:
    """b [k, 8]: word i of each lane."""
    return [[packed(*b[lane % 4 * 2 + 8 * i :, lane // 4][:2]) for lane in LANES] for i in range(b.shape[0] // 8)]


def sums(out: list[int]) -> torch.Tensor:
    """[16, 8] of four floats of each lane."""
    values = torch.tensor(out[:128], dtype=torch.int32).view(torch.float32).view(32, 4)
    d = torch.empty(16, 8)
    for lane in LANES:
        for i in range(4):
            d[lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2] = values[lane, i]
    return d


def store_sums(registers: str) -> str:
    return f"mad.wide.u32 %rd4, %r0, 16, %rd0; st.global.v4.f32 [%rd4], {{{registers}}};"


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("depth", [8, 16])
def test_mma(kind, depth):
    a, b = torch.randn(16, depth).to(DTYPES[kind]), torch.randn(depth, 8).to(DTYPES[kind])
    fragments = torch.tensor([*left_fragments(a), *right_fragments(b)], dtype=torch.int32)
    loads = "".join(f"ld.global.b32 %r{10 + k}, [%rd3+{128 * k}];" for k in range(len(fragments)))
    n = depth // 4
    left = ", ".join(f"%r{10 + k}" for k in range(n))
    right = ", ".join(f"%r{10 + k}" for k in range(n, len(fragments)))
    zero = "".join(f"mov.f32 %f{k}, 0f3F800000;" for k in range(4))
    d = "%f0, %f1, %f2, %f3"
    product = f"mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32 {{{d}}}, {{{left}}}, {{{right}}}, {{{d}}};"
    out = run(loads + zero + product + store_sums(d), fragments, words=128)
    torch.testing.assert_close(sums(out), a.float() @ b.float() + 1, rtol=1e-5, atol=1e-5)


FILL = """
    mad.lo.u32 %r3, %r0, 16, %r1;
    mad.wide.u32 %rd4, %r0, 16, %rd1;
    ld.global.v4.b32 {%r10, %r11, %r12, %r13}, [%rd4];
    st.shared.v4.b32 [%r3], {%r10, %r11, %r12, %r13};
    bar.warp.sync -1;
"""
OUT_4 = "mad.wide.u32 %rd4, %r0, 16, %rd0; st.global.v4.b32 [%rd4], {%r20, %r21, %r22, %r23};"


@pytest.mark.parametrize("turned", ["", ".trans"])
def test_ldmatrix(turned):
    x = torch.randn(4, 8, 8).to(torch.float16)
    load = f"ldmatrix.sync.aligned.m8n8.x4{turned}.shared.b16 {{%r20, %r21, %r22, %r23}}, [%r3];"
    out = torch.tensor(run(FILL + load + OUT_4, words(x), words=128)[:128], dtype=torch.int32)
    matrices = x.transpose(1, 2) if turned else x
    expected = [packed(*matrices[i, lane // 4, lane % 4 * 2 :][:2]) for lane in LANES for i in range(4)]
    assert out.tolist() == expected


def test_stmatrix_puts_back_what_ldmatrix_took():
    x = torch.randn(4, 8, 8).to(torch.float16)
    body = FILL + """
    ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r20, %r21, %r22, %r23}, [%r3];
    bar.warp.sync -1;
    stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%r3], {%r20, %r21, %r22, %r23};
    bar.warp.sync -1;
    ld.shared.v4.b32 {%r20, %r21, %r22, %r23}, [%r3];
    """  # fmt: skip
    assert run(body + OUT_4, words(x), words=128)[:128] == words(x).view(-1).tolist()
    with pytest.raises(PtxError, match="race in shared memory"):
        other = "xor.b32 %r4, %r3, 16;\n stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%r4]"
        text = body.replace("bar.warp.sync -1;\n    stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%r3]", other)
        run(text + OUT_4, words(x), words=128)


# --- cp.async -------------------------------------------------------------------------------------------------------------

COPY = """
    mad.lo.u32 %r3, %r0, 16, %r1;
    mad.wide.u32 %rd4, %r0, 16, %rd1;
    selp.b32 %r4, 16, 0, %p0;
    cp.async.cg.shared.global [%r3], [%rd4], 16, %r4;
    cp.async.commit_group;
    {wait}
    {barrier}
    xor.b32 %r3, %r3, {distance};
    ld.shared.v4.b32 {{%r20, %r21, %r22, %r23}}, [%r3];
"""


def copied(wait="cp.async.wait_group 0;", barrier="bar.sync 0;", distance=16, first="setp.ne.u32 %p0, %r0, 5;", **how):
    body = first + COPY.format(wait=wait, barrier=barrier, distance=distance) + OUT_4
    return run(body, torch.arange(256, dtype=torch.int32), words=256, threads=64, **how)


@pytest.mark.parametrize("late", [True, False])
def test_copies(late):
    """Thread 5 reads nothing, and its place is filled with zeros."""
    expected = torch.arange(256).view(64, 4)
    expected[5] = 0
    assert copied(late=late) == expected[torch.arange(64) ^ 1].view(-1).tolist()


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize(
    ("wait", "barrier"), [("", "bar.sync 0;"), ("cp.async.wait_group 1;", "bar.sync 0;"), ("cp.async.wait_all;", "")]
)
def test_copies_without_a_wait_or_a_barrier(wait, barrier, late):
    with pytest.raises(PtxError, match=r"where a copy is on its way|another thread writes"):
        copied(wait, barrier, late=late)


def test_copies_for_which_nobody_waits():
    with pytest.raises(PtxError, match="nobody waited"):
        copied("", "", 0, races=False)


def test_a_group_is_waited_for_in_order():
    body = """
    mad.lo.u32 %r3, %r0, 16, %r1;
    mad.wide.u32 %rd4, %r0, 16, %rd1;
    cp.async.cg.shared.global [%r3], [%rd4], 16;
    cp.async.commit_group;
    cp.async.ca.shared.global [%r3+512], [%rd4], 4;
    cp.async.commit_group;
    cp.async.wait_group 1;
    ld.shared.b32 %r20, [%r3];
    WAIT
    ld.shared.b32 %r21, [%r3+512];
    cp.async.wait_group 0;
    mad.wide.u32 %rd4, %r0, 8, %rd0;
    st.global.v2.b32 [%rd4], {%r20, %r21};
    """
    given = torch.arange(128, dtype=torch.int32)
    good = run(body.replace("WAIT", "cp.async.wait_all;"), given)
    assert good == [4 * lane for lane in LANES for _ in range(2)]
    without = run(body.replace("WAIT", ""), given, races=False)
    assert without == [x for lane in LANES for x in (4 * lane, -1)]  # what is on its way reads as NaN
    with pytest.raises(PtxError, match="where a copy is on its way"):
        run(body.replace("WAIT", ""), given)


def test_a_copy_over_what_others_still_read():
    body = """
    ld.shared.b32 %r5, [%r1];
    BARRIER
    setp.eq.u32 %p1, %r0, 0;
    @%p1 cp.async.cg.shared.global [%r1], [%rd1], 16;
    cp.async.commit_group;
    cp.async.wait_group 0;
    """
    given = torch.arange(4, dtype=torch.int32)
    run(body.replace("BARRIER", "bar.sync 0;"), given, threads=64)
    with pytest.raises(PtxError, match="a store to what another thread reads"):
        run(body.replace("BARRIER", ""), given, threads=64)
