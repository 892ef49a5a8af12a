# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Every backend of fused_guided_attention against float64 truth, and the wrong formulas against the same comparator."""

import math

import pytest
import torch

from nag_kernels import availability, fused_guided_attention, testing

SETTINGS = (5.0, 2.5, 0.25)
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "f64": torch.float64}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
OWN = {"nag": SETTINGS, "nasa": (0.5, 2.5, 0.25), "vsf": (3.5, 2.5, 0.25)}  # what each rule is tried with
rules = pytest.mark.parametrize("rule", OWN)

CASES = {
    "cross": {}, "cross, long": {"length": 130, "heads": 8, "positive": 300, "negative": 300},
    "joint": {"length": 260, "heads": 4, "positive": 77, "negative": 77, "shared": 300},
    "unequal texts": {"positive": 9, "negative": 77, "shared": 65}, "grouped queries": {"heads": 6, "kv_heads": 2, "shared": 64},
    "masks": {"batch": 2, "positive": 33, "negative": 20, "shared": 70, "masks": True},
    "cross masks": {"batch": 2, "positive": 33, "negative": 20, "masks": True},
    "negative of batch 1": {"batch": 3, "negative_batch": 1, "shared": 17},
    "bias": {"positive": 12, "negative": 9, "shared": 63, "bias": math.log(3)}, "one head": {"heads": 1},
    "empty negative": {"negative": 0, "shared": 33}, "empty negative, cross": {"negative": 0},
    "empty positive": {"positive": 0, "shared": 33}, "empty positive, cross": {"positive": 0},
}  # fmt: skip


def run(inputs, *settings, backend, rule="nag"):
    """The call on a named backend, which is seen to have run."""
    before = availability.counts()[backend]
    out = fused_guided_attention(**inputs, **dict(zip(("nag_scale", "nag_tau", "nag_alpha"), settings, strict=True)),
                                 rule=rule, backend=backend)  # fmt: skip
    assert availability.counts()[backend] == before + 1
    return out


@dtypes
@rules
@pytest.mark.parametrize("case", CASES)
def test_cases(case, rule, dtype, backend):
    check(testing.make_inputs(dtype=dtype, **CASES[case]), backend, rule)


def check(inputs, backend, rule="nag"):
    out = run(inputs, *OWN[rule], backend=backend, rule=rule)
    testing.assert_within_baseline(out, inputs, *OWN[rule], rule=rule, rounded=backend == "sdpa")


@pytest.mark.parametrize("bias", [-0.7, math.log(3)])
@dtypes
def test_a_bias_without_shared_keys_in_vsf(bias, dtype, backend):
    """There it does not cancel: text- competes with text+ in one softmax."""
    inputs = testing.make_inputs(batch=2, positive=12, negative=9, masks=True, bias=bias, dtype=dtype)
    check(inputs, backend, "vsf")


@pytest.mark.parametrize("shared", [0, 40])
@dtypes
@pytest.mark.parametrize("size", [32, 40, 64, 72, 80, 96, 112, 128, 160, 256])
def test_head_sizes_of_real_models(size, dtype, shared, backend):
    inputs = testing.make_inputs(size=size, heads=3, length=65, positive=20, negative=13, shared=shared, dtype=dtype)
    for rule in ("nag", "vsf"):
        check(inputs, backend, rule)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 17, 24, 33, 300])
@pytest.mark.parametrize("rule", ["nag", "vsf"])
def test_any_head_size(rule, size, backend):
    check(testing.make_inputs(size=size, heads=2, length=65, positive=5, negative=7, shared=3), backend, rule)


LENGTHS = [0, 1, 7, 9, 12, 63, 64, 65]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("text", LENGTHS)
def test_lengths(length, text, backend):
    for shared in (0, 65):
        inputs = testing.make_inputs(length=length, positive=text, negative=77 - text, shared=shared, heads=2, size=40)
        for rule in ("nag", "vsf"):
            check(inputs, backend, rule)


@pytest.mark.parametrize("shared", LENGTHS[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_shared_lengths(shared, dtype, backend):
    inputs = testing.make_inputs(length=65, positive=9, negative=12, shared=shared, heads=2, dtype=dtype)
    for rule in ("nag", "vsf"):
        check(inputs, backend, rule)


@rules
def test_empty_batch(rule, backend):
    inputs = testing.make_inputs(batch=0, shared=4)
    assert run(inputs, *OWN[rule], backend=backend, rule=rule).shape == inputs["query"].shape


@rules
def test_no_keys_at_all(rule, backend):
    inputs = testing.make_inputs(length=9, positive=0, negative=0)
    assert (run(inputs, *OWN[rule], backend=backend, rule=rule) == 0).all()


@pytest.mark.parametrize("settings", [(1.0, 2.5, 0.25), (5.0, math.inf, 1.0), (3.0, 1.0, 0.5), (8.0, 1.2, 0.5),
                                      (0.0, 2.5, 0.25), (-2.0, 0.5, 1.0), (5.0, 2.5, 0.0)], ids=str)  # fmt: skip
@dtypes
def test_settings(settings, dtype, backend):
    inputs = testing.make_inputs(length=20, positive=12, negative=30, shared=40, dtype=dtype)
    testing.assert_within_baseline(run(inputs, *settings, backend=backend), inputs, *settings)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1.0, 30.0])
@dtypes
def test_scales_of_vsf(scale, dtype, backend):
    """tau and alpha are not used."""
    inputs = testing.make_inputs(length=20, positive=12, negative=30, shared=40, dtype=dtype)
    out = run(inputs, scale, 2.5, 0.25, backend=backend, rule="vsf")
    testing.assert_within_baseline(out, inputs, scale, 2.5, 0.25, rule="vsf")
    assert torch.equal(run(inputs, scale, 0.1, 1.0, backend=backend, rule="vsf"), out)


@rules
def test_settings_as_tensors_equal_floats_bit_for_bit(rule, backend):
    inputs = testing.make_inputs(batch=2, shared=10)
    tensors = [torch.tensor(x) for x in OWN[rule]]
    expected = run(inputs, *OWN[rule], backend=backend, rule=rule)
    assert torch.equal(run(inputs, *tensors, backend=backend, rule=rule), expected)


def test_settings_per_sample(backend):
    """Scale 1 and no clip on the unconditional rows of a batch that also does CFG: they are plain attention."""
    inputs = testing.make_inputs(batch=2, shared=10, length=33)
    scale, tau, alpha = torch.tensor([1.0, 5.0]), torch.tensor([math.inf, 2.5]), torch.tensor([0.25, 0.25])
    out = run(inputs, scale, tau, alpha, backend=backend)
    plain = testing.eager_branches(inputs)[0].view(out.shape)
    torch.testing.assert_close(out[0], plain[0])
    assert torch.equal(out[1], run(inputs, *SETTINGS, backend=backend)[1])


def test_vsf_per_sample(backend):
    """A scale for each sample, and a row whose text- is hidden, which is plain attention."""
    inputs = testing.make_inputs(batch=3, shared=10, length=33)
    inputs["mask_negative"] = torch.tensor([[False], [True], [True]]).expand(-1, 77)
    scale, *rest = torch.tensor([3.5, 3.5, 1.0]), torch.tensor(2.5), torch.tensor(0.25)
    out = run(inputs, scale, *rest, backend=backend, rule="vsf")
    plain = testing.eager_attention({n: x for n, x in inputs.items() if "mask" not in n}, "shared", "positive")
    torch.testing.assert_close(out[0], plain.view(out.shape)[0])
    for sample in (1, 2):
        expected = run(inputs, float(scale[sample]), 2.5, 0.25, backend=backend, rule="vsf")
        assert torch.equal(out[sample], expected[sample])
    assert testing.error(out[1], plain.view(out.shape)[1]) > 0.1


@pytest.mark.parametrize("rule", ["nag", "vsf"])
def test_alone_or_in_a_batch_the_same_bits(rule):
    if availability.refusal("cpu", "cpu"):
        pytest.skip("cpu is not here")
    inputs = testing.make_inputs(batch=3, length=70, shared=50, masks=True, dtype=torch.bfloat16)
    whole = run(inputs, *OWN[rule], backend="cpu", rule=rule)
    for b in range(3):
        alone = run({name: x[b : b + 1] for name, x in inputs.items()}, *OWN[rule], backend="cpu", rule=rule)
        assert torch.equal(alone[0], whole[b])
    assert torch.equal(run(inputs, *OWN[rule], backend="cpu", rule=rule), whole)


@rules
@pytest.mark.parametrize("scale", [0.31, 0.0, -0.2])
def test_softmax_scale(scale, rule, backend):
    inputs = testing.make_inputs(length=20, shared=9)
    check(inputs | {"softmax_scale": scale}, backend, rule)


class TestStrides:
    """Any strides give what contiguous copies give, bit for bit, and nothing outside the views is touched."""

    def check(self, views, backend):
        contiguous = {name: x.contiguous() if isinstance(x, torch.Tensor) else x for name, x in views.items()}
        for rule in ("nag", "vsf"):
            expected = run(contiguous, *OWN[rule], backend=backend, rule=rule)
            assert torch.equal(run(views, *OWN[rule], backend=backend, rule=rule), expected)

    def test_heads_before_tokens(self, backend):
        inputs = testing.make_inputs(batch=2, shared=20, length=33)
        self.check({name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in inputs.items()}, backend)

    def test_slices_of_a_packed_text(self, backend):
        inputs = testing.make_inputs(batch=2, positive=9, negative=7)
        for kind in ("key", "value"):
            packed = torch.cat([inputs[f"{kind}_positive"], inputs[f"{kind}_negative"]], 1)
            inputs[f"{kind}_positive"], inputs[f"{kind}_negative"] = packed[:, :9], packed[:, 9:]
        self.check(inputs, backend)

    def test_last_stride_not_one(self, backend):
        inputs = testing.make_inputs(shared=8, length=12)
        self.check({name: x.repeat_interleave(2, -1)[..., ::2] for name, x in inputs.items()}, backend)

    def test_expanded_batch(self, backend):
        inputs = testing.make_inputs(batch=1, shared=8, length=12)
        self.check({name: x.expand(3, -1, -1, -1) for name, x in inputs.items()}, backend)

    @pytest.mark.parametrize(
        "strides", [(24, 8, 8, 1), (96, 3, 48, 1), (96, 0, 8, 1), (96, 16, 1, 1), (1, 32, 8, 1), (1, 1, 1, 1)]
    )
    def test_numbers_that_lie_in_one_place(self, strides, backend):
        """As of sliding windows."""
        inputs = testing.make_inputs(batch=2, length=7, heads=2, size=8, positive=5, negative=4, shared=9)
        numbers = torch.randn(7, 600).unbind()
        views = [x.as_strided(y.shape, strides) for x, y in zip(numbers, inputs.values(), strict=False)]
        self.check(dict(zip(inputs, views, strict=False)), backend)

    def test_unaligned_storage(self, backend):
        def shift(x):
            return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)

        self.check({name: shift(x) for name, x in testing.make_inputs(shared=8, size=40).items()}, backend)


class TestMasks:
    @rules
    def test_hidden_keys_are_as_if_absent(self, rule, backend):
        """Not even a NaN in a hidden key or value comes through."""
        inputs = testing.make_inputs(positive=10, negative=12, shared=14)
        kept = {name: x[:, :8] if "query" not in name else x for name, x in inputs.items()}
        for part in ("positive", "negative", "shared"):
            mask = torch.zeros(1, inputs[f"key_{part}"].shape[1], dtype=torch.bool)
            mask[:, :8] = True
            inputs[f"mask_{part}"] = mask
            for kind in ("key", "value"):
                inputs[f"{kind}_{part}"][:, 8:] = float("nan")
        out = run(inputs, *OWN[rule], backend=backend, rule=rule)
        torch.testing.assert_close(out, run(kept, *OWN[rule], backend=backend, rule=rule))

    @pytest.mark.parametrize("part", ["positive", "negative"])
    def test_a_branch_that_sees_nothing_is_zero(self, part, backend):
        inputs = testing.make_inputs(batch=2, positive=6, negative=6)
        mask = torch.ones(2, 6, dtype=torch.bool)
        mask[1] = False
        inputs[f"mask_{part}"] = mask
        out = run(inputs, 5.0, math.inf, 1.0, backend=backend)
        unmasked = {name: x for name, x in inputs.items() if "mask" not in name}
        plain = testing.truth(unmasked, 0.0, 1.0, 0.0, rule="nasa")
        if part == "negative":  # Z- = 0: out = 5 Z+
            torch.testing.assert_close(out[1].double(), 5 * plain[1], rtol=1e-5, atol=1e-5)
        else:  # Z+ = 0: out = -4 Z-, finite
            assert torch.isfinite(out).all()
            assert out[1].abs().max() > 0

    def test_a_text_that_sees_nothing_is_no_part_of_vsf(self, backend):
        inputs = testing.make_inputs(batch=2, positive=6, negative=6)
        inputs["mask_positive"] = torch.tensor([[False], [True]]).expand(-1, 6)
        out = run(inputs, 3.5, 2.5, 0.25, backend=backend, rule="vsf")
        alone = testing.eager_attention({n: x for n, x in inputs.items() if "mask" not in n}, "negative")
        torch.testing.assert_close(out[0], -3.5 * alone.view(out.shape)[0], rtol=1e-5, atol=1e-5)
        exact = testing.truth(inputs, 3.5, 2.5, 0.25, rule="vsf")
        torch.testing.assert_close(out[1].double(), exact[1], rtol=1e-5, atol=1e-5)

    def test_mask_of_batch_one(self, backend):
        inputs = testing.make_inputs(batch=2, positive=6, negative=6)
        mask = torch.tensor([[True, False, True, True, False, True]])
        one = run({**inputs, "mask_positive": mask}, *SETTINGS, backend=backend)
        both = run({**inputs, "mask_positive": mask.expand(2, -1)}, *SETTINGS, backend=backend)
        assert torch.equal(one, both)
        assert not torch.equal(one, run(inputs, *SETTINGS, backend=backend))


class TestExtremes:
    @rules
    def test_a_nan_stays_in_its_token(self, rule, backend):
        inputs = testing.make_inputs(length=40, shared=9)
        clean = run(inputs, *OWN[rule], backend=backend, rule=rule)
        inputs["query"][0, 7, 2, 5] = float("nan")
        inputs["query"][0, 20, 0, 0] = float("inf")
        out = run(inputs, *OWN[rule], backend=backend, rule=rule)
        others = [s for s in range(40) if s not in (7, 20)]
        assert torch.equal(out[:, others], clean[:, others])
        assert torch.isnan(out[0, 7]).any()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize("magnitude", [30.0, 200.0])
    @rules
    def test_huge_logits(self, rule, magnitude, dtype, backend):
        inputs = testing.make_inputs(shared=9, dtype=dtype)
        inputs["query"] *= magnitude
        assert torch.isfinite(run(inputs, *OWN[rule], backend=backend, rule=rule)).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("shared", [0, 300])
    @pytest.mark.parametrize("rule", ["nag", "vsf"])
    def test_logits_of_ten_billion(self, rule, shared, dtype, backend):
        """A logit of 1e10 is known to within 512 in float32; the largest must keep its weight of 1 all the same."""
        inputs = testing.make_inputs(shared=shared, positive=300, dtype=dtype)
        inputs["query"] *= 1e10
        out = run(inputs, *OWN[rule], backend=backend, rule=rule)
        exact = testing.truth(inputs, *OWN[rule], rule=rule)
        torch.testing.assert_close(out.double(), exact, rtol=3 * torch.finfo(dtype).eps, atol=1e-2)

    def test_masks_of_other_bytes_than_one(self, backend):
        """A byte other than 0 counts as True, as in torch."""
        inputs = testing.make_inputs(batch=2, shared=20, masks=True)
        odd = dict(inputs)
        for part in ("positive", "negative", "shared"):
            mask = inputs[f"mask_{part}"]
            odd[f"mask_{part}"] = (mask.to(torch.uint8) * torch.arange(2, 2 + mask.shape[1], dtype=torch.uint8)).view(
                torch.bool
            )
        assert torch.equal(run(odd, *SETTINGS, backend=backend), run(inputs, *SETTINGS, backend=backend))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("bias", [-1e5, -1e30, torch.finfo(torch.float32).min])
    @rules
    def test_a_bias_that_stands_for_minus_infinity_hides_the_negative(self, rule, bias, dtype, backend):
        """The lowest number of float32 is what many write for it; in float16 even -1e5 is out of range."""
        inputs = testing.make_inputs(batch=2, shared=20, bias=bias, dtype=dtype)
        hidden = {k: x for k, x in inputs.items() if k != "negative_logit_bias"}
        hidden["mask_negative"] = torch.zeros(2, inputs["key_negative"].shape[1], dtype=torch.bool)
        out = run(inputs, *OWN[rule], backend=backend, rule=rule)
        expected = run(hidden, *OWN[rule], backend=backend, rule=rule)
        tolerance = 4 * torch.finfo(dtype).eps  # softmax over other lengths rounds otherwise
        torch.testing.assert_close(out, expected, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("bias", [1e4, 1e10, -1e10, torch.finfo(torch.float32).max, torch.finfo(torch.float32).min])
    @rules
    def test_a_huge_bias_stays_finite(self, rule, bias, backend):
        inputs = testing.make_inputs(shared=20, bias=bias)
        out = run(inputs, *OWN[rule], backend=backend, rule=rule)
        assert torch.isfinite(out).all()
        # The reference loses the logits beside such a bias, as float32 does, and beside the largest the truth does as well.
        if rule == "vsf" and backend == "cpu" and abs(bias) < 1e12:
            expected = testing.truth(inputs, *OWN[rule], rule=rule)
            torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)

    def test_float16_stays_finite_where_the_eager_sum_overflows(self, backend):
        inputs = testing.make_inputs(heads=16, size=64, positive=4, negative=4, dtype=torch.float16)
        for part in ("positive", "negative"):
            inputs[f"value_{part}"] *= 150
        assert not torch.isfinite(testing.eager(inputs, *SETTINGS)).all()
        testing.assert_within_baseline(run(inputs, *SETTINGS, backend=backend), inputs, *SETTINGS)

    def test_tiny_logits_and_values(self, backend):
        inputs = {k: v * 1e-18 for k, v in testing.make_inputs(length=16).items()}
        testing.assert_within_baseline(run(inputs, *SETTINGS, backend=backend), inputs, *SETTINGS)

    def test_zero_values_give_zero(self, backend):
        inputs = testing.make_inputs(length=16, shared=5)
        for part in ("positive", "negative", "shared"):
            inputs[f"value_{part}"].zero_()
        assert (run(inputs, *SETTINGS, backend=backend) == 0).all()


WRONG_CASES = ["joint", "unequal texts", "masks", "grouped queries", "bias"]


@pytest.mark.parametrize("case", WRONG_CASES)
@pytest.mark.parametrize("name", testing.WRONG_VSF)
def test_wrong_formulas_of_vsf_are_rejected(name, case):
    """In types that take turns, so that each formula and each case meets all of them."""
    dtype = list(DTYPES.values())[(list(testing.WRONG_VSF).index(name) + WRONG_CASES.index(case)) % 4]
    inputs, settings = testing.make_inputs(dtype=dtype, **CASES[case]), OWN["vsf"]
    with pytest.raises(AssertionError, match="against float64"):
        testing.assert_within_baseline(testing.WRONG_VSF[name](inputs, *settings), inputs, *settings, rule="vsf")


@pytest.mark.parametrize("backend", ["cpu", "reference"], indirect=True)
@pytest.mark.parametrize("case", ["joint", "masks", "grouped queries", "bias"])
def test_vsf_in_float16_is_rounded_once(case, backend):
    """Its error is that of the exact result in float16. (The bfloat16 pairs of some CPUs round the probabilities as well, and
    "sdpa" rounds the values times the scale.)"""
    inputs, settings = testing.make_inputs(dtype=torch.float16, **CASES[case]), OWN["vsf"]
    exact = testing.truth(inputs, *settings, rule="vsf")
    allowed = 1.05 * testing.error(exact.half(), exact)
    assert testing.error(run(inputs, *settings, backend=backend, rule="vsf"), exact) < allowed
    assert testing.error(testing.ROUNDED_VSF(inputs, *settings), exact) > allowed


def test_the_right_formula_of_vsf_is_not():
    inputs = testing.make_inputs(dtype=torch.bfloat16, **CASES["masks"])
    testing.assert_within_baseline(testing.RIGHT_VSF(inputs, *OWN["vsf"]), inputs, *OWN["vsf"], rule="vsf")


STRUCTURAL = [name for name in testing.WRONG_FORMULAS if "rounded" not in name]


@dtypes
@pytest.mark.parametrize("case", ["cross", "joint", "unequal texts", "masks", "grouped queries", "bias"])
@pytest.mark.parametrize("name", STRUCTURAL)
def test_wrong_formulas_are_rejected(name, case, dtype):
    inputs = testing.make_inputs(dtype=dtype, **CASES[case])
    with pytest.raises(AssertionError, match="against float64"):
        testing.assert_within_baseline(testing.WRONG_FORMULAS[name](inputs, *SETTINGS), inputs, *SETTINGS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_branches_rounded_before_the_blend_are_rejected(dtype):
    inputs = testing.make_inputs(dtype=dtype, **CASES["joint"])
    wrong = testing.WRONG_FORMULAS["branches rounded before the blend"](inputs, *SETTINGS)
    with pytest.raises(AssertionError, match="against float64"):
        testing.assert_within_baseline(wrong, inputs, *SETTINGS)
