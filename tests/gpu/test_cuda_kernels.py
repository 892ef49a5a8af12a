# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels' own text, run thread by thread on the CPU (emulated.py): index maps, masks, bounds, barriers, and the
row factors and softmax states that CPU and CUDA share. No GPU is involved."""

import itertools
import math

import emulated
import pytest
import torch

from nag_kernels import reference, testing

pytestmark = pytest.mark.slow  # it compiles

SETTINGS = (5.0, 2.5, 0.25)
OWN = {"nag": SETTINGS, "nasa": (0.5, 2.5, 0.25), "vsf": (3.5, 2.5, 0.25)}
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
rules = pytest.mark.parametrize("rule", OWN)
forms = pytest.mark.parametrize("form", ["text", "branches", "cluster"])


@pytest.fixture(scope="module")
def native():
    return emulated.module()


def make_inputs(**options):
    return testing.make_inputs(**{"dtype": torch.bfloat16} | options)


def run(inputs, *settings, rule="nag", **how):
    return emulated.fused_guided_attention(**testing.with_settings(inputs, settings), rule=rule, **how)


CASES = {
    "cross": {"positive": 12, "negative": 9},
    "joint": {"positive": 12, "negative": 70, "shared": 70},
    "masks": {"batch": 2, "positive": 12, "negative": 20, "shared": 33, "masks": True},
    "cross masks": {"batch": 2, "positive": 33, "negative": 20, "masks": True},
    "grouped queries": {"heads": 6, "kv_heads": 2, "positive": 9, "negative": 9, "shared": 20},
    "grouped queries, cross": {"heads": 6, "kv_heads": 2, "positive": 9, "negative": 17},
    "negative of batch 1": {"batch": 3, "negative_batch": 1, "positive": 9, "negative": 9, "masks": True},
    "bias": {"positive": 12, "negative": 9, "shared": 63, "bias": math.log(3)},
    "more heads than warps": {"heads": 19, "size": 16, "positive": 77, "negative": 77, "length": 20},
    "empty negative": {"positive": 9, "negative": 0, "shared": 33},
    "empty positive": {"positive": 0, "negative": 9},
    "both texts empty": {"positive": 0, "negative": 0},
}
FORMS = [(case, form) for case, options in CASES.items() for form in ("text", "branches", "cluster")
         if form != "text" or "shared" not in options]  # fmt: skip


@dtypes
@rules
@pytest.mark.parametrize(("case", "form"), FORMS)
def test_cases(native, case, form, rule, dtype):
    if form == "cluster" and dtype != torch.bfloat16:
        pytest.skip("the cluster kernel takes bfloat16")
    inputs = make_inputs(**{"length": 66, "heads": 2, "size": 24, "dtype": dtype, **CASES[case]})
    out = run(inputs, *OWN[rule], rule=rule, form=form, tiles=2, keep=case != "cross masks")
    testing.assert_within_baseline(out, inputs, *OWN[rule], rule=rule)


@forms
@pytest.mark.parametrize("size", [*range(8, 161, 8), 168, 192, 200, 248, 256])
def test_head_sizes(native, size, form):
    if form == "text" and size > 160:
        pytest.skip("the one-launch kernel ends at head size 160")
    if form == "cluster" and size > 128:
        pytest.skip("the cluster kernel ends at head size 128")
    dtype = torch.bfloat16 if form == "cluster" else torch.float16
    inputs = make_inputs(size=size, heads=2, length=64, positive=9, negative=12, dtype=dtype)
    testing.assert_within_baseline(run(inputs, *SETTINGS, form=form), inputs, *SETTINGS)


@forms
@pytest.mark.parametrize("length", [1, 31, 32, 33])
@pytest.mark.parametrize("text", [0, 1, 7, 64, 65])
def test_lengths(native, length, text, form):
    shared = 0 if form == "text" else text // 7
    inputs = make_inputs(length=length, positive=text, negative=65 - text, shared=shared, heads=2, size=16)
    for rule in ("nag", "vsf"):
        out = run(inputs, *OWN[rule], rule=rule, form=form)
        testing.assert_within_baseline(out, inputs, *OWN[rule], rule=rule)


@rules
def test_kept_or_computed_twice_one_tile_or_two_the_same_bits(native, rule):
    inputs = make_inputs(length=50, heads=3, size=40, positive=20, negative=9)
    first, *others = (
        run(inputs, *OWN[rule], rule=rule, form="text", keep=keep, tiles=tiles)
        for keep, tiles in itertools.product((True, False), (1, 2))
    )
    assert all(torch.equal(first, other) for other in others)


@forms
def test_threads_in_any_order_and_copies_early_or_late_the_same_bits(native, form):
    """A missing barrier, or a stage overwritten before all have read it, would show."""
    inputs = make_inputs(length=40, heads=3, size=64, positive=150, negative=130)
    first, *others = (
        run(inputs, *SETTINGS, form=form, order=order, early=early)
        for order, early in ((0, False), (0, True), (1, False), (1, True), (7, False), (8, True))
    )
    assert all(torch.equal(first, other) for other in others)
    testing.assert_within_baseline(first, inputs, 5.0, 2.5, 0.25)


@forms
@rules
def test_alone_or_in_a_batch_the_same_bits(native, rule, form):
    shared = {} if form == "text" else {"shared": 20}
    inputs = make_inputs(batch=3, length=37, heads=2, size=16, positive=9, negative=7, masks=True, **shared)
    whole = run(inputs, *SETTINGS, rule=rule, form=form)
    for b in range(3):
        alone = {name: x[b : b + 1] for name, x in inputs.items()}
        assert torch.equal(run(alone, *SETTINGS, rule=rule, form=form)[0], whole[b])


@forms
@rules
def test_settings_per_sample(native, rule, form):
    inputs = make_inputs(batch=2, length=9, heads=2, size=16, positive=5, negative=7)
    tensors = [torch.tensor(x) for x in ([1.0, 5.0], [math.inf, 2.5], [0.25, 0.25])]
    out = run(inputs, *tensors, rule=rule, form=form)
    for sample in (0, 1):
        alone = run(inputs, *(float(x[sample]) for x in tensors), rule=rule, form=form)
        assert torch.equal(out[sample], alone[sample])
    assert not torch.equal(out[0], run(inputs, *SETTINGS, rule=rule, form=form)[0])


@forms
def test_any_strides(native, form):
    inputs = make_inputs(batch=2, length=33, heads=2, size=16, positive=9, negative=7)
    turned = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in inputs.items()}
    assert torch.equal(run(turned, *SETTINGS, form=form), run(inputs, *SETTINGS, form=form))


@forms
@rules
def test_what_is_not_seen_does_not_come_through(native, rule, form):
    """NaN in masked keys and values changes nothing; NaN in one query stays in its token."""
    shared = {} if form == "text" else {"shared": 6}
    inputs = make_inputs(batch=2, length=9, heads=2, size=16, positive=9, negative=7, masks=True, **shared)
    expected = run(inputs, *SETTINGS, rule=rule, form=form)
    for part in ("positive", "negative", *shared):
        for kind in ("key", "value"):
            inputs[f"{kind}_{part}"][~inputs[f"mask_{part}"]] = math.nan
    assert torch.equal(run(inputs, *SETTINGS, rule=rule, form=form), expected)
    inputs["query"][1, 4, 0] = math.nan
    out = run(inputs, *SETTINGS, rule=rule, form=form)
    assert out[1, 4].isnan().any()
    expected[1, 4] = out[1, 4] = 0
    assert torch.equal(out, expected)


def test_a_stride_beyond_32_bits(native):
    """Offsets are 64-bit: rows 2^31 elements apart, in memory of which only those rows are ever touched."""
    inputs = make_inputs(length=2, heads=2, size=16, positive=2, negative=2)
    forms = ("text", "branches", "cluster")
    expected = [run(inputs, *SETTINGS, form=form) for form in forms]
    far = torch.empty(2**31 + 64, dtype=torch.bfloat16)
    for name in ("query", "key_positive", "value_negative"):
        apart = far.as_strided((1, 2, 2, 16), (0, 2**31, 16, 1))
        apart.copy_(inputs[name])
        found = [run(inputs | {name: apart}, *SETTINGS, form=form) for form in forms]
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


# --- guidance -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES.values()], ids=str)
@pytest.mark.parametrize("rule", ["nag", "nasa"])
@pytest.mark.parametrize(
    ("channels", "threads", "vector"), [(8, 32, 8), (320, 32, 8), (2056, 64, 8), (7, 32, 1), (301, 64, 1)]
)
def test_guidance(native, channels, threads, vector, rule, dtype):
    positive, negative = torch.randn(2, 3, channels).to(dtype).unbind(0)
    out = emulated.guidance(positive, negative, *SETTINGS, rule=rule, threads=threads, vector=vector)
    exact = reference.guidance(positive.double(), negative.double(), *SETTINGS, rule=rule)
    bound = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), exact, rtol=bound, atol=8 * bound)


def test_guidance_of_strided_rows_and_settings_per_row(native):
    positive, negative = torch.randn(2, 3, 64)[:, :, :40].unbind(0)
    tensors = [torch.tensor(x) for x in ([1.0, 5.0, 3.0], [math.inf, 2.5, 1.0], [0.25, 0.25, 0.5])]
    out = emulated.guidance(positive, negative, *tensors)
    torch.testing.assert_close(out, reference.guidance(positive, negative, *tensors), rtol=1e-5, atol=1e-6)


# --- what CPU and CUDA share -----------------------------------------------------------------------------------------------


def test_row_factors(native):
    for positive, guided, scale, tau, alpha in itertools.product(
        (0.0, 1.5, 1e30), (0.0, 2.0, 1e30), (1.0, 5.0, -2.0), (0.5, 2.5, math.inf), (0.0, 0.25, 1.0)
    ):
        a, b = native.factors(positive, guided, scale, tau, alpha)
        f = min(1.0, tau * positive / guided) if guided and not math.isinf(tau) else 1.0
        assert a == pytest.approx(alpha * f * scale + 1 - alpha, rel=1e-5, abs=1e-6)
        assert b == pytest.approx(alpha * f * (scale - 1), rel=1e-5, abs=1e-6)
    assert native.factors(3.0, 3.0, 1.0, 2.5, 0.3) == (1.0, 0.0)


def test_softmax_state(native):
    steps = [[-1.0, 3.0], [], [200.0, 199.0], [-math.inf], [7.0]]
    maximum, total, fades, weight = native.softmax(steps)
    logits = torch.tensor([x for step in steps for x in step], dtype=torch.float64) * math.log(2)
    assert maximum == 200.0
    assert total == pytest.approx(float((logits - 200 * math.log(2)).exp().sum()), rel=1e-6)
    assert (fades[0], fades[1], fades[3], fades[4]) == (0.0, 1.0, 1.0, 1.0)
    assert weight == pytest.approx(1 / total)
    assert native.softmax([])[1:] == (0.0, [], 0.0)
    assert native.softmax([[-math.inf]])[1:] == (0.0, [0.0], 0.0)  # base 0: exp2(-inf) and no NaN
    assert math.isnan(native.softmax([[math.nan]])[1])


def test_softmax_merge(native):
    both = native.softmax([[1.0, 5.0], [4.0, -2.0]])
    first, second = native.softmax([[1.0, 5.0]]), native.softmax([[4.0, -2.0]])
    x, y = native.merge(first[:2], second[:2])
    assert x * first[1] + y * second[1] == pytest.approx(1.0)
    assert x * first[1] == pytest.approx((2.0 ** (1 - 5) + 1) / both[1], rel=1e-6)
    nothing = (-math.inf, 0.0)
    assert native.merge(nothing, nothing) == (0.0, 0.0)
    assert native.merge(first[:2], nothing)[0] == pytest.approx(1 / first[1])
    assert native.merge((500.0, 1.0), (-500.0, 1.0)) == (1.0, 0.0)


def test_tile_tables(native):
    """What the tiles come to in shared memory fits the chips: 99 KiB on sm_86, sm_89 and sm_120, the least of all."""
    assert all(x <= 99 << 10 for x in native.branch_shared_bytes())
    for size in native.TEXT_SIZES:
        for tiles in (1, 2) if size <= 64 else (1,):
            assert native.text_shared_bytes(size, tiles, 24, False) <= 99 << 10
    assert list(native.TEXT_SIZES) == sorted(native.TEXT_SIZES)
    assert list(native.BRANCH_SIZES) == sorted(native.BRANCH_SIZES)
