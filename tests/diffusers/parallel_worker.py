# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""One process of a guided run over several, for test_parallel.py; checks itself against a run in one."""

import pytest
import torch
import torch.distributed as dist
from diffusers import ContextParallelConfig
from drawing import draw
from every_model import pipeline, ready_made_pipeline
from test_flux import flux
from tiny import error, seeded

from nag_kernels.diffusers import guide
from nag_kernels.diffusers.compatibility import check_parallel
from nag_kernels.diffusers.denoiser_calls import named_modules
from nag_kernels.diffusers.models.registry import spec_of

NEGATIVE = "a large blue dog on grass"
FIRM = {"nag_scale": 8.0, "nag_tau": 3.0, "nag_alpha": 0.5}  # the clip fires on a part of the tokens
# The stock attention of a CPU has no ring, and the models have two heads: there every call that attends must be guided.
KINDS = {"ulysses": ["flux", "flux2", "ltx", "wan"], "ring": ["flux", "flux2"], "both": ["flux"],
         "tensor": ["flux", "flux2", "qwen"]}  # fmt: skip
SETTINGS = ({**FIRM}, {"nag_scale": 0.25, "rule": "nasa"}, {"nag_scale": 1.5, "rule": "vsf"})


def spread(model, how, size):
    """Over `size` processes by diffusers' own means, which ask for an accelerator before they look at the mesh."""
    if how == "tensor":
        from diffusers import TensorParallelConfig
        from diffusers.hooks import tensor_parallel

        tensor_parallel._SUPPORTED_TP_DEVICES = (*tensor_parallel._SUPPORTED_TP_DEVICES, "cpu")
        config = TensorParallelConfig(mesh=dist.init_device_mesh("cpu", (size,), mesh_dim_names=("tp",)))
    else:
        degrees = {"ulysses": (1, size), "ring": (size, 1), "both": (2, size // 2)}[how]
        mesh = dist.init_device_mesh("cpu", degrees, mesh_dim_names=("ring", "ulysses"))
        config = ContextParallelConfig(ring_degree=degrees[0], ulysses_degree=degrees[1], mesh=mesh)
    torch.accelerator.device_count = lambda: 1
    torch._C._get_accelerator = lambda *_: torch.device("cpu")
    model.enable_parallelism(config=config)
    if how == "tensor":  # the same shards, but nobody has said so
        known, model._parallel_config = model._parallel_config, None
        with pytest.raises(ValueError, match=r"sharded \(DTensor\), but not through enable_parallelism"):
            check_parallel("", spec_of(model), named_modules(model))
        model._parallel_config = known


def drawer(kind, how):
    """(pipeline, a function that draws with it, its negative)."""
    scale = 3.0 if dist.get_world_size() == 2 and how in ("ulysses", "tensor") else 1.0
    if kind not in ("flux2", "qwen"):
        pipe = pipeline(kind)
        if how == "tensor" and dist.get_world_size() > 2:  # each process has a head at least
            pipe.transformer = seeded(lambda: flux(num_attention_heads=dist.get_world_size()))
        return pipe, lambda: draw(pipe, guidance_scale=scale, num_inference_steps=2), NEGATIVE
    pipe, call = ready_made_pipeline(kind)
    rows = torch.randn(2, 1, 12, 32, generator=torch.Generator().manual_seed(0))
    prompt, negative = {"prompt_embeds": rows[0]}, {"prompt_embeds": rows[1][:, :8]}
    call |= prompt | {"num_inference_steps": 2}
    return pipe, lambda: pipe(**call, generator=torch.Generator().manual_seed(1)).images, negative


def check(kind, how, size):
    pipe, draw_it, negative = drawer(kind, how)
    wanted, all_settings = [], [*SETTINGS, *([FIRM | {"negative_pooled": True}] if kind == "flux" else [])]
    for settings in all_settings:
        with guide(pipe, negative, **settings):
            wanted.append(draw_it())
    plain = draw_it()
    spread(pipe.transformer, how, size)
    found = []
    for settings, one in zip(all_settings, wanted, strict=True):
        with guide(pipe, negative, **settings):
            found.append(error(draw_it(), one))
        assert found[-1] < 1e-5, (kind, how, settings, found)
        assert error(one, plain) > 1e-3
    return max(found)


def main(ways):
    """The largest error of each run."""
    size, found = dist.get_world_size(), []
    for how in ways:
        kinds = KINDS[how] if size == 2 or how == "both" else ["flux", "flux2"][: 2 - (how == "tensor")]
        found += [check(kind, how, size) for kind in kinds]
    return found
