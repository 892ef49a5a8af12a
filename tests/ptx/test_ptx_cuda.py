# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""nvcc's PTX of the kernels of csrc/cuda, executed, against float64. `make test` runs a sample, `make ptx-check` all."""

import math

import cuda_ptx
import pytest
import torch
from test_cuda_kernels import CASES, OWN, SETTINGS

from nag_kernels import reference, testing

LACKS = cuda_ptx.missing()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(LACKS is not None, reason=f"the PTX of the CUDA kernels is not here: {LACKS}"),
]

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
check = pytest.mark.ptx_check
forms = pytest.mark.parametrize("form", ["text", "branches", "cluster"])


def make_inputs(**options):
    return testing.make_inputs(**{"dtype": torch.bfloat16} | options)


def run(form, inputs, settings=SETTINGS, rule="nag", launcher=None, **how):
    launcher = launcher or cuda_ptx.Launcher()
    return getattr(launcher, form)(inputs, settings, rule, **how)


def assert_right(form, inputs, settings=SETTINGS, rule="nag", launcher=None, **how):
    out = run(form, inputs, settings, rule, launcher, **how)
    testing.assert_within_baseline(out, inputs, *settings, rule=rule)


# --- the sample ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
def test_text(keep):
    """More heads than warps, masks, a tail of queries and of keys; Z+ and Z- kept, or computed twice."""
    inputs = make_inputs(length=20, heads=9, size=64, positive=33, negative=20, masks=True)
    assert_right("text", inputs, keep=keep)


@pytest.mark.parametrize("late", [True, False])
def test_branches(late):
    inputs = make_inputs(length=130, heads=1, size=64, positive=70, negative=140, shared=150, masks=True)
    assert_right("branches", inputs, launcher=cuda_ptx.Launcher(late=late))


@pytest.mark.parametrize("late", [True, False])
def test_cluster(late):
    """Two blocks of a cluster with two heads and one, and more tiles than they have slots, fetched by the copy engine."""
    inputs = make_inputs(length=40, heads=3, size=64, positive=140, negative=150, shared=300)
    assert_right("cluster", inputs, launcher=cuda_ptx.Launcher(late=late), blocks=2, slots=4)


def test_cluster_with_masks():
    """Masks and rows fetched by threads."""
    inputs = make_inputs(length=20, heads=2, size=64, positive=70, negative=33, shared=130, masks=True)
    assert_right("cluster", inputs, blocks=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", ["nag", "nasa"])
def test_guidance(dtype, rule):
    positive, negative = torch.randn(2, 3, 2056).to(dtype).unbind(0)
    out = cuda_ptx.Launcher().guidance(positive, negative, SETTINGS, rule, torch.bfloat16)
    exact = reference.guidance(positive.double(), negative.double(), *SETTINGS, rule=rule)
    bound = 2 * torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(out.double(), exact, rtol=bound, atol=8 * bound)


# --- all ---------------------------------------------------------------------------------------------------------------------


FORMS = [(case, form, dtype) for case, options in CASES.items() for form in ("text", "branches", "cluster") for dtype in DTYPES
         if (form != "text" or "shared" not in options) and (form != "cluster" or dtype == "bf16")]  # fmt: skip


@check
@pytest.mark.parametrize("rule", OWN)
@pytest.mark.parametrize(("case", "form", "dtype"), FORMS)
def test_cases(case, form, dtype, rule):
    inputs = make_inputs(**{"length": 66, "heads": 2, "size": 24, "dtype": DTYPES[dtype], **CASES[case]})
    how = {"tiles": 2, "keep": case != "cross masks"} if form == "text" else {}
    assert_right(form, inputs, OWN[rule], rule, **how)


SIZES = {"text": (8, 16, 24, 40, 48, 64, 72, 80, 112, 128, 152, 160), "cluster": (8, 40, 64, 72, 96, 128),
         "branches": (8, 40, 64, 72, 96, 112, 128, 160, 192, 248, 256)}  # fmt: skip


@check
@pytest.mark.parametrize(("form", "size"), [(form, size) for form, sizes in SIZES.items() for size in sizes])
def test_head_sizes(form, size):
    for dtype in DTYPES.values() if form != "cluster" else [torch.bfloat16]:
        shared = {} if form == "text" else {"shared": 70}
        heads = 8 if size < 16 else 2  # the error of a few numbers is luck
        inputs = make_inputs(length=64, heads=heads, size=size, positive=9, negative=40, dtype=dtype, **shared)
        assert_right(form, inputs)


@check
@pytest.mark.parametrize("chip", ["90", "100", "120"])
@pytest.mark.parametrize("form", ["text", "branches"])
def test_other_chips(form, chip):
    """The PTX that nvcc writes for newer GPUs."""
    shared = {} if form == "text" else {"shared": 70}
    for dtype in DTYPES.values():
        inputs = make_inputs(length=66, heads=2, size=64, positive=77, negative=33, masks=True, dtype=dtype, **shared)
        assert_right(form, inputs, launcher=cuda_ptx.Launcher(chip))


@check
@forms
def test_warps_in_any_order_and_copies_early_or_late_the_same_bits(form):
    shared = {} if form == "text" else {"shared": 150}
    inputs = make_inputs(length=40, heads=3, size=64, positive=150, negative=130, **shared)
    how = {"blocks": 2} if form == "cluster" else {}
    first, *others = (
        run(form, inputs, launcher=cuda_ptx.Launcher(late=late, order=order), **how)
        for late, order in ((True, 0), (False, 0), (True, 1), (False, -1))
    )
    assert all(torch.equal(first, other) for other in others)
    testing.assert_within_baseline(first, inputs, *SETTINGS)


@check
@forms
@pytest.mark.parametrize("rule", OWN)
def test_alone_or_in_a_batch_the_same_bits(rule, form):
    shared = {} if form == "text" else {"shared": 20}
    inputs = make_inputs(batch=3, length=37, heads=2, size=16, positive=9, negative=7, masks=True, **shared)
    whole = run(form, inputs, OWN[rule], rule)
    for b in range(3):
        alone = {name: x[b : b + 1].clone() for name, x in inputs.items()}
        assert torch.equal(run(form, alone, OWN[rule], rule)[0], whole[b])


@check
@forms
def test_settings_per_sample(form):
    inputs = make_inputs(batch=2, length=9, heads=2, size=16, positive=5, negative=7)
    tensors = tuple(torch.tensor(x) for x in ([1.0, 5.0], [math.inf, 2.5], [0.25, 0.25]))
    out = run(form, inputs, tensors)
    for sample in (0, 1):
        assert torch.equal(out[sample], run(form, inputs, tuple(float(x[sample]) for x in tensors))[sample])


@check
@forms
def test_any_strides(form):
    inputs = make_inputs(batch=2, length=33, heads=2, size=16, positive=9, negative=7)
    turned = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in inputs.items()}
    assert torch.equal(run(form, turned), run(form, inputs))


@check
@forms
@pytest.mark.parametrize("rule", OWN)
def test_what_is_not_seen_does_not_come_through(rule, form):
    """NaN in masked keys and values changes nothing; NaN in one query stays in its token."""
    shared = {} if form == "text" else {"shared": 6}
    inputs = make_inputs(batch=2, length=9, heads=2, size=16, positive=9, negative=7, masks=True, **shared)
    expected = run(form, inputs, OWN[rule], rule)
    for part in ("positive", "negative", *shared):
        for kind in ("key", "value"):
            inputs[f"{kind}_{part}"][~inputs[f"mask_{part}"]] = math.nan
    assert torch.equal(run(form, inputs, OWN[rule], rule), expected)
    inputs["query"][1, 4, 0] = math.nan
    out = run(form, inputs, OWN[rule], rule)
    assert out[1, 4].isnan().any()
    expected[1, 4] = out[1, 4] = 0
    assert torch.equal(out, expected)


@check
@pytest.mark.parametrize("rule", OWN)
@pytest.mark.parametrize("size", [64, 128])
def test_cluster_with_long_segments(rule, size):
    """Rings that wrap; text of which the softmax has to rise and of which it does not."""
    inputs = make_inputs(length=40, heads=2, size=size, positive=300, negative=500, shared=700)
    inputs["key_negative"] *= 3
    assert_right("cluster", inputs, OWN[rule], rule)


@check
@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_cluster_of_any_number_of_blocks(blocks):
    inputs = make_inputs(length=130, heads=8 if blocks == 8 else 5, size=64, positive=9, negative=12, shared=20)
    assert_right("cluster", inputs, blocks=blocks)


@check
@pytest.mark.parametrize("size", [64, 128])
def test_cluster_by_the_copy_engine_or_threads_the_same_bits(size):
    inputs = make_inputs(batch=2, length=70, heads=2, size=size, positive=77, negative=200, shared=130)
    assert torch.equal(run("cluster", inputs, maps=False), run("cluster", inputs))


@check
@pytest.mark.parametrize(
    "types", [(x, y) for x in cuda_ptx.ELEMENTS for y in cuda_ptx.ELEMENTS if x in (y, torch.float32)], ids=str
)
@pytest.mark.parametrize("rule", ["nag", "nasa"])
@pytest.mark.parametrize(("channels", "vectors"), [(8, True), (320, True), (9000, True), (7, False), (1301, False)])
def test_guidance_of_all_types(types, channels, vectors, rule):
    positive, negative = torch.randn(2, 3, channels).to(types[0]).unbind(0)
    out = cuda_ptx.Launcher().guidance(positive, negative, SETTINGS, rule, types[1], vectors=vectors)
    exact = reference.guidance(positive.double(), negative.double(), *SETTINGS, rule=rule)
    bound = 2 * torch.finfo(types[1]).eps
    torch.testing.assert_close(out.double(), exact, rtol=bound, atol=8 * bound)


@check
def test_guidance_of_strided_rows_and_settings_per_row():
    positive, negative = torch.randn(2, 3, 64)[:, :, :40].unbind(0)
    tensors = tuple(torch.tensor(x) for x in ([1.0, 5.0, 3.0], [math.inf, 2.5, 1.0], [0.25, 0.25, 0.5]))
    out = cuda_ptx.Launcher().guidance(positive, negative, tensors, samples=3)
    torch.testing.assert_close(out, reference.guidance(positive, negative, *tensors), rtol=1e-5, atol=1e-6)
