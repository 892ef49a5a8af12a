# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Memory, branches, barriers and the race check of the PTX machine, on instructions written by hand."""

import pytest
import torch
from handwritten import run
from ptx_machine import PtxError

LATECOMERS = """
    mov.u32 %r5, %r0;
    setp.lt.u32 %p1, %r0, 16;
    @%p1 bra $far;
    $shuffle: shfl.sync.bfly.b32 %r6|%p2, %r5, 16, 31, -1;
    st.global.b32 [%rd2], %r6;
    ret;
    $far: add.u32 %r5, %r5, 100;
    bra.uni $shuffle;
"""


def test_lanes_that_come_first_are_held():
    assert run(LATECOMERS)[:32] == [*range(16, 32), *range(100, 116)]


STORE = "st.global.b32 [%rd2], %r5;"


def test_vectors_and_predicates():
    body = """
    and.b32 %r3, %r0, 3;
    setp.ne.s32 %p1, %r3, 0;
    @%p1 bra $end;
    ld.global.nc.v4.u32 {%r4, %r5, %r6, %r7}, [%rd3];
    add.s32 %r5, %r5, 100;
    st.global.v4.b32 [%rd2], {%r7, %r5, %r5, %r4};
    $end:
    """
    out = run(body, list(range(32)))
    assert out[:8] == [3, 101, 101, 0, 7, 105, 105, 4]
    assert out[32:] == [-1] * 32


OUTSIDE = {
    "a load behind the end": ("ld.global.b32 %r5, [%rd3+4];", "load of 4 bytes out of bounds"),
    "a load before the beginning": ("ld.global.b32 %r5, [%rd3+-4];", "out of bounds"),
    "a store behind the end": ("st.global.b32 [%rd2+1024], %r0;", "store of 4 bytes out of bounds"),
    "a store to what is read": ("st.global.b32 [%rd3], %r0;", "may only be read"),
    "a load that is not aligned": ("ld.global.v2.b32 {%r5, %r6}, [%rd3];", "not aligned"),
    "shared memory behind the end": ("add.s32 %r3, %r1, 4096; st.shared.b32 [%r3], %r0;", "out of bounds"),
    "shared memory not aligned": ("ld.shared.b32 %r5, [%r1+2];", "not aligned"),
    "two threads to one word": ("st.global.b32 [%rd0], %r0;", "two threads store to the same place in global"),
    "two blocks to one word": (
        "mov.u32 %r5, %ctaid.x; st.global.b32 [%rd2], %r5;", "two threads store to the same place in global"),
    "a word at two times": (
        "setp.lt.u32 %p1, %r0, 16; @%p1 st.global.b32 [%rd2], %r0; @!%p1 st.global.b32 [%rd2+-64], %r0;",
        "two threads store to the same place in global",
    ),
    "a thread that waits alone": ("setp.eq.u32 %p1, %r0, 0; @%p1 bra $e; bar.warp.sync -1; $e:", "deadlock"),
    "half a warp at a shuffle": ("shfl.sync.bfly.b32 %r5|%p1, %r0, 1, 31, 0xFFFF;", "a part of a warp"),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_wrong_is_said(name):
    body, said = OUTSIDE[name]
    with pytest.raises(PtxError, match=said):
        run(body, list(range(32)), blocks=2 if "blocks" in name else 1)


def test_bounds_are_those_of_the_tensor():
    """The last word may be read, the word behind it not, although it lies in this process's memory."""
    given = torch.arange(64, dtype=torch.int32)
    assert run("ld.global.b32 %r5, [%rd3+128];" + STORE, given)[:2] == [32, 33]
    with pytest.raises(PtxError, match="out of bounds"):
        run("ld.global.b32 %r5, [%rd3+132];" + STORE, given)


def test_threads_part_and_meet_again():
    """A loop that each thread leaves after as many rounds as its number."""
    body = """
    mov.u32 %r5, 0;
    mov.u32 %r6, 0;
    $loop: setp.ge.u32 %p1, %r6, %r0;
    @%p1 bra $done;
    add.u32 %r6, %r6, 1;
    add.u32 %r5, %r5, %r6;
    bra.uni $loop;
    $done: shfl.sync.bfly.b32 %r7|%p1, %r5, 1, 31, -1;
    st.global.b32 [%rd2], %r7;
    """
    for order in (0, 1, -1):
        assert run(body, threads=64, order=order) == [(k ^ 1) * ((k ^ 1) + 1) // 2 for k in range(64)]


EXCHANGE = """
    mad.lo.u32 %r3, %r0, 4, %r1;
    st.shared.b32 [%r3], %r0;
    {barrier}
    xor.b32 %r4, %r0, {distance};
    mad.lo.u32 %r4, %r4, 4, %r1;
    ld.shared.b32 %r5, [%r4];
    st.global.b32 [%rd2], %r5;
"""


@pytest.mark.parametrize("order", [0, 1, -1])
@pytest.mark.parametrize(("barrier", "distance"), [("bar.sync 0;", 32), ("bar.sync 0;", 1), ("bar.warp.sync -1;", 1)])
def test_a_barrier_orders(barrier, distance, order):
    out = run(EXCHANGE.format(barrier=barrier, distance=distance), threads=64, order=order)
    assert out == [k ^ distance for k in range(64)]


RACES = {
    "no barrier between warps": EXCHANGE.format(barrier="", distance=32),
    "no barrier in a warp": EXCHANGE.format(barrier="", distance=1),
    "a warp's barrier between warps": EXCHANGE.format(barrier="bar.warp.sync -1;", distance=32),
    "a shuffle is no barrier": EXCHANGE.format(barrier="shfl.sync.bfly.b32 %r6|%p1, %r0, 1, 31, -1;", distance=1),
    "a store after a load": "ld.shared.b32 %r5, [%r1]; xor.b32 %r4, %r0, 33; setp.eq.u32 %p1, %r0, 40; "
    "@%p1 st.shared.b32 [%r1], %r5;",
    "two stores": "and.b32 %r3, %r0, 31; mad.lo.u32 %r3, %r3, 4, %r1; setp.lt.u32 %p1, %r0, 32; "
    "@%p1 st.shared.b32 [%r3], %r0; @!%p1 st.shared.b32 [%r3], %r0;",
    "two stores at once": "and.b32 %r3, %r0, 31; mad.lo.u32 %r3, %r3, 4, %r1; st.shared.b32 [%r3], %r0;",
}


@pytest.mark.parametrize("name", RACES)
def test_races_are_seen(name):
    with pytest.raises(PtxError, match=r"race in shared memory|same place in shared memory"):
        run(RACES[name], threads=64)


def test_equal_stores_at_once_are_no_race():
    body = "and.b32 %r3, %r0, 31; mov.u32 %r5, %r3; mad.lo.u32 %r3, %r3, 4, %r1; st.shared.b32 [%r3], %r5;"
    assert run(f"{body} ld.shared.b32 %r5, [%r3]; {STORE}", threads=64, races=False)[:33] == [*range(32), 0]


def test_shared_memory_begins_as_nan_and_generic_addresses_find_it():
    body = "cvta.shared.u64 %rd4, %rd5; mad.wide.u32 %rd5, %r0, 4, %rd4; ld.b32 %r5, [%rd5];"
    assert run("cvt.u64.u32 %rd5, %r1;" + body + STORE)[:32] == [-1] * 32
    store = "mad.lo.u32 %r3, %r0, 4, %r1; st.shared.b32 [%r3], %r0;"
    assert run(store + "cvt.u64.u32 %rd5, %r1;" + body + STORE)[:32] == list(range(32))


def test_parameters_are_read_by_offset_and_address():
    """The window of parameters holds them as they were given."""
    more = bytes(range(64))
    out = run("ld.param.v2.u8 {%h1, %h2}, [more+6]; cvt.u32.u16 %r5, %h2;" + STORE, more=more)
    assert out[0] == 7
    with pytest.raises(PtxError, match="parameter load out of bounds"):
        run("ld.param.u32 %r5, [more+192];" + STORE, more=more)


def test_votes_and_elections():
    body = """
    setp.gt.u32 %p1, %r0, 29;
    vote.sync.ballot.b32 %r5, %p1, -1;
    vote.sync.any.pred %p2, %p1, -1;
    elect.sync %r6|%p3, -1;
    @%p3 add.u32 %r5, %r5, 1;
    @!%p2 mov.u32 %r5, 9;
    """
    assert run(body + STORE)[:3] == [(0b11 << 30) + 1 - (1 << 32), -(1 << 30), -(1 << 30)]


SHUFFLES = {
    "bfly.b32 %r5|%p1, %r0, 2, 31": lambda k: k ^ 2,
    "idx.b32 %r5|%p1, %r0, 3, 31": lambda k: 3,
    "idx.b32 %r5|%p1, %r0, 3, 0x181f": lambda k: k // 8 * 8 + 3,
    "up.b32 %r5|%p1, %r0, 1, 0": lambda k: max(k - 1, 0),
    "down.b32 %r5|%p1, %r0, 1, 31": lambda k: min(k + 1, 31),
}


@pytest.mark.parametrize("name", SHUFFLES)
def test_shuffles(name):
    assert run(f"shfl.sync.{name}, -1;" + STORE)[:32] == [SHUFFLES[name](k) for k in range(32)]
