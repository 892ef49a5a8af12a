# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Guidance over several processes of one machine (gloo), equal to one process; and what is refused there."""

import inspect
import types

import forked
import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from every_model import pipeline

from nag_kernels.diffusers import enable_guidance
from nag_kernels.diffusers.attention import distributed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        "mesh" not in inspect.signature(diffusers.ContextParallelConfig).parameters,
        reason="this diffusers takes no mesh for context parallelism, which the test gives it",
    ),
]

NEGATIVE = "a large blue dog on grass"


@pytest.mark.parametrize(
    ("processes", "ways", "runs"), [(2, ["ulysses", "ring", "tensor"], 9), (4, ["ulysses", "both", "tensor"], 4)]
)
def test_several_processes_draw_what_one_draws(processes, ways, runs, tmp_path):
    """Each process checks itself."""
    import parallel_worker

    if not hasattr(diffusers, "TensorParallelConfig"):
        ways, runs = [x for x in ways if x != "tensor"], runs - {2: 3, 4: 1}[processes]
    found = forked.run(parallel_worker.main, processes, tmp_path, ways)
    assert [len(x) for x in found] == [runs] * processes


def spread(pipe, **config):
    """As `enable_parallelism` would leave the model on two devices, without any."""
    degrees = {"ulysses_anything": False, "ring_anything": False} | config
    pipe.transformer._parallel_config = types.SimpleNamespace(
        context_parallel_config=types.SimpleNamespace(**degrees), tensor_parallel_config=None
    )


def test_refusals():
    pipe = pipeline("sd3")
    spread(pipe)
    with pytest.raises(
        ValueError, match=r"SD3Transformer2DModel .*: context parallelism is not supported for this model"
    ):
        enable_guidance(pipe, NEGATIVE)
    pipe = pipeline("flux")
    spread(pipe, ulysses_anything=True)
    with pytest.raises(ValueError, match=r"ulysses_anything and ring_anything give the devices unequal parts"):
        enable_guidance(pipe, NEGATIVE)
    pipe.transformer._parallel_config = diffusers.ParallelConfig()
    with pytest.raises(ValueError, match=r"several devices in a way that is not known \(ParallelConfig\)"):
        enable_guidance(pipe, NEGATIVE)


def test_texts_that_the_devices_do_not_divide():
    texts = torch.zeros(1, 12, 4), torch.zeros(1, 9, 4)
    with pytest.raises(
        ValueError, match=r"must have a length that 2 devices divide, got 12 tokens .* and 9 for the negative"
    ):
        distributed.interleaved(*texts, 1, 2, "encoder_hidden_states")
    texts = torch.arange(4.0)[None], 10 * torch.arange(1, 3.0)[None]
    assert distributed.interleaved(*texts, 1, 2, "x").tolist() == [[0, 1, 10, 2, 3, 20]]
    assert distributed.interleaved(*texts, 1, 1, "x").tolist() == [[0, 1, 2, 3, 10, 20]]


def test_gradients_over_several_devices():
    x = torch.zeros(1, 2, 4, 8, requires_grad=True)
    with pytest.raises(ValueError, match="no gradient over several devices"):
        distributed.gathered([(x, x)], None)
    with pytest.raises(ValueError, match="no gradient over several devices"):
        distributed.attention_with_sharded_heads(*[x] * 5, 5.0, 2.5, 0.25, group=None)
    with pytest.raises(ValueError, match=r"negative_logit_bias must be 0 where heads are sharded .*got 0\.5"):
        distributed.attention_with_sharded_heads(*[x] * 5, 5.0, 2.5, 0.25, group=None, negative_logit_bias=0.5)
