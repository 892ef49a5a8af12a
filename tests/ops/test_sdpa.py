# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the fallback asks of torch's own attention; what it computes is in test_attention.py and test_guidance.py."""

import pytest
import torch

from nag_kernels import fused_guided_attention, testing


@pytest.mark.parametrize(("shared", "bias"), [(0, 0.0), (3, 1.5)])
def test_an_attention_that_makes_nan_of_a_row_without_keys(monkeypatch, shared, bias):
    """As some of torch's do on a GPU: the fallback never asks for such a row, and gives zeros there."""
    attention = torch.nn.functional.scaled_dot_product_attention

    def with_nan(query, key, value, attn_mask=None, **named):
        out = attention(query, key, value, attn_mask=attn_mask, **named)
        empty = ~attn_mask.any(-1) if attn_mask.dtype == torch.bool else (attn_mask == -torch.inf).all(-1)
        return out.masked_fill(empty[..., None], torch.nan)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", with_nan)
    inputs = testing.make_inputs(batch=2, length=5, heads=2, size=8, positive=3, negative=4, shared=shared, masks=True)
    for name in [name for name in inputs if name.startswith("mask")]:
        inputs[name][1] = False
    out = fused_guided_attention(**inputs, nag_scale=5.0, negative_logit_bias=bias, backend="sdpa")
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert out[0].isfinite().all()
    assert out[0].abs().min() > 0
