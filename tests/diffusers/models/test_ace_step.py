# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny ACE-Step."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from pipeline_parts import NEGATIVE, Tokenizer, llama
from tiny import TEXT, WHOLE, Tiny, TinyPipeline, error, noise, seeded, times

from nag_kernels.diffusers import guide

pytestmark = pytest.mark.usefixtures("one_thread")


def _ace_step():
    return diffusers.AceStepTransformer1DModel(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        in_channels=12, audio_acoustic_hidden_dim=4, sliding_window=2, encoder_hidden_size=TEXT,
    )  # fmt: skip


def _ace_step_arguments(rows, dtype):
    time = {"timestep": times(rows, dtype), "timestep_r": times(rows, dtype) / 2}
    given = {"context_latents": noise(rows, 15, 8, seed=4, dtype=dtype)}
    return {"hidden_states": noise(rows, 15, 4, seed=3, dtype=dtype)} | time | given


TINY: dict[str, Tiny] = {
    "AceStepTransformer1DModel": Tiny(_ace_step, _ace_step_arguments, WHOLE),
}


def ace_step_pipeline():
    """Its text is packed with lyrics and a voice, which the negative has too."""
    encoder = seeded(lambda: diffusers.AceStepConditionEncoder(
        hidden_size=TEXT, intermediate_size=32, text_hidden_dim=TEXT, timbre_hidden_dim=4, num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
    ))  # fmt: skip
    with torch.no_grad():
        for x in (encoder.silence_latent, encoder.null_condition_emb):
            x.normal_(generator=torch.Generator().manual_seed(3))
    pipe = diffusers.AceStepPipeline(
        None, llama(), Tokenizer(64), seeded(TINY["AceStepTransformer1DModel"].build), encoder,
        FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )  # fmt: skip
    call = {"audio_duration": 0.6, "lyrics": ["la la la", "la"]}
    return pipe, call, {"prompt": ["a small red cat", "two small cats of grey wool"]}, NEGATIVE


PIPELINES: dict[str, TinyPipeline] = {
    "ace step": TinyPipeline(ace_step_pipeline, prompt_first=True),
}


@pytest.mark.parametrize(
    ("interval", "rows"), [((0.0, 0.3), [4, 4, 2]), ((0.1, 1.0), [2, 4, 4])], ids=["ends", "begins"]
)
def test_classifier_free_guidance_on_the_way(interval, rows):
    """With the prompt first."""
    pipe, call, prompt, negative = PIPELINES["ace step"]()
    pipe.set_progress_bar_config(disable=True)
    call |= prompt | {"guidance_scale": 3.0, "num_inference_steps": 3, "output_type": "latent"}
    call |= dict(zip(("cfg_interval_start", "cfg_interval_end"), interval, strict=True))
    seen = []
    pipe.transformer.register_forward_hook(lambda model, inputs, output: seen.append(output[0]))

    def draw():
        seen.clear()
        return pipe(**call, generator=torch.Generator().manual_seed(7), return_dict=False)[0]

    plain, first = draw(), seen[:2]
    assert [len(x) for x in seen] == rows
    with guide(pipe, prompt["prompt"], nag_scale=8.0):
        assert error(draw(), plain) < 1e-5
    with guide(pipe, negative, nag_scale=8.0):
        assert error(draw(), plain) > 1e-4
    with guide(pipe, negative, nag_scale=8.0, start=0.3):
        draw()
    assert torch.equal(seen[0], first[0])
    if rows[1] == 4:  # the unconditional rows of the first guided step
        assert error(seen[1][:2], first[1][:2]) > 1e-4
        assert error(seen[1][2:], first[1][2:]) < 1e-5
