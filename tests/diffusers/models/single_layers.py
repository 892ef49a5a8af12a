# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What tests of single attention layers share."""

import pytest
import torch
from oracles import guided
from tiny import noise, texts

SCALE, TAU, ALPHA = 8.0, 1.25, 0.5  # exact in float32; the clip fires on a part of the tokens, which each test asserts
LAYER_TAU = 4.0  # with texts of 7 and 5 tokens the two outputs differ more


def two_pass_oracle(attn, x, positive, negative, **extra):
    """The layer as it is on each text, its two attention outputs guided by the formula, and its own output layers."""
    caught = []
    hook = attn.to_out[0].register_forward_pre_hook(lambda layer, inputs: caught.append(inputs[0]))
    first, second = attn(x, positive, **extra), attn(x, negative, **extra)
    hook.remove()
    steered, share = guided(*caught, SCALE, LAYER_TAU, ALPHA)
    assert 0 < share < 1, share
    hook = attn.to_out[0].register_forward_pre_hook(lambda layer, inputs: (steered,))
    wanted = attn(x, positive, **extra)
    hook.remove()
    return wanted, first, second


PARTS = pytest.mark.parametrize("parts", [2, 3, 4], ids=["positive, negative", "with cfg", "with cfg and pag"])


def published_batch(parts):
    each = 2
    """(texts of each part, in the published order, and the rows of the image that each has)."""
    texts_ = [noise(each, 7, 32, seed=20 + i) for i in range(parts - 2)]
    positive, negative = texts(each, 7, 7, 32, torch.float64)
    texts_.insert(min(len(texts_), 1), positive)  # after the unconditional, before the perturbed
    return [*texts_, negative], noise((parts - 1) * each, 9, 32, seed=7)
