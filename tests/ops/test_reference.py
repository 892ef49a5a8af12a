# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The reference against a float64 oracle of plain Python loops, written from the papers alone, and its identities."""

import math
import pathlib

import pytest
import torch

from nag_kernels import reference, testing

SETTINGS = (5.0, 2.5, 0.25)


def loop_attention(q, keys, values, logits_bias, scale):
    """One query vector over lists of key and value vectors."""
    if not keys:
        return [0.0] * len(q)
    logits = [scale * sum(a * b for a, b in zip(q, k, strict=True)) + c for k, c in zip(keys, logits_bias, strict=True)]
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    total = sum(weights)
    return [sum(w * v[d] for w, v in zip(weights, values, strict=True)) / total for d in range(len(q))]


def loop_guided_attention(inputs, scale, tau, alpha, rule):
    """Token by token, head by head; only visible keys are listed."""
    data = {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    query = data["query"]
    heads, size = inputs["query"].shape[2:]
    kv_heads = inputs["key_positive"].shape[2]
    softmax_scale = data.get("softmax_scale") or 1 / math.sqrt(size)

    def visible(part, b, head):
        if f"key_{part}" not in data:
            return [], []
        keys, values = data[f"key_{part}"], data[f"value_{part}"]
        row = b if len(keys) > 1 else 0
        mask = data.get(f"mask_{part}")
        seen = mask[b if len(mask) > 1 else 0] if mask else [True] * len(keys[row])
        listed = [t for t, see in enumerate(seen) if see]
        return [keys[row][t][head] for t in listed], [values[row][t][head] for t in listed]

    out = []
    for b, tokens in enumerate(query):
        out.append([])
        for token in tokens:
            if rule == "vsf":
                row = []
                for h in range(heads):
                    texts = [visible(part, b, h // (heads // kv_heads)) for part in ("shared", "positive", "negative")]
                    (keys_s, values_s), (keys_p, values_p), (keys_n, values_n) = texts
                    values = values_s + values_p + [[-scale * x for x in v] for v in values_n]
                    biases = [0.0] * len(keys_s + keys_p) + [data.get("negative_logit_bias", 0.0)] * len(keys_n)
                    row.append(loop_attention(token[h], keys_s + keys_p + keys_n, values, biases, softmax_scale))
                out[-1].append(row)
                continue
            branches = {}
            for part, bias in (("positive", 0.0), ("negative", data.get("negative_logit_bias", 0.0))):
                z = []
                for h in range(heads):
                    kv = h // (heads // kv_heads)
                    shared_keys, shared_values = visible("shared", b, kv)
                    keys, values = visible(part, b, kv)
                    biases = [0.0] * len(shared_keys) + [bias] * len(keys)
                    z += loop_attention(token[h], shared_keys + keys, shared_values + values, biases, softmax_scale)
                branches[part] = z
            plus, minus = branches["positive"], branches["negative"]
            if rule == "nasa":
                row = [p - scale * n for p, n in zip(plus, minus, strict=True)]
            else:
                phi = scale - 1
                g = [p + phi * (p - n) for p, n in zip(plus, minus, strict=True)]
                norm_g, norm_plus = sum(map(abs, g)), sum(map(abs, plus))
                if norm_g > 0 and norm_plus > 0:
                    ratio = norm_g / norm_plus
                    g = [x * min(ratio, tau) / ratio for x in g]
                elif norm_g > 0 and not math.isinf(tau):  # the limit of the ratio: everything is clipped
                    g = [0.0] * len(g)
                row = [alpha * x + (1 - alpha) * p for x, p in zip(g, plus, strict=True)]
            out[-1].append([row[h * size : (h + 1) * size] for h in range(heads)])
    return torch.tensor(out, dtype=torch.float64).reshape(inputs["query"].shape)


CASES = {
    "cross": {},
    "unequal texts": {"positive": 7, "negative": 2},
    "shared": {"shared": 6},
    "masks": {"shared": 6, "masks": True},
    "cross masks": {"masks": True},
    "grouped queries": {"kv_heads": 2, "shared": 3},
    "negative of batch 1": {"batch": 2, "negative_batch": 1, "masks": True},
    "bias": {"shared": 5, "bias": 0.7},
    "bias without shared keys": {"bias": 0.7},
    "empty negative": {"negative": 0},
    "empty positive": {"positive": 0},
    "empty negative, shared": {"negative": 0, "shared": 4},
    "one token": {"length": 1, "positive": 1, "negative": 1},
    "both texts empty": {"positive": 0, "negative": 0, "shared": 2},
}


@pytest.mark.parametrize("settings", [SETTINGS, (3.0, 1.2, 0.5), (8.0, math.inf, 1.0), (2.0, 0.5, 0.375)], ids=str)
@pytest.mark.parametrize("rule", ["nag", "nasa", "vsf"])
@pytest.mark.parametrize("case", CASES)
def test_reference_equals_the_loop_oracle(case, rule, settings):
    shape = {"length": 3, "heads": 4, "size": 5, "positive": 4, "negative": 4, **CASES[case]}
    inputs = testing.make_inputs(dtype=torch.float64, **shape)
    expected = loop_guided_attention(inputs, *settings, rule)
    torch.testing.assert_close(testing.truth(inputs, *settings, rule=rule), expected, rtol=1e-13, atol=1e-13)


def test_softmax_scale():
    inputs = testing.make_inputs(length=3, heads=2, size=4, positive=3, negative=3, dtype=torch.float64)
    inputs["softmax_scale"] = 0.3
    expected = loop_guided_attention(inputs, *SETTINGS, "nag")
    torch.testing.assert_close(testing.truth(inputs, *SETTINGS), expected, rtol=1e-13, atol=1e-13)
    del inputs["softmax_scale"]
    assert testing.error(testing.truth(inputs, *SETTINGS), expected) > 1e-2


@pytest.mark.parametrize("name", [name for name in testing.WRONG_FORMULAS if "rounded" not in name])
def test_the_loop_oracle_rejects_wrong_formulas(name):
    inputs = testing.make_inputs(length=4, heads=2, size=4, positive=3, negative=3, dtype=torch.float64)
    expected = loop_guided_attention(inputs, *SETTINGS, "nag")
    assert testing.error(testing.WRONG_FORMULAS[name](inputs, *SETTINGS), expected) > 1e-3


@pytest.mark.parametrize("name", testing.WRONG_VSF)
def test_the_loop_oracle_rejects_wrong_formulas_of_vsf(name):
    inputs = testing.make_inputs(length=4, heads=2, size=4, positive=3, negative=3, shared=3, dtype=torch.float64)
    expected = loop_guided_attention(inputs, *SETTINGS, "vsf")
    assert testing.error(testing.RIGHT_VSF(inputs, *SETTINGS), expected) < 1e-14
    assert testing.error(testing.WRONG_VSF[name](inputs, *SETTINGS), expected) > 1e-3


def branches(**shape):
    torch.manual_seed(1)
    return torch.randn(2, 6, 24, dtype=torch.float64), torch.randn(2, 6, 24, dtype=torch.float64)


class TestIdentities:
    def test_scale_one_gives_positive_back(self):
        positive, negative = branches()
        assert torch.equal(reference.guidance(positive, negative, 1.0, 2.5, 0.25), positive)

    def test_alpha_zero_gives_positive_back(self):
        positive, negative = branches()
        torch.testing.assert_close(reference.guidance(positive, negative, 5.0, 2.5, 0.0), positive)

    def test_equal_branches_give_positive_back(self):
        positive, _ = branches()
        torch.testing.assert_close(reference.guidance(positive, positive, 5.0, 1.0, 0.25), positive)

    def test_tau_below_one_shrinks_equal_branches(self):
        positive, _ = branches()
        torch.testing.assert_close(reference.guidance(positive, positive, 5.0, 0.5, 1.0), 0.5 * positive)

    def test_infinite_tau_is_plain_extrapolation(self):
        positive, negative = branches()
        expected = 5 * positive - 4 * negative
        torch.testing.assert_close(reference.guidance(positive, negative, 5.0, math.inf, 1.0), expected)

    def test_full_clip_bounds_the_norm(self):
        positive, negative = branches()
        out = reference.guidance(positive, negative, 50.0, 1.5, 1.0)
        torch.testing.assert_close(out.abs().sum(-1), 1.5 * positive.abs().sum(-1))

    def test_nasa(self):
        positive, negative = branches()
        torch.testing.assert_close(reference.guidance(positive, negative, 0.3, 2.5, 0.25, "nasa"),
                                   positive - 0.3 * negative)  # fmt: skip

    def test_vsf_is_attention_to_both_texts_at_scale_minus_one(self):
        inputs = testing.make_inputs(batch=2, length=5, heads=2, size=6, positive=4, negative=3, shared=5, masks=True,
                                     dtype=torch.float64)  # fmt: skip
        both = inputs | {f"{kind}_positive": torch.cat([inputs[f"{kind}_positive"], inputs[f"{kind}_negative"]], 1)
                         for kind in ("key", "value", "mask")}  # fmt: skip
        expected = testing.truth(both, 0.0, 2.5, 0.25, rule="nasa")
        torch.testing.assert_close(testing.truth(inputs, -1.0, 2.5, 0.25, rule="vsf"), expected)

    def test_vsf_without_a_visible_negative_is_plain_attention(self):
        inputs = testing.make_inputs(batch=2, length=5, heads=2, size=6, positive=4, negative=3, dtype=torch.float64)
        plain = testing.truth(inputs, 0.0, 2.5, 0.25, rule="nasa")
        hidden = inputs | {"mask_negative": torch.tensor([[False] * 3, [True] * 3])}
        out = testing.truth(hidden, 4.0, 2.5, 0.25, rule="vsf")
        torch.testing.assert_close(out[0], plain[0])
        assert testing.error(out[1], plain[1]) > 0.1
        out = testing.truth(inputs | {"negative_logit_bias": -1e3}, 4.0, 2.5, 0.25, rule="vsf")
        torch.testing.assert_close(out, plain)

    def test_a_bias_of_log_r_weighs_like_r_copies_in_vsf(self):
        inputs = testing.make_inputs(length=5, heads=2, size=6, positive=4, negative=3, dtype=torch.float64)
        copies = inputs | {
            f"{kind}_negative": inputs[f"{kind}_negative"].repeat(1, 3, 1, 1) for kind in ("key", "value")
        }
        out = testing.truth(inputs | {"negative_logit_bias": math.log(3)}, 2.0, 2.5, 0.25, rule="vsf")
        torch.testing.assert_close(out, testing.truth(copies, 2.0, 2.5, 0.25, rule="vsf"))

    def test_permuting_the_heads_commutes(self):
        inputs = testing.make_inputs(length=5, heads=4, size=6, positive=4, negative=3, dtype=torch.float64)
        order = torch.tensor([2, 0, 3, 1])
        permuted = {name: x[:, :, order] for name, x in inputs.items()}
        for rule in ("nag", "vsf"):
            expected = testing.truth(inputs, *SETTINGS, rule=rule)[:, :, order]
            torch.testing.assert_close(testing.truth(permuted, *SETTINGS, rule=rule), expected)

    @pytest.mark.parametrize("tau", [1.0, math.inf])
    @pytest.mark.parametrize("zero", ["positive", "negative", "both"])
    def test_zero_rows_never_give_nan(self, zero, tau):
        positive, negative = branches()
        for name, x in (("positive", positive), ("negative", negative)):
            if zero in (name, "both"):
                x[:, 0] = 0
        out = reference.guidance(positive, negative, 5.0, tau, 0.25)
        assert torch.isfinite(out).all()
        assert (out[:, 0] == 0).all() == (zero == "both" or (zero == "positive" and tau == 1.0))

    def test_settings_per_sample(self):
        positive, negative = branches()
        scale, tau, alpha = torch.tensor([5.0, 1.0]), torch.tensor([2.5, math.inf]), torch.tensor([0.25, 0.5])
        out = reference.guidance(positive, negative, scale, tau, alpha)
        torch.testing.assert_close(out[:1], reference.guidance(positive[:1], negative[:1], 5.0, 2.5, 0.25))
        assert torch.equal(out[1], positive[1])


def test_heads_that_are_elsewhere():
    """Each half of the channels, with the sums of both."""
    positive, negative = branches()
    halves, sums = list(zip(positive.chunk(2, -1), negative.chunk(2, -1), strict=True)), []
    for half in halves:
        reference.guidance(*half, *SETTINGS, total=lambda own: sums.append(own) or own)
    assert all(x.shape == (*positive.shape[:-1], 2) for x in sums)
    out = [reference.guidance(*half, *SETTINGS, total=lambda own: sum(sums)) for half in halves]
    whole = reference.guidance(positive, negative, *SETTINGS)
    torch.testing.assert_close(torch.cat(out, -1), whole)
    alone = torch.cat([reference.guidance(*half, *SETTINGS) for half in halves], -1)
    assert (alone - whole).abs().max() > 1e-3


def test_the_reference_is_short():
    text = pathlib.Path(reference.__file__).read_text()
    assert len(text.splitlines()) <= 130
    assert "import torch" in text
