# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Helios."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import SQUARE, ready_made, wan_vae
from test_wan import wan_like
from tiny import Tiny, TinyPipeline, noise, videos


def _helios_arguments(rows, dtype):
    """With frames drawn before, which do not see the text."""
    history = {"indices_hidden_states": torch.arange(1, 3), "indices_latents_history_short": torch.arange(1),
               "latents_history_short": noise(rows, 4, 1, 4, 8, seed=4, dtype=dtype)}  # fmt: skip
    return videos(rows, dtype) | {k: x if x.ndim > 1 else x.expand(rows, -1) for k, x in history.items()}


TINY: dict[str, Tiny] = {
    "HeliosTransformer3DModel": Tiny(
        wan_like("HeliosTransformer3DModel", rope_max_seq_len=None, rope_dim=(4, 4, 4)), _helios_arguments, 16
    ),
}


def helios(name, stages, **call):
    """In two parts, of which each sees the frames of the other."""

    def more():
        # With the default gamma of 1/3 the pyramid's noise has a singular covariance, of which only some processors' rounding
        # lets a Cholesky factor be made.
        return {"vae": wan_vae(4), "scheduler": diffusers.HeliosScheduler(stages=stages, gamma=0.3)}

    return ready_made(name, TINY["HeliosTransformer3DModel"], more=more, rows=1, num_frames=9, history_sizes=[4, 2, 1],
                      num_latent_frames_per_chunk=2, **SQUARE | call)  # fmt: skip


PIPELINES: dict[str, TinyPipeline] = {
    "helios": TinyPipeline(helios("HeliosPipeline", 1), two_calls=True, runs=2),
    "helios in a pyramid": TinyPipeline(
        helios("HeliosPyramidPipeline", 3, pyramid_num_inference_steps_list=[1, 1, 1], height=128, width=128),
        two_calls=True,
        runs=2,
    ),
}
