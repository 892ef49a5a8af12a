# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""How the cells of the evidence are steered: NAG without its parts, start noise, perturbed-attention guidance."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import nag_kernels
from evidence.ablation import FORMULAS, formula, heads_of
from evidence.cells import NAG, PAIRS, PARTS
from evidence.methods import draw, noise_for
from evidence.perturbed import TextAndSelf, ValueAlone, perturbed, perturbed_layers
from nag_kernels import availability, reference
from nag_kernels.diffusers import guide
from nag_kernels.shapes.generator import build_pipeline
from nag_kernels.shapes.pipeline import load


@pytest.fixture(scope="module")
def pipe():
    return load()


# --- ablated formulas


def by_hand(positive, negative, scale, tau, alpha, name):
    """The docstring of `ablation`, token by token and head by head; positive, negative [B, S, H, D]."""
    out = torch.empty_like(positive)
    norm = (lambda x: x.square().sum().sqrt()) if name == "L2 norm" else (lambda x: x.abs().sum())
    for b in range(positive.shape[0]):
        for s in range(positive.shape[1]):
            plus, guided = positive[b, s], scale * positive[b, s] - (scale - 1) * negative[b, s]
            for h in range(positive.shape[2]):
                part = slice(h, h + 1) if name == "per-head norm" else slice(None)
                ratio = norm(guided[part]) / norm(plus[part])
                factor = 1 / ratio if name == "no clip" else min(1, tau / ratio)
                factor = 1 if name.startswith("no normalisation") else factor
                share = 1 if "no refinement" in name else alpha
                out[b, s, h] = share * factor * guided[h] + (1 - share) * plus[h]
    return out


@pytest.mark.parametrize("name", FORMULAS)
def test_ablated_formulas_are_those_written_by_hand_and_leave_nothing_behind(name):
    generator = torch.Generator().manual_seed(0)
    query, key, other = (torch.randn(2, 5, 3, 8, generator=generator) for _ in range(3))
    value, other_value = torch.randn(2, 5, 3, 8, generator=generator), 2 * torch.randn(2, 5, 3, 8, generator=generator)
    settings = {"nag_scale": 4.0, "nag_tau": 1.6, "nag_alpha": 0.4}
    before = reference.row_factors, availability.FORCED
    arguments = query, key, value, other, other_value
    plain = nag_kernels.fused_guided_attention(*arguments, **settings)
    with formula(name, heads=3):
        found = nag_kernels.fused_guided_attention(*arguments, **settings)
    positive = nag_kernels.fused_guided_attention(query, key, value, key, value, nag_scale=1.0)
    negative = nag_kernels.fused_guided_attention(query, other, other_value, other, other_value, nag_scale=1.0)
    expected = by_hand(positive.double(), negative.double(), 4.0, 1.6, 0.4, name)
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=2e-5)
    assert (reference.row_factors, availability.FORCED) == before
    again = nag_kernels.fused_guided_attention(*arguments, **settings)
    assert torch.equal(again, plain)
    if name != "full":
        assert not torch.allclose(found, plain, atol=1e-3)


def test_formulas_are_put_back_after_an_error_and_unknown_ones_refused():
    before = reference.row_factors, availability.FORCED
    with pytest.raises(RuntimeError, match="stop"), formula("L2 norm"):
        assert reference.row_factors is not before[0]
        raise RuntimeError("stop")
    assert (reference.row_factors, availability.FORCED) == before
    with pytest.raises(ValueError, match="formula must be one of full"), formula("L3 norm"):
        pass
    with pytest.raises(ValueError, match="rule must be 'nag'"), formula("no clip"):
        nag_kernels.guidance(torch.ones(1, 4), torch.ones(1, 4), 1.0, rule="nasa")
    assert set(PARTS) | {"full"} == set(FORMULAS)


def test_without_a_part_the_model_draws_what_the_extreme_setting_draws(pipe):
    """No normalisation is tau = inf of the shipped kernel, no refinement alpha = 1: the ablation reaches the layers."""
    assert heads_of(pipe.denoiser) == 2
    for name, setting in (("no normalisation", {"tau": float("inf")}), ("no refinement", {"alpha": 1.0})):
        left_out = draw(pipe, replace(NAG[0], formula=name), 2, 1, batch=8)
        torch.testing.assert_close(left_out, draw(pipe, replace(NAG[0], **setting), 2, 1, batch=8), atol=2e-3, rtol=0)
        assert (left_out - draw(pipe, NAG[0], 2, 1, batch=8)).abs().amax() > 0.1


# --- drawing


def test_every_method_of_a_size_starts_from_the_same_noise(pipe):
    large, small = noise_for(pipe, 3).unflatten(0, (len(PAIRS), 3)), noise_for(pipe, 2).unflatten(0, (len(PAIRS), 2))
    assert torch.equal(large[:, :2], small)
    assert len(large.flatten(0, 1).unique(dim=0)) == 3 * len(PAIRS)


def euler_with_pag(pipe, prompt, negative, latents, steps, cfg, scale, standin):
    """PAG and CFG written out: v = v- + cfg (v+ - v-) + scale (v+ - v without self-attention)."""
    texts = pipe.encode_prompt([prompt] * len(latents), True, [negative] * len(latents))
    pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps))
    layers = perturbed_layers(pipe.denoiser)
    for step, timestep in enumerate(pipe.scheduler.timesteps):
        plus, minus = pipe.predict(latents, timestep, *texts[:2]), pipe.predict(latents, timestep, *texts[2:])
        stock = [layer.processor for layer in layers]
        for layer in layers:
            layer.processor = standin
        without = pipe.predict(latents, timestep, *texts[:2])
        for layer, processor in zip(layers, stock, strict=True):
            layer.processor = processor
        velocity = minus + cfg * (plus - minus) + scale * (plus - without)
        latents = latents + (pipe.scheduler.sigmas[step + 1] - pipe.scheduler.sigmas[step]) * velocity
    return latents


@pytest.mark.parametrize("joint", [False, True])
@torch.no_grad()
def test_perturbed_guidance_is_its_formula_and_is_taken_off(pipe, joint):
    if joint:
        torch.manual_seed(0)
        pipe = build_pipeline(2.0, joint=True)
        for parameter in pipe.denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # its modulations are zero at the start
    pipe.set_progress_bar_config(disable=True)
    noise = noise_for(pipe, 1)[:2]
    call = {"prompt": ["a red circle"] * 2, "negative_prompt": ["on white"] * 2, "guidance_scale": 1.5,
            "num_inference_steps": 3, "latents": noise, "output_type": "latent"}  # fmt: skip
    plain = pipe(**call).images
    stock = [layer.processor for layer in perturbed_layers(pipe.denoiser)]
    with perturbed(pipe, call["prompt"], noise, 2.0) as more:
        found = pipe(**call, **more).images
    expected = euler_with_pag(
        pipe, "a red circle", "on white", noise, 3, 1.5, 2.0, TextAndSelf() if joint else ValueAlone()
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (found - plain).abs().amax() > 1e-2
    assert [layer.processor for layer in perturbed_layers(pipe.denoiser)] == stock
    assert not pipe.denoiser._forward_hooks
    assert torch.equal(pipe(**call).images, plain)


@torch.no_grad()
def test_beside_nag_the_perturbed_pass_is_not_steered(pipe):
    """In one step from pure noise v = x - x_0, so what NAG makes of v can be had from a run without PAG."""
    pipe.set_progress_bar_config(disable=True)
    prompts, noise = ["a large star"] * 2, noise_for(pipe, 1)[:2]
    call = {"prompt": prompts, "num_inference_steps": 1, "latents": noise, "output_type": "latent"}
    nag = {"nag_scale": 5.0, "nag_tau": 2.5, "nag_alpha": 0.25}
    with guide(pipe, "red", **nag):
        steered = noise - pipe(**call).images
    with perturbed(pipe, prompts, noise, 1.5) as more, guide(pipe, "red", **nag):
        both = noise - pipe(**call, **more).images
    layers = perturbed_layers(pipe.denoiser)
    stock = [layer.processor for layer in layers]
    for layer in layers:
        layer.processor = ValueAlone()
    plain = noise - pipe(**call).images
    with guide(pipe, "red", **nag):
        also_steered = noise - pipe(**call).images
    for layer, processor in zip(layers, stock, strict=True):
        layer.processor = processor
    torch.testing.assert_close(both, steered + 1.5 * (steered - plain), atol=1e-4, rtol=1e-4)
    assert (also_steered - plain).abs().max() > 1e-2


@torch.no_grad()
def test_the_joint_stand_in_is_the_stock_attention_but_for_its_mask(monkeypatch):
    layer = perturbed_layers(build_pipeline(2.0, joint=True).denoiser)[0]
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(2, 64, 128, generator=generator), torch.randn(2, 16, 128, generator=generator)
    expected = layer(image, encoder_hidden_states=text)
    perturbed_out = TextAndSelf()(layer, image, text)
    torch.testing.assert_close(perturbed_out[1], expected[1])  # the text sees everything
    assert (perturbed_out[0] - expected[0]).abs().amax() > 1e-3
    moved = image.clone()
    moved[:, 5] += 1  # what one token is changes no other image token
    again = TextAndSelf()(layer, moved, text)[0]
    others = torch.arange(64) != 5
    torch.testing.assert_close(again[:, others], perturbed_out[0][:, others])
    monkeypatch.setattr(torch, "eye", lambda n, dtype, device: torch.ones(n, n, dtype=dtype, device=device))
    torch.testing.assert_close(TextAndSelf()(layer, image, text)[0], expected[0])
