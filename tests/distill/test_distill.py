# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Distillation: the formulas in float64, the models, the gradient of the guided student."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("accelerate")

from accelerate import Accelerator
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from every_model import pipeline
from tiny_distillation import DIFFUSION, TINY, levels, prompts, tiny, tiny_model, tiny_unet

from nag_kernels.diffusers.attention import base
from nag_kernels.distill.command import shapes_prompts
from nag_kernels.distill.levels import PREDICTIONS, Levels, levels_of, like
from nag_kernels.distill.models import Model, call_joint, call_unet, model_of, steered
from nag_kernels.distill.settings import Settings, kappa_at
from nag_kernels.distill.teachers import Teachers
from nag_kernels.distill.train import Distillation
from nag_kernels.shapes.generator import build_pipeline, build_transformer
from nag_kernels.shapes.pipeline import load

# Noise levels and conversions


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", ["diffusion", "flow"])
def test_output_gives_picture_and_noise(prediction, schedule):
    known = Levels(prediction, DIFFUSION if schedule == "diffusion" else None)
    picture, noise = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    _, alpha, sigma = known.at(torch.tensor([0.05, 0.3, 0.5, 0.8, 0.97]))
    x = like(alpha, picture) * picture + like(sigma, picture) * noise
    output = known.target(picture, noise, alpha, sigma)
    torch.testing.assert_close(known.picture(x, output, alpha, sigma), picture, rtol=0, atol=1e-12)
    torch.testing.assert_close(known.noise(x, output, alpha, sigma), noise, rtol=0, atol=1e-12)


def test_levels_of_schedulers():
    flow = levels_of(FlowMatchEulerDiscreteScheduler(shift=3.0))
    timestep, alpha, sigma = flow.at(torch.tensor([0.5, 1.0]))
    assert sigma.tolist() == pytest.approx([0.75, 1.0])
    assert timestep.tolist() == pytest.approx([750, 1000])
    assert (alpha + sigma).tolist() == pytest.approx([1, 1])
    diffusion = levels_of(DDPMScheduler(prediction_type="v_prediction"))
    timestep, alpha, sigma = diffusion.at(torch.tensor([0.0, 1.0]))
    assert (diffusion.prediction, timestep.tolist()) == ("v_prediction", [0, 999])
    assert (alpha**2 + sigma**2).tolist() == pytest.approx([1, 1])


def test_a_schedule_that_cannot_be_used_is_refused():
    with pytest.raises(ValueError, match="pure noise"):
        levels_of(DDIMScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(ValueError, match="use_dynamic_shifting"):
        levels_of(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))


# The gradient


class Gaussian(nn.Module):
    """The exact denoiser of pictures x_0 ~ N(m, s^2), m = mean(text): of it, eps = sigma (x - alpha m) / (alpha^2 s^2 + sigma^2)
    and x_0 = (x - sigma eps) / alpha."""

    def __init__(self, known: Levels, spread: float = 0.7):
        super().__init__()
        self.mean, self.known, self.spread = nn.Linear(3, 6, bias=False), known, spread
        self.to(torch.float64)

    def forward(self, x, timestep, text):
        if self.known.alphas_cumprod is None:
            sigma = timestep / self.known.timesteps
            alpha = 1 - sigma
        else:
            alpha, sigma = DIFFUSION[timestep].sqrt(), (1 - DIFFUSION[timestep]).sqrt()
        eps, picture = exact(x, self.mean(text["embeds"]), alpha, sigma, self.spread)
        return self.known.target(picture, eps, alpha, sigma)


def exact(x, mean, alpha, sigma, spread):
    alpha, sigma = alpha[:, None], sigma[:, None]
    eps = sigma * (x - alpha * mean) / (alpha**2 * spread**2 + sigma**2)
    return eps, (x - sigma * eps) / alpha


def gaussian(prediction: str, flow: bool = False) -> Model:
    known = Levels(prediction) if flow else levels(prediction)
    encode = lambda prompts: {"embeds": torch.zeros(len(prompts), 3, dtype=torch.float64)}  # noqa: E731
    return Model(Gaussian(known), known, lambda module, x, t, text, negative: module(x, t, text), encode, (6,))


@pytest.mark.parametrize("kind", ["sigma2", "x0", "dmd"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_gradient_equals_the_formula(prediction, kind):
    model = gaussian(prediction)
    frozen_mean = model.module.mean.weight.detach().clone()
    teachers = Teachers(model, Settings(lora_rank=2, lora_alpha=6.0, lora_targets="all", weight=kind))
    for each in teachers.lora.values():
        each.data = torch.randn_like(each, dtype=torch.float64)
    a, b = teachers.lora.values()
    lora_mean = frozen_mean + 3.0 * b @ a
    picture, noise = torch.randn(2, 5, 6, dtype=torch.float64)
    text, no_text = torch.randn(5, 3, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    fraction, kappas = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]), (2.5, 0.75)
    got = teachers.gradient(picture, noise, fraction, {"embeds": text}, {"embeds": no_text}, kappas)

    _, alpha, sigma = model.levels.at(fraction)
    x = alpha[:, None] * picture + sigma[:, None] * noise
    eps = []
    for mean, kappa in zip((frozen_mean, lora_mean), kappas, strict=True):
        without, with_text = (exact(x, y @ mean.T, alpha, sigma, 0.7)[0] for y in (no_text, text))
        eps.append((1 - kappa) * without + kappa * with_text)
    x0 = (x - sigma[:, None] * eps[0]) / alpha[:, None]
    w = {"sigma2": sigma**2, "x0": sigma / alpha, "dmd": sigma / alpha / (picture - x0).abs().mean(1)}[kind]
    torch.testing.assert_close(got, w[:, None] * (eps[0] - eps[1]), rtol=1e-9, atol=1e-10)


def test_levels_at_which_the_gradient_is_not_finite_are_refused():
    no_snr = levels_of(DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True))
    for known in (levels("flow"), no_snr):
        for kind in ("x0", "dmd"):
            with pytest.raises(ValueError, match=f"t_high .* for weight '{kind}'.* got 1.0: pure noise"):
                Teachers(replace(tiny_model(), levels=known), Settings(weight=kind, t_high=1.0))
    with pytest.raises(ValueError, match=r"t_low .* predicts 'sample', got 0.0"):
        Teachers(gaussian("sample", flow=True), Settings(t_low=0.0, lora_targets="all"))
    # At the last level that is taken, and in pure noise with the weight that has no alpha in it.
    text, no_text = ({"embeds": torch.randn(n, 5, 6)} for n in (3, 1))
    flow = levels("flow")
    for known, fraction, kind in (
        (flow, 1.0, "sigma2"),
        (no_snr, 1.0, "sigma2"),
        (no_snr, 0.99, "x0"),
        (flow, 0.99, "dmd"),
    ):
        teachers = Teachers(replace(tiny_model(), levels=known), Settings(weight=kind, t_high=fraction, lora_rank=2))
        for each in teachers.lora.values():
            each.data.normal_()
        found = teachers.gradient(*torch.randn(2, 3, 2, 4, 4), torch.full((3,), fraction), text, no_text, (2.0, 1.0))
        assert found.isfinite().all()
        assert (found.abs().max() > 0) == (fraction < 1)  # in pure noise x_t is all that says what the noise is


def test_lora_starts_as_the_frozen_teacher_and_leaves_its_weights_alone():
    model = gaussian("flow")
    before = model.module.mean.weight.detach().clone()
    teachers = Teachers(model, Settings(lora_rank=2, lora_targets="all"))
    picture, noise = torch.randn(2, 5, 6, dtype=torch.float64)
    text, no_text = {"embeds": torch.randn(5, 3).double()}, {"embeds": torch.zeros(1, 3).double()}
    call = (picture, noise, torch.full((5,), 0.5), text, no_text)
    assert teachers.gradient(*call, (3.0, 3.0)).abs().max() == 0
    loss = teachers.loss(*call, torch.ones(5, dtype=torch.bool))
    loss.backward()
    trained = {name for name, each in model.module.named_parameters() if each.grad is not None}
    assert trained == set(teachers.lora)
    with teachers.frozen():
        torch.optim.SGD(teachers.lora.values(), lr=0.1).step()
    assert teachers.gradient(*call, (3.0, 3.0)).abs().max() > 0
    assert torch.equal(model.module.mean.base_layer.weight, before)


def test_dropped_text_is_no_text():
    model = gaussian("epsilon")
    teachers = Teachers(model, Settings(lora_rank=2, lora_targets="all"))
    picture, noise = torch.randn(2, 5, 6, dtype=torch.float64)
    text, no_text = {"embeds": torch.randn(5, 3).double()}, {"embeds": torch.ones(1, 3).double()}
    call = (picture, noise, torch.full((5,), 0.5))
    none = teachers.loss(*call, text, no_text, torch.zeros(5, dtype=torch.bool))
    as_text = teachers.loss(*call, {"embeds": torch.ones(5, 3).double()}, text, torch.ones(5, dtype=torch.bool))
    assert none.item() == pytest.approx(as_text.item(), abs=1e-12)
    with_text = teachers.loss(*call, text, no_text, torch.ones(5, dtype=torch.bool))
    assert none.item() != pytest.approx(with_text.item())
    timestep, alpha, sigma = model.levels.at(call[2])
    x = like(alpha, picture) * picture + like(sigma, picture) * noise
    by_hand = (model.output(model.module, x, timestep, text) - noise).square().mean()
    assert with_text.item() == pytest.approx(by_hand.item(), abs=1e-12)


def test_kappa_is_one_draw_for_both_teachers():
    assert kappa_at(2.0, 0.3) == 2.0
    assert kappa_at((0.5, 4.0), 0.0) == 0.5
    assert kappa_at((0.5, 4.0), 1.0) == 4.0
    run = tiny(TINY)
    seen = [run.step() for _ in range(4)]
    assert all(row["kappa_frozen"] == row["kappa_lora"] for row in seen)
    assert len({row["kappa_frozen"] for row in seen}) == 4
    fixed = tiny(Settings(batch=4, kappa_frozen=(0.5, 4.0), kappa_lora=1.0, lora_rank=2)).step()
    assert (fixed["kappa_frozen"], fixed["kappa_lora"]) == (seen[0]["kappa_frozen"], 1.0)


# Models


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_student_goes_down_the_gradient_at_its_picture_of_pure_noise(prediction, monkeypatch):
    run = tiny(TINY, prediction)
    student, seen, got = copy.deepcopy(run.student), {}, []
    push, parameters = torch.sin(torch.arange(128.0)).view(4, 2, 4, 4), run.descent.parameters
    monkeypatch.setattr(run.teachers, "gradient", lambda *call: seen.update(call=call) or push)
    monkeypatch.setattr(run.descent, "step", lambda loss: got.extend(torch.autograd.grad(loss, parameters)) or 0.0)
    noise = run._drawn("start", torch.randn, shape=(2, 4, 4))
    run.step()
    text = run.model.encode(prompts(0, 4))
    output = student(noise, torch.full((4,), 999), encoder_hidden_states=text["embeds"]).sample
    a, s = DIFFUSION[-1].sqrt().float(), (1 - DIFFUSION[-1]).sqrt().float()
    picture = (noise - s * output) / a if prediction == "epsilon" else a * noise - s * output
    torch.testing.assert_close(seen["call"][0], picture)
    fraction = seen["call"][2]
    assert TINY.t_low <= fraction.min() < fraction.max() <= TINY.t_high
    wanteds = torch.autograd.grad((push * picture).sum() / 128, list(student.parameters()))
    for own, wanted in zip(got, wanteds, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["few", "joint"])
def test_shapes_draws_as_its_pipeline_does(name):
    pipe = load()
    if name == "joint":
        pipe = build_pipeline(2.0, joint=True)
        nn.init.normal_(pipe.transformer.proj_out.weight, std=0.1)
    model = model_of(pipe)
    run = Distillation(model, copy.deepcopy(model.module), shapes_prompts(0), TINY, Accelerator(cpu=True))
    texts, noise = ["a red circle", "a large star on white"], torch.randn(2, 8, 8, 8)
    pipe.set_progress_bar_config(disable=True)
    with run.teachers.frozen():
        wanted = pipe(texts, latents=noise, num_inference_steps=1, output_type="latent").images
    with torch.no_grad():
        torch.testing.assert_close(run.pictures(noise, model.encode(texts)), wanted, rtol=1e-4, atol=1e-4)
    assert run.step()["lora_loss"] > 0


def test_stable_diffusion_is_known_and_others_are_refused_by_name():
    model = model_of(pipeline("sd15"))
    cats = lambda step, count: ["a cat"] * count  # noqa: E731
    run = Distillation(model, copy.deepcopy(model.module), cats, TINY, Accelerator(cpu=True))
    assert model.levels.prediction == "epsilon"
    assert run.step()["student_norm"] == 0  # the LoRA teacher is still the frozen one
    assert run.step()["student_norm"] > 0
    with pytest.raises(ValueError, match="StableDiffusionXLPipeline"):
        model_of(pipeline("sdxl"))


# NASA in training


@pytest.mark.parametrize("joint", [False, True])
def test_the_guided_students_gradient_is_real(joint, monkeypatch):
    """That of a finite difference along a direction of keys and values, and not the one of a detached negative."""
    module, text, negative, call, x = guided_student(joint)
    parameters, time = list(module.parameters()), torch.full((2,), 500)
    text_parts = ("attn2.to_k", "attn2.to_v", "add_k_proj", "add_v_proj")
    ways = [torch.randn_like(p) * any(x in name for x in text_parts) for name, p in module.named_parameters()]

    def value(scale=0.7):
        with steered(module, text, negative, torch.tensor(scale)):
            return call(module, x, time, text, negative).square().sum()

    def slope():
        found = torch.autograd.grad(value(), parameters, allow_unused=True)  # SD3's last block leaves its text
        return float(sum((g * way).sum() for g, way in zip(found, ways, strict=True) if g is not None))

    def moved(far):
        with torch.no_grad():
            torch._foreach_add_(parameters, ways, alpha=far)
            found = float(value())
            torch._foreach_add_(parameters, ways, alpha=-far)
        return found

    far = 1e-4  # diffusers' RMSNorm rounds its variance to float32, which a smaller step would magnify
    wanted = (moved(far) - moved(-far)) / (2 * far)
    assert slope() == pytest.approx(wanted, rel=1e-3)
    with torch.no_grad():
        assert float(value(0.0)) == pytest.approx(plain := float(call(module, x, time, text, None).square().sum()))
        assert float(value()) != pytest.approx(plain, rel=1e-3)
    fused = base.fused_guided_attention
    monkeypatch.setattr(
        base, "fused_guided_attention",
        lambda q, k, v, kn, vn, *more, **named: fused(q, k, v, kn.detach(), vn.detach(), *more, **named),
    )  # fmt: skip
    assert slope() != pytest.approx(wanted, rel=1e-2)


def guided_student(joint: bool):
    torch.manual_seed(2)
    if joint:
        module, width = build_transformer(1), 128
        nn.init.normal_(module.proj_out.weight, std=0.3)
        for norm in (module.transformer_blocks[0].norm1, module.transformer_blocks[0].norm1_context, module.norm_out):
            nn.init.normal_(norm.linear.weight, std=0.1)
        x = torch.randn(2, 8, 8, 8).double()
    else:
        module, width, x = tiny_unet(), 6, torch.randn(2, 2, 4, 4).double()
    text, negative = ({"embeds": torch.randn(2, n, width).double(), "mask": torch.ones(2, n).double()} for n in (5, 3))
    text["mask"][0, 3:] = 0
    return module.double().eval(), text, negative, call_joint if joint else call_unet, x


def test_training_with_nasa_draws_a_scale_per_step_and_leaves_the_processors():
    run = tiny(replace(TINY, nasa_negative="blurry"))
    before = {name: type(each) for name, each in run.student.attn_processors.items()}
    scales = [run.step()["nasa_scale"] for _ in range(3)]
    assert len({scale for scale in scales if 0 < scale < 1}) == 3
    assert {name: type(each) for name, each in run.student.attn_processors.items()} == before
