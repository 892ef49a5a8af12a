# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Every backend of guidance against float64 truth."""

import math

import pytest
import torch

from nag_kernels import availability, guidance, reference, testing

SETTINGS = (5.0, 2.5, 0.25)
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
pytestmark = pytest.mark.parametrize("backend", ["cpu", "sdpa", "reference"], indirect=True)


def pair(*shape, dtype=torch.float32):
    return torch.randn(*shape, dtype=torch.float64).to(dtype), torch.randn(*shape, dtype=torch.float64).to(dtype)


def run(positive, negative, *settings, backend, rule="nag"):
    before = availability.counts()[backend]
    out = guidance(positive, negative, *settings, rule=rule, backend=backend)
    assert availability.counts()[backend] == before + 1
    return out


def check(out, positive, negative, *settings, rule="nag"):
    exact = reference.guidance(positive.double(), negative.double(), *settings, rule=rule)
    baseline = testing.error(testing.eager_guidance(positive, negative, *settings, rule=rule), exact)
    allowed = max(testing.MARGIN[positive.dtype] * baseline, testing.rounding_floor(positive.dtype))
    assert out.shape == positive.shape
    assert out.dtype == positive.dtype
    assert out.is_contiguous()
    assert testing.error(out, exact) <= allowed


@pytest.mark.parametrize("rule", ["nag", "nasa"])
@pytest.mark.parametrize("channels", [1, 5, 7, 8, 9, 31, 64, 65, 320, 1280])
@dtypes
def test_channels(channels, dtype, rule, backend):
    positive, negative = pair(2, 9, channels, dtype=dtype)
    check(run(positive, negative, *SETTINGS, backend=backend, rule=rule), positive, negative, *SETTINGS, rule=rule)


@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 3, 64), (2, 3, 4, 64), (0, 64), (2, 0, 64), (2, 3, 0)], ids=str)
def test_ranks_and_empty_shapes(shape, backend):
    positive, negative = pair(*shape)
    out = run(positive, negative, *SETTINGS, backend=backend)
    assert out.shape == torch.Size(shape)
    if out.numel():
        check(out, positive, negative, *SETTINGS)


@pytest.mark.parametrize(
    "settings", [(1.0, 2.5, 0.25), (5.0, math.inf, 1.0), (3.0, 1.0, 0.5), (-2.0, 0.5, 1.0)], ids=str
)
def test_settings(settings, backend):
    positive, negative = pair(2, 50, 96)
    check(run(positive, negative, *settings, backend=backend), positive, negative, *settings)


def test_settings_per_sample(backend):
    positive, negative = pair(2, 5, 96)
    tensors = [torch.tensor(x) for x in ([5.0, 1.0], [2.5, math.inf], [0.25, 0.5])]
    out = run(positive, negative, *tensors, backend=backend)
    assert torch.equal(out[0], run(positive[0], negative[0], *SETTINGS, backend=backend))
    torch.testing.assert_close(out[1], positive[1], rtol=1e-6, atol=1e-6)


@dtypes
def test_any_strides(dtype, backend):
    positive, negative = pair(3, 10, 64, dtype=dtype)
    expected = run(positive, negative, *SETTINGS, backend=backend)
    for view in (
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: x.repeat_interleave(2, -1)[..., ::2],
        lambda x: torch.cat([x, x], 1)[:, :10],
        lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    ):
        assert torch.equal(run(view(positive), view(negative), *SETTINGS, backend=backend), expected)


def test_equals_the_tail_of_the_attention(backend):
    inputs = testing.make_inputs(length=20, dtype=torch.float64)
    branches = testing.eager_branches(inputs)
    out = run(*branches, *SETTINGS, backend=backend)
    torch.testing.assert_close(out.view(inputs["query"].shape), testing.truth(inputs, *SETTINGS))


def test_zero_rows_and_a_nan_row(backend):
    positive, negative = pair(1, 6, 64)
    positive[:, 0], negative[:, 0], positive[:, 1], negative[:, 2] = 0, 0, 0, 0
    clean = run(positive, negative, *SETTINGS, backend=backend)
    assert torch.isfinite(clean).all()
    assert (clean[:, :2] == 0).all()  # |Z+| = 0 bounds |G| by 0
    positive[0, 4, 3] = float("nan")
    out = run(positive, negative, *SETTINGS, backend=backend)
    assert torch.isnan(out[0, 4]).any()
    assert torch.equal(out[:, [0, 1, 2, 3, 5]], clean[:, [0, 1, 2, 3, 5]])


def test_float16_stays_finite_where_the_eager_sum_overflows(backend):
    positive, negative = pair(1, 4, 2048, dtype=torch.float16)
    positive, negative = positive * 100, negative * 100
    assert not torch.isfinite(testing.eager_guidance(positive, negative, *SETTINGS)).all()
    exact = reference.guidance(positive.double(), negative.double(), *SETTINGS)
    assert testing.error(run(positive, negative, *SETTINGS, backend=backend), exact) < 5e-4
