# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Models of each route, quantised or offloaded."""

import types

import pytest
import torch

pytest.importorskip("diffusers")

from every_model import TINY
from oracles import two_runs_oracle
from stand_in import filled, firm
from test_combinations import group_offload, quantised, sequential_offload
from tiny import error

from nag_kernels.diffusers import enable_guidance, guide
from nag_kernels.diffusers.models.registry import guided_layers

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ["ChromaTransformer2DModel", "ZImageTransformer2DModel", "HunyuanVideoTransformer3DModel", "CogView4Transformer2DModel",
         "AuraFlowTransformer2DModel", "HunyuanImageTransformer2DModel", "Lumina2Transformer2DModel", "CosmosTransformer3DModel",
         "PRXTransformer2DModel", "Krea2Transformer2DModel"]  # fmt: skip
SLOW = "OmniGenTransformer2DModel"


@pytest.mark.parametrize("how", [quantised, sequential_offload, group_offload("leaf_level")],
                         ids=["quantised", "sequential offload", "group offload"])  # fmt: skip
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in TINY])
@torch.no_grad()
def test_together_with(kind, how):
    tiny, pipe = TINY[kind], filled(TINY[kind])
    model, texts = pipe.transformer, (pipe.texts["positive"], pipe.texts["negative"])
    if how is quantised:
        how(pipe)
    plain = pipe(pipe.prompt)
    wanted, _ = two_runs_oracle(tiny, model, guided_layers(model), pipe.arguments, *texts, *firm(TINY[kind]).values())
    if how is not quantised:
        how(pipe)
    with guide(pipe, "negative", **firm(TINY[kind])):
        got = pipe(pipe.prompt)
    assert error(got, wanted) < 1e-5
    assert error(got, plain) > 1e-4
    assert torch.equal(pipe(pipe.prompt), plain)


@pytest.mark.skipif(SLOW not in TINY, reason="this diffusers has no OmniGen")
def test_the_dual_forward_refuses_layers_that_lose_their_weights_on_the_way():
    for how in (sequential_offload, group_offload("block_level"), group_offload("leaf_level")):
        pipe = filled(TINY[SLOW])
        how(pipe)
        with pytest.raises(ValueError, match="two runs that take turns would meet layers whose weights are offloaded"):
            enable_guidance(pipe, "negative")
    pipe = filled(TINY[SLOW])
    pipe.transformer._parallel_config = types.SimpleNamespace(context_parallel_config=None, tensor_parallel_config=1)
    with pytest.raises(ValueError, match="its texts cannot be packed, and it is spread over several devices"):
        enable_guidance(pipe, "negative")
