# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is the cluster kernel's alone, on the emulated device: blocks that share queries, tiles of the bulk copy engine, kept
heads, and the ways in which it could be broken. What every form must hold is in test_cuda_kernels.py."""

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import emulated
import pytest
import torch
from test_cuda_kernels import OWN, SETTINGS, make_inputs, run

from nag_kernels import gpu_table, testing

pytestmark = pytest.mark.slow  # it compiles

rules = pytest.mark.parametrize("rule", OWN)
sizes = pytest.mark.parametrize("size", [64, 96, 128])


@pytest.fixture(scope="module")
def native():
    return emulated.module()


@rules
@sizes
def test_long_segments(native, rule, size):
    """More tiles than a block has slots, and a rest; text of which the softmax has to rise and of which it does not."""
    inputs = make_inputs(length=140, heads=2, size=size, positive=600, negative=700, shared=1300)
    inputs["key_negative"] *= 3
    out = run(inputs, *OWN[rule], rule=rule, form="cluster")
    testing.assert_within_baseline(out, inputs, *OWN[rule], rule=rule)


@rules
@sizes
def test_the_copy_engine_or_threads_the_same_bits(native, rule, size):
    inputs = make_inputs(batch=2, length=70, heads=2, size=size, positive=77, negative=200, shared=130)
    expected = run(inputs, *SETTINGS, rule=rule, form="cluster")
    assert torch.equal(run(inputs, *SETTINGS, rule=rule, form="cluster", maps=False), expected)
    seen = {f"mask_{part}": torch.ones(2, inputs[f"key_{part}"].shape[1], dtype=torch.bool)
            for part in ("positive", "negative", "shared")}  # fmt: skip
    assert torch.equal(run(inputs | seen, *SETTINGS, rule=rule, form="cluster"), expected)


@rules
@pytest.mark.parametrize("blocks", range(1, 6))
def test_any_number_of_blocks(native, rule, blocks):
    """Of five heads a block keeps none to four; the norms of all meet."""
    inputs = make_inputs(length=130, heads=5, size=64, positive=9, negative=12, shared=20)
    out = run(inputs, *OWN[rule], rule=rule, form="cluster", blocks=blocks)
    testing.assert_within_baseline(out, inputs, *OWN[rule], rule=rule)


@sizes
def test_kept_heads_of_any_magnitude(native, size):
    """Each thread's numbers have a scale of their own: a head of 1e30, one of 1e-30, one of zeros, one outlying channel."""
    inputs = make_inputs(length=20, heads=4, size=size, positive=9, negative=12)
    factors = torch.tensor([1e30, 1e-30, 0.0, 1.0])[:, None]
    for part in ("positive", "negative"):
        inputs[f"value_{part}"] = (inputs[f"value_{part}"] * factors).to(torch.bfloat16)
        inputs[f"value_{part}"][..., 3, 5] *= 1000
    out = run(inputs, 5.0, math.inf, 0.25, form="cluster", blocks=1)
    exact = testing.truth(inputs, 5.0, math.inf, 0.25)
    eager = testing.eager(inputs, 5.0, math.inf, 0.25)
    for head in (0, 1, 3):
        for channels in (slice(5, 6), slice(6, None)):
            mine, others = (testing.error(x[:, :, head, channels], exact[:, :, head, channels]) for x in (out, eager))
            assert mine <= max(0.8 * others, 2**-9), (head, channels, mine, others)  # a few numbers: luck
    assert (out[:, :, 2] == 0).all()


@pytest.mark.parametrize("maps", [True, False])
def test_threads_in_any_order_and_copies_early_or_late_the_same_bits(native, maps):
    inputs = make_inputs(length=150, heads=3, size=64, positive=150, negative=300, shared=520)
    first, *others = (
        run(inputs, *SETTINGS, form="cluster", maps=maps, blocks=2, order=order, early=early)
        for order, early in ((0, False), (0, True), (1, False), (1, True), (7, False), (8, True))
    )
    assert all(torch.equal(first, other) for other in others)
    testing.assert_within_baseline(first, inputs, *SETTINGS)


def test_the_plan(native):
    """Every number of heads that Python lets through has a place on an H100, and no other; no places are wasted for nothing."""
    for size, heads in itertools.product((64, 128), range(1, 65)):
        blocks, each, slots, shared = native.cluster_plan(heads, size)
        assert (blocks > 0) == (heads <= gpu_table.CLUSTER_MAX_HEADS[size])
        if blocks:
            assert blocks <= 8
            assert blocks * (each - 1) < heads <= blocks * each
            assert 4 <= slots <= 8
            assert shared <= 227 << 10
    assert native.cluster_plan(24, 128)[:2] == (8, 3)  # Flux
    assert native.cluster_plan(38, 64)[:2] == (8, 5)  # SD3.5 Large
    assert native.cluster_plan(12, 128)[:2] == (6, 2)  # Wan 1.3B
    assert max(gpu_table.CLUSTER_MAX_HEADS) == native.CLUSTER_MAX_SIZE


def test_matrix_descriptors_are_those_of_another_compiler(native):
    """Triton lays out the same two tiles of 64 keys x 128 channels, and its code runs on GPUs: the numbers in its PTX."""
    pytest.importorskip("triton", reason="triton is not here: not installed")
    script = Path(__file__).parent / "native" / "triton_compile.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script, "numbers"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers = set(json.loads(done.stdout.splitlines()[-1]))
    keys, values = (native.matrix_descriptor(0, leading, 1024) for leading in (0, 8192))
    assert keys in numbers
    assert values - keys in numbers
    assert {(step % 4 * 32 + step // 4 * 8192) >> 4 for step in range(1, 8)} <= numbers  # 16 channels further each
    assert {(values - keys) + (step * 2048 >> 4) for step in range(1, 4)} <= numbers  # 16 keys further each
