# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny LTX-2, and a single layer of it."""

import types

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.transformers.transformer_ltx2 import LTX2Attention
from oracles import guided
from pipeline_parts import embeds, with_text
from tiny import SEEN, TEXT, WHOLE, Tiny, TinyPipeline, error, noise, seeded, texts, times

from nag_kernels.diffusers import NAGLTX2AudioVideoAttnProcessor, NAGLTX2PerturbedAttnProcessor, PackedText, guide

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")


def ltx2(**config):
    config = {"cross_attention_dim": 32, "audio_cross_attention_dim": 16, "audio_attention_head_dim": 8,
              "audio_in_channels": 4, "audio_out_channels": 4, **config}  # fmt: skip
    return lambda: diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        audio_num_attention_heads=2, caption_channels=TEXT, pos_embed_max_pos=8, base_height=32,
        base_width=32, audio_pos_embed_max_pos=8, **config,
    )  # fmt: skip


def _ltx2_arguments(rows, dtype):
    shape = {"num_frames": 2, "height": 2, "width": 4, "audio_num_frames": 6}
    return {"hidden_states": noise(rows, 16, 4, seed=3, dtype=dtype), "timestep": times(rows), "sigma": times(rows),
            "audio_hidden_states": noise(rows, 6, 4, seed=4, dtype=dtype), **shape}  # fmt: skip


def _ltx2_text(x, mask):
    mask = None if mask is None else mask.long()
    return {"encoder_hidden_states": x, "encoder_attention_mask": mask, "audio_encoder_hidden_states": x.flip(-1),
            "audio_encoder_attention_mask": mask}  # fmt: skip


TINY: dict[str, Tiny] = {
    "LTX2VideoTransformer3DModel": Tiny(ltx2(), _ltx2_arguments, WHOLE, _ltx2_text, seen=SEEN),
    "LTX2VideoTransformer3DModel 2.3": Tiny(
        ltx2(
            perturbed_attn=True,
            cross_attn_mod=True,
            audio_cross_attn_mod=True,
            use_prompt_embeddings=False,
            cross_attention_dim=TEXT,
            audio_cross_attention_dim=TEXT,
            audio_attention_head_dim=16,
        ),
        _ltx2_arguments,
        WHOLE,
        _ltx2_text,
        seen=SEEN,
    ),
}


def ltx2_pipeline():
    connectors = diffusers.pipelines.ltx2.LTX2TextConnectors(
        caption_channels=TEXT, text_proj_in_factor=1, video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=8, video_connector_num_layers=1, video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=4, audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None, connector_rope_base_seq_len=32, rope_theta=10000.0,
        rope_double_precision=False, causal_temporal_positioning=False,
    )  # fmt: skip
    pipe = diffusers.LTX2Pipeline(
        FlowMatchEulerDiscreteScheduler(), None, None, None, None, seeded(lambda: connectors),
        seeded(ltx2(audio_in_channels=128, audio_out_channels=128)), None,
    )  # fmt: skip
    config = types.SimpleNamespace(scaling_factor=1.0, mel_bins=64, latent_channels=8)
    pipe.vae = pipe.audio_vae = types.SimpleNamespace(
        latents_mean=torch.zeros(1), latents_std=torch.ones(1), config=config, dtype=torch.float32
    )
    texts = [{"prompt_embeds": embeds(n, 2, 8, TEXT),
              "prompt_attention_mask": (torch.arange(8) >= torch.tensor([[8 - n], [2]])).long()} for n in (7, 5, 6)]  # fmt: skip
    return pipe, *with_text(texts, height=64, width=64, num_frames=9, stg_scale=0.0, audio_stg_scale=0.0, modality_scale=1.0,
                            audio_modality_scale=1.0, audio_guidance_scale=None)  # fmt: skip


PIPELINES: dict[str, TinyPipeline] = {
    "ltx 2": TinyPipeline(ltx2_pipeline),
}


def test_gates_of_ltx2_open_after_guidance():
    """A layer of its own: in a model with gates the oracle, which sees what comes after them, cannot tell."""
    attn = seeded(lambda: LTX2Attention(32, heads=4, kv_heads=4, dim_head=8, cross_attention_dim=16, apply_gated_attention=True),
                  torch.float64)  # fmt: skip
    x, caught = noise(3, 9, 32, seed=7), []
    positive, negative = texts(3, 7, 5, 16, torch.float64)
    hook = attn.to_out[0].register_forward_pre_hook(lambda layer, inputs: caught.append(inputs[0]))
    for text in (positive, negative):
        attn(x, text)
    hook.remove()
    gates = 2 * attn.to_gate_logits(x).sigmoid().repeat_interleave(8, dim=-1)
    steered, share = guided(*(y / gates for y in caught), 8.0, 4.0, 0.5)
    assert 0 < share < 1, share
    for processor in (NAGLTX2AudioVideoAttnProcessor, NAGLTX2PerturbedAttnProcessor):
        attn.set_processor(processor(8.0, 4.0, 0.5, text=PackedText(7, 5)))
        got = attn(x, torch.cat([positive, negative], dim=1))
        assert error(got, attn.to_out[0](gates * steered)) < 1e-12
    with pytest.raises(ValueError, match="perturbation_mask must be None"):
        attn(x, torch.cat([positive, negative], dim=1), perturbation_mask=torch.zeros(3, 1, 1))
    with pytest.raises(ValueError, match="rotary positions must be None"):
        attn(x, torch.cat([positive, negative], dim=1), query_rotary_emb=(x, x))


def draw_ltx2(steps=2, **options):
    pipe, arguments, prompt, negative = ltx2_pipeline()
    calls = []

    def watch(model, args, kwargs):
        calls.append((kwargs["encoder_hidden_states"].shape, model.transformer_blocks[0].attn2.processor))

    pipe.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    arguments |= {"num_inference_steps": steps, "output_type": "latent", "return_dict": False}

    def draw():
        torch.manual_seed(1)
        calls.clear()
        return torch.cat([x.flatten() for x in pipe(**arguments | prompt | options)])

    return pipe, draw, negative, calls


RECIPES = {
    "the call's defaults": {"guidance_scale": 3.0, "stg_scale": 1.0, "audio_stg_scale": 1.0, "modality_scale": 3.0,
                            "audio_modality_scale": 3.0, "audio_guidance_scale": 7.0, "spatio_temporal_guidance_blocks": [1]},
    "distilled": {"guidance_scale": 1.0},
    "sound alone under classifier-free guidance": {"guidance_scale": 1.0, "audio_guidance_scale": 7.0},
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_other_guidance_beside_the_prompt(recipe):
    """The prompt's own call is guided, half of it where it is doubled; those without layers, or without the other of video and
    sound, are what they are without guidance."""
    pipe, draw, negative, calls = draw_ltx2(**RECIPES[recipe])
    plain = draw()
    counts = [shape[0] for shape, _ in calls]
    with guide(pipe, negative, nag_scale=8.0, nag_alpha=1.0):
        got = draw()
    assert error(got, plain) > 1e-3
    assert [shape[0] for shape, _ in calls] == counts
    in_step = len(calls) // 2
    assert ["NAG" in type(processor).__name__ for _, processor in calls] == ([True] + [False] * (in_step - 1)) * 2
    assert in_step == (3 if "defaults" in recipe else 1)
    with guide(pipe, negative, nag_scale=1 + 1e-6, nag_alpha=1.0, nag_tau=100.0):
        assert error(draw(), plain) < 2e-5
    assert torch.equal(draw(), plain)


def test_a_negative_for_the_video_and_one_for_the_sound():
    pipe, arguments, _, _ = ltx2_pipeline()
    seen = []

    def encode_prompt(prompt, negative_prompt=None, **options):
        found = []
        for text in (prompt, negative_prompt or "nothing"):
            text = text if isinstance(text, str) else text[0]
            found += [embeds(sum(map(ord, text)), 1, 8, TEXT), torch.ones(1, 8, dtype=torch.long)]
        return found

    pipe.encode_prompt = encode_prompt
    pipe.transformer.register_forward_pre_hook(lambda model, args, kwargs: seen.append(kwargs), with_kwargs=True)

    def texts_with(negative):
        seen.clear()
        with guide(pipe, negative):
            pipe("a red cat", **arguments | {"num_inference_steps": 1, "output_type": "latent"})
        return [seen[0][name] for name in ("encoder_hidden_states", "audio_encoder_hidden_states")]

    for apart, video, sound in (({"video": "blurry", "audio": "noise"}, "blurry", "noise"),
                                ({"audio": "noise"}, "a red cat", "noise")):  # fmt: skip
        got = texts_with(apart)
        assert torch.equal(got[0], texts_with(video)[0])
        assert torch.equal(got[1], texts_with(sound)[1])
        assert not torch.equal(got[1], texts_with(video)[1])
    with pytest.raises(TypeError, match=r"negative_prompt\['video'\] must be text, got Tensor"):
        texts_with({"video": torch.zeros(1, 8, TEXT)})
