# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What torch's FLOP counter says of the operations."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import nag_kernels
from nag_kernels import reference, testing

SETTINGS = {"nag_scale": 5.0, "nag_tau": 2.5, "nag_alpha": 0.25}
SHAPE = {"batch": 2, "length": 5, "heads": 4, "kv_heads": 2, "size": 8, "positive": 3, "negative": 4}


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("tensors", [False, True])
def test_without_shared_keys_it_is_what_the_formula_takes(tensors):
    inputs = testing.make_inputs(**SHAPE)
    settings = {k: torch.tensor(x) for k, x in SETTINGS.items()} if tensors else SETTINGS
    with torch.inference_mode():
        count = counted(lambda: nag_kernels.fused_guided_attention(**inputs, **settings))
    assert (
        count == counted(lambda: reference.fused_guided_attention(**inputs, **SETTINGS)) == 4 * 2 * 5 * 4 * 8 * (3 + 4)
    )


def test_shared_keys_are_counted_once():
    inputs = testing.make_inputs(**SHAPE, shared=6)
    assert counted(lambda: nag_kernels.fused_guided_attention(**inputs, **SETTINGS)) == 4 * 2 * 5 * 4 * 8 * (3 + 4 + 6)
    assert counted(lambda: reference.fused_guided_attention(**inputs, **SETTINGS)) == 4 * 2 * 5 * 4 * 8 * (
        3 + 4 + 2 * 6
    )


@pytest.mark.parametrize(("leaves", "products"), [
    (["query"], [4, 4, 4]),
    (["value_negative"], [2, 3, 2]),
    (["key_shared"], [2, 2, 4]),
    (["query", "key_positive", "value_positive"], [6, 4, 4]),
])  # fmt: skip
def test_the_gradient(leaves, products):
    inputs = testing.make_inputs(**SHAPE, shared=6)
    for name in leaves:
        inputs[name].requires_grad_()
    out = nag_kernels.fused_guided_attention(**inputs, **SETTINGS).sum()
    each = 2 * 2 * 5 * 4 * 8
    assert counted(out.backward) == sum(each * n * x for n, x in zip((3, 4, 6), products, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("first", ["nag_kernels", "torch.utils.flop_counter"])
def test_whichever_is_imported_first(first):
    code = (
        f"import sys, torch; import {first}; import nag_kernels; print('triton' in sys.modules)\n"
        "from torch.utils.flop_counter import flop_registry\n"
        "mine = [x for x in sys.meta_path if x.__class__.__module__ == 'nag_kernels.flops']\n"
        "print(torch.ops.nag.fused_guided_attention in flop_registry, mine)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert ran[1] == "True []"
    if first == "nag_kernels":
        assert ran[0].startswith("False"), "importing this package does not load Triton"
