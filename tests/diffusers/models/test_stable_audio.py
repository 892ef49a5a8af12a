# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny Stable Audio 1 and 3."""

import types

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from pipeline_parts import NEGATIVE, embeds, t5, with_text
from tiny import TEXT, UNSEEN, WHOLE, Tiny, TinyPipeline, masked_text, noise, seeded, times


def stable_audio():
    return diffusers.StableAudioDiTModel(
        sample_size=16, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        num_key_value_attention_heads=2, out_channels=4, cross_attention_dim=16, cross_attention_input_dim=TEXT,
        time_proj_dim=16, global_states_input_dim=2 * TEXT,
    )  # fmt: skip


def _stable_audio_arguments(rows, dtype):
    angles = noise(17, 2, seed=5).repeat(1, 2).float()
    return {"hidden_states": noise(rows, 4, 16, seed=3, dtype=dtype), "timestep": times(rows, dtype),
            "global_hidden_states": noise(rows, 1, 2 * TEXT, seed=4, dtype=dtype),
            "rotary_embedding": (angles.cos(), angles.sin())}  # fmt: skip


def _stable_audio3():
    return diffusers.StableAudio3DiTModel(
        io_channels=4, embed_dim=32, depth=2, num_heads=2, cond_token_dim=TEXT, global_cond_dim=TEXT, local_add_cond_dim=5,
        timestep_features_dim=16, ff_mult=2.0, num_memory_tokens=3,
    )  # fmt: skip


def _stable_audio3_arguments(rows, dtype):
    return {"hidden_states": noise(rows, 4, 16, seed=3, dtype=dtype), "timestep": times(rows, dtype),
            "global_hidden_states": noise(rows, TEXT, seed=4, dtype=dtype)}  # fmt: skip


TINY: dict[str, Tiny] = {
    "StableAudioDiTModel": Tiny(stable_audio, _stable_audio_arguments, 17, tau=4.0),
    "StableAudio3DiTModel": Tiny(
        _stable_audio3, _stable_audio3_arguments, WHOLE, masked_text, seen=UNSEEN, tau=2.0, double=False
    ),
}


def stable_audio3_pipeline():
    lengths = seeded(lambda: diffusers.StableAudio3DurationEmbedder(output_dim=TEXT, fourier_dim=8))
    pipe = diffusers.StableAudio3Pipeline(
        None, None, None, lengths, seeded(TINY["StableAudio3DiTModel"].build), FlowMatchEulerDiscreteScheduler()
    )
    config = types.SimpleNamespace(sampling_rate=4, latent_dim=4)
    pipe.vae = types.SimpleNamespace(config=config, downsampling_ratio=2)
    texts = []
    for n in (7, 5, 6):
        seen = (torch.arange(7) < torch.tensor([[n], [n - 2]])).long()
        texts.append({"prompt_embeds": embeds(n, 2, 7, TEXT), "encoder_attention_mask": seen})
    return pipe, *with_text(texts, duration=8.0)


def stable_audio_pipeline():
    """A sound of 16 samples; the length of a sound is a part of its text."""
    vae = seeded(lambda: diffusers.AutoencoderOobleck(
        encoder_hidden_size=4, downsampling_ratios=[1, 2], decoder_channels=3, decoder_input_channels=4, audio_channels=2,
        channel_multiples=[1, 2], sampling_rate=4,
    ))  # fmt: skip
    lengths = seeded(lambda: diffusers.StableAudioProjectionModel(TEXT, TEXT, 0, 10))
    pipe = diffusers.StableAudioPipeline(
        vae, **t5(), projection_model=lengths, transformer=seeded(TINY["StableAudioDiTModel"].build),
        scheduler=diffusers.EDMDPMSolverMultistepScheduler(),
    )  # fmt: skip
    return pipe, {"num_waveforms_per_prompt": 2}, {"prompt": "a small red cat"}, NEGATIVE


PIPELINES: dict[str, TinyPipeline] = {
    "stable audio 3": TinyPipeline(stable_audio3_pipeline),
    "stable audio": TinyPipeline(stable_audio_pipeline),
}
if not hasattr(diffusers, "StableAudio3Pipeline"):  # an older library has fewer
    del PIPELINES["stable audio 3"]
