# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""wgmma, mbarriers, the bulk copy engine and clusters of the PTX machine, on instructions written by hand."""

import struct

import pytest
import torch
from handwritten import run
from ptx_machine import PtxError

SWIZZLED = 1 << 62
lates = pytest.mark.parametrize("late", [True, False])


def swizzled(x: torch.Tensor) -> torch.Tensor:
    """Rows of 64 elements with the 16-byte units of row r at places unit ^ (r % 8)."""
    rows, out = x.reshape(-1, 8, 8), torch.empty_like(x.reshape(-1, 8, 8))
    for r in range(rows.shape[0]):
        for unit in range(8):
            out[r, unit ^ r % 8] = rows[r, unit]
    return out


# The left operand [64, 16] at 0, in rows of 64; the right one at 8192, either [n, 64] (sum along the row) or [16, 64].
PRODUCT = """
    mov.u32 %r3, 0;
    $copy: mad.lo.u32 %r4, %r3, 128, %r0;
    mad.wide.u32 %rd4, %r4, 16, %rd1;
    ld.global.v4.b32 {{%r10, %r11, %r12, %r13}}, [%rd4];
    mad.lo.u32 %r4, %r4, 16, %r1;
    st.shared.v4.b32 [%r4], {{%r10, %r11, %r12, %r13}};
    add.u32 %r3, %r3, 1;
    setp.lt.u32 %p1, %r3, 8;
    @%p1 bra $copy;
    {fence}
    bar.sync 0;
    shr.u32 %r5, %r1, 4;
    cvt.u64.u32 %rd5, %r5;
    or.b64 %rd5, %rd5, {left};
    add.u32 %r5, %r5, 512;
    cvt.u64.u32 %rd6, %r5;
    or.b64 %rd6, %rd6, {right};
    mov.f32 %f0, 0f3F800000; mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f3F800000; mov.f32 %f3, 0f3F800000;
    wgmma.fence.sync.aligned;
    wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{%f0, %f1, %f2, %f3}}, {a}, %rd6, {add}, 1, 1, {turned};
    wgmma.commit_group.sync.aligned;
    {wait}
    mad.wide.u32 %rd4, %r0, 16, %rd0;
    st.global.v4.f32 [%rd4], {{%f0, %f1, %f2, %f3}};
"""


def multiplied(
    x, turned=False, fence="fence.proxy.async.shared::cta;", wait="wgmma.wait_group.sync.aligned 0;", add=1, **how
):
    descriptor = SWIZZLED | 64 << 32 | 512 << 16
    body = PRODUCT.format(
        left=descriptor, right=descriptor, a="%rd5", add=add, turned=f"0, {int(turned)}", fence=fence, wait=wait
    )
    out = run(body, x.contiguous().view(torch.int32), words=512, threads=128, shared=16384, **how)
    values = torch.tensor(out, dtype=torch.int32).view(torch.float32).view(4, 32, 4)
    d = torch.empty(64, 8)
    for warp in range(4):
        for lane in range(32):
            for i in range(4):
                d[16 * warp + lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2] = values[warp, lane, i]
    return d


@lates
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("add", [0, 1])
def test_wgmma(turned, add, late):
    left, right = torch.randn(64, 64).bfloat16(), torch.randn(64, 64).bfloat16()
    given = torch.cat([swizzled(left), swizzled(right)])
    b = right[:16, :8].float() if turned else right[:8, :16].float().T
    d = multiplied(given, turned, add=add, late=late)
    torch.testing.assert_close(d, left[:, :16].float() @ b + add, rtol=1e-5, atol=1e-5)


def test_wgmma_without_a_fence_or_a_wait():
    given = torch.randn(128, 64).bfloat16()
    with pytest.raises(PtxError, match="no proxy fence"):
        multiplied(given, fence="")
    with pytest.raises(PtxError, match="products \\(wgmma\\) for which nobody waited"):
        multiplied(given, wait="")
    late = "mov.f32 %f20, %f0; wgmma.wait_group.sync.aligned 0; mov.f32 %f0, %f20;"
    assert multiplied(given, wait=late)[0, 0].isnan()


@lates
def test_a_product_keeps_the_descriptor_that_it_was_given(late):
    given = torch.randn(128, 64).bfloat16()
    other = "mov.b64 %rd6, 0;"
    assert torch.equal(multiplied(given, wait=other + "wgmma.wait_group.sync.aligned 0;", late=late), multiplied(given))


def test_a_store_over_what_a_product_reads():
    given = torch.randn(128, 64).bfloat16()
    store = "setp.eq.u32 %p2, %r0, 0; @%p2 st.shared.b32 [%r1+8192], %r10;"
    with pytest.raises(PtxError, match="race in shared memory"):
        multiplied(given, wait=store + "wgmma.wait_group.sync.aligned 0;")
    with pytest.raises(PtxError, match="race in shared memory"):  # other warps may not be so far
        multiplied(given, wait="wgmma.wait_group.sync.aligned 0;" + store)
    multiplied(given, wait="wgmma.wait_group.sync.aligned 0; bar.sync 0;" + store)


# Thread 0 fetches a box of 8 rows of 64 channels to 1024, behind the barrier at 0; all read it.
FETCH = """
    setp.ne.u32 %p1, %r0, 0;
    @%p1 bra $ready;
    mbarrier.init.shared::cta.b64 [%r1], 1;
    fence.mbarrier_init.release.cluster;
    $ready: bar.sync 0;
    @%p1 bra $wait;
    mov.b64 %rd4, more;
    cvta.param.u64 %rd4, %rd4;
    mov.u32 %r3, {channel}; mov.u32 %r4, {token}; mov.u32 %r5, 0;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], {bytes};
    add.u32 %r6, %r1, 1024;
    cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%r6], [%rd4, {{%r3, %r4, %r5, %r5}}], [%r1];
    $wait: {{ .reg .pred over; mbarrier.try_wait.parity.shared::cta.b64 over, [%r1], {parity}; selp.u32 %r7, 1, 0, over; }}
    setp.eq.u32 %p2, %r7, 0;
    @{loop}%p2 bra $wait;
    mad.lo.u32 %r3, %r0, 16, %r1;
    ld.shared.v4.b32 {{%r20, %r21, %r22, %r23}}, [%r3+1024];
    mad.wide.u32 %rd4, %r0, 16, %rd0;
    st.global.v4.b32 [%rd4], {{%r20, %r21, %r22, %r23}};
"""


def fetched(x, channel=0, token=0, bytes=1024, parity=0, loop="", **how):
    tokens, channels = x.shape
    more = struct.pack("<Q4q3qq", x.data_ptr(), channels, tokens, 1, 1, 2 * channels, 2 * x.numel(), 2 * x.numel(), 8)
    body = FETCH.format(channel=channel, token=token, bytes=bytes, parity=parity, loop=loop)
    out = run(body, x.view(torch.int32), words=256, threads=64, more=more, **how)
    return torch.tensor(out, dtype=torch.int32).view(torch.bfloat16).view(8, 64)


@lates
@pytest.mark.parametrize(("channel", "token"), [(0, 0), (8, 3), (0, 9), (-4, 0)])
def test_a_box_is_fetched_swizzled_with_zeros_around(channel, token, late):
    x = torch.randn(12, 40).bfloat16()
    around = torch.zeros(64, 192, dtype=torch.bfloat16)
    around[8:20, 64:104] = x
    expected = swizzled(around[8 + token :, 64 + channel :][:8, :64].contiguous()).view(8, 64)
    assert torch.equal(fetched(x, channel, token, late=late), expected)


@lates
def test_a_box_that_is_not_waited_for(late):
    x = torch.randn(12, 64).bfloat16()
    with pytest.raises(PtxError, match="deadlock"):
        fetched(x, bytes=2048, late=late)
    with pytest.raises(PtxError, match=r"race in shared memory|deadlock"):
        fetched(x, parity=1, late=late)
    with pytest.raises(PtxError, match="not aligned to 1024"):
        body = FETCH.replace("%r1, 1024;", "%r1, 1152;").format(channel=0, token=0, bytes=1024, parity=0, loop="")
        run(body, x.view(torch.int32), words=256, threads=64, more=bytes(128))


ARRIVALS = """
    setp.eq.u32 %p1, %r0, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%r1], 32;
    bar.sync 0;
    mad.lo.u32 %r3, %r0, 4, %r1;
    setp.ge.u32 %p2, %r0, 32;
    @%p2 bra $wait;
    st.shared.b32 [%r3+128], %r0;
    mbarrier.arrive.shared::cta.b64 _, [%r1];
    ret;
    $wait: mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r1], PARITY;
    @!%p3 bra $wait;
    ld.shared.b32 %r5, [%r3];
    st.global.b32 [%rd2], %r5;
"""


@pytest.mark.parametrize("order", [0, 1, -1])
def test_arrivals_order_what_was_stored_before(order):
    assert run(ARRIVALS.replace("PARITY", "0"), threads=64, order=order)[32:] == list(range(32))
    with pytest.raises(PtxError, match=r"race in shared memory|deadlock"):
        run(ARRIVALS.replace("PARITY", "1"), threads=64, order=order)


def test_a_barrier_is_made_before_it_is_used():
    with pytest.raises(PtxError, match="an mbarrier that another thread initialises"):
        run(ARRIVALS.replace("PARITY", "0").replace("bar.sync 0;", ""), threads=64)


# Each block stores its number and reads that of its neighbour.
CLUSTER = """
    mov.u32 %r4, %cluster_ctarank;
    mad.lo.u32 %r3, %r0, 4, %r1;
    st.shared.b32 [%r3], %r4;
    {first}
    xor.b32 %r4, %r4, 1;
    mapa.shared::cluster.u32 %r5, %r3, %r4;
    ld.shared::cluster.b32 %r6, [%r5];
    {last}
    mov.u32 %r7, %ctaid.x;
    mad.lo.u32 %r7, %r7, 32, %r0;
    mad.wide.u32 %rd4, %r7, 4, %rd0;
    st.global.b32 [%rd4], %r6;
"""
SYNC = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;"


def test_blocks_of_a_cluster_read_each_other():
    out = run(CLUSTER.format(first=SYNC, last=SYNC), words=128, blocks=4, cluster=2, together=2)
    assert out == [1] * 32 + [0] * 32 + [1] * 32 + [0] * 32
    with pytest.raises(PtxError, match="race in shared memory"):
        run(CLUSTER.format(first="bar.sync 0;", last=SYNC), words=128, blocks=2, cluster=2)


def test_a_block_that_ends_while_others_read_from_it():
    early = "setp.eq.u32 %p1, %r4, 0; @%p1 ret;"
    with pytest.raises(PtxError, match="a block that has ended"):
        run(CLUSTER.format(first=SYNC + early, last=""), words=128, blocks=2, cluster=2)


def test_a_block_that_ends_when_others_have_read_by_luck():
    with pytest.raises(PtxError, match="a block that has ended"):
        run(CLUSTER.format(first=SYNC, last=""), words=64, blocks=2, cluster=2)


def test_a_block_that_comes_late_to_the_barrier_of_the_cluster():
    late = """
    setp.eq.u32 %p1, %r4, 1;
    @%p1 bra $late;
    $sync: barrier.cluster.arrive.release.aligned;
    barrier.cluster.wait.acquire.aligned;
    bra.uni $go;
    $late: add.u32 %r6, %r4, 6;
    st.shared.b32 [%r3], %r6;
    bra.uni $sync;
    $go:
    """
    out = run(CLUSTER.format(first=late, last=SYNC), words=64, blocks=2, cluster=2)
    assert out == [7] * 32 + [0] * 32
