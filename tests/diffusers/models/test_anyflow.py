# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny AnyFlow."""

import pytest

pytest.importorskip("diffusers")

import diffusers
from pipeline_parts import IMAGE, embeds, ready_made, wan_vae, with_text
from test_wan import wan_like
from tiny import TEXT, WHOLE, Tiny, TinyPipeline, noise, seeded, times


def _anyflow_arguments(rows, dtype):
    time = times(rows).float()[:, None].expand(-1, 2)
    return {"hidden_states": noise(rows, 2, 4, 4, 8, seed=3, dtype=dtype), "timestep": time, "r_timestep": time / 2}


def _far(call):
    """Three parts of a video, of which the first is seen coarsely: drawn at once, the last of them by itself, or kept."""

    def arguments(rows, dtype):
        parts = [2, 1, 1]
        frames = {"at once": 4, "step": 1, "cache": 4}[call]
        time = times(rows).float()[:, None].expand(-1, frames)
        video = noise(rows, frames, 4, 4, 8, seed=3, dtype=dtype)
        given = {"hidden_states": video, "timestep": time, "r_timestep": time / 2, "chunk_partition": parts}
        if call == "at once":
            return given
        flag = {"num_cached_chunks": 2, "is_cache_step": call == "cache"}
        kept = {"full_cache": noise(2, rows, 2, 32, 12, seed=5, dtype=dtype),
                "compressed_cache": noise(2, rows, 2, 8, 12, seed=6, dtype=dtype)}  # fmt: skip
        return given | {"kv_cache": [kept, kept], "kv_cache_flag": flag}

    config = {"rope_max_seq_len": 32, "full_chunk_limit": 2, "chunk_partition": (2, 1, 1)}
    return Tiny(wan_like("AnyFlowFARTransformer3DModel", **config), arguments, WHOLE)


TINY: dict[str, Tiny] = {
    "AnyFlowTransformer3DModel": Tiny(wan_like("AnyFlowTransformer3DModel"), _anyflow_arguments, 16),
    "AnyFlowFARTransformer3DModel": _far("at once"),
    "AnyFlowFARTransformer3DModel step": _far("step"),
    "AnyFlowFARTransformer3DModel cache": _far("cache"),
}


def anyflow_far():
    """From an image: a part of the video of its own, which is not drawn. Two others follow."""
    transformer = seeded(
        wan_like("AnyFlowFARTransformer3DModel", full_chunk_limit=2, chunk_partition=(1, 1, 1), rope_max_seq_len=32)
    )
    scheduler = diffusers.FlowMapEulerDiscreteScheduler()
    pipe = diffusers.AnyFlowFARPipeline(None, None, transformer, wan_vae(4), scheduler)
    texts = [{"prompt_embeds": embeds(n, 2, 7, TEXT)} for n in (7, 5, 6)]
    return pipe, *with_text(texts, video=IMAGE[None].expand(2, -1, -1, -1, -1), height=32, width=32, num_frames=9)


PIPELINES: dict[str, TinyPipeline] = {
    "anyflow": TinyPipeline(ready_made("AnyFlowPipeline", TINY["AnyFlowTransformer3DModel"], num_frames=9, length=7)),
    "anyflow from an image": TinyPipeline(anyflow_far, runs=2),
}
if not hasattr(diffusers, "AnyFlowFARPipeline"):  # an older library has fewer
    del PIPELINES["anyflow from an image"]
