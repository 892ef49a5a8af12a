# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Every family of ComfyUI's core, in a sampling by the core itself, against the untouched model run twice side by side."""

import pytest
import torch
from comfy_oracle import difference, sample, two_runs
from tiny_comfy_models import MODELS
from tiny_comfy_newer import NEWER_MODELS

SETTINGS = {"nag_scale": 4.0, "nag_tau": 1.02, "nag_alpha": 0.6}
ROUNDING = 5e-6  # of float32: ten times what was measured, 1e-7 to 6e-7
families = pytest.mark.parametrize("name", [*MODELS, *NEWER_MODELS])
# What these do to their text, another model does too.
LIKE_OTHERS = {
    "flux_kontext",
    "qwen_edit",
    "chroma_radiance",
    "wan_camera",
    "wan_humo",
    "wan_animate",
    "wan_s2v",
    "hunyuan_video_masked",
}
unlike_families = pytest.mark.parametrize(
    "name", [name for name in (*MODELS, *NEWER_MODELS) if name not in LIKE_OTHERS]
)


def row(x, i):
    return [y[i : i + 1] for y in x] if isinstance(x, list) else x[i : i + 1]


@families
@pytest.mark.parametrize("lengths", [(12, 9), (9, 40)], ids=str)
def test_guided_model_equals_two_runs(node, model, name, lengths):
    tiny, patcher = model(name)
    x, positive, negative = tiny.start(), tiny.conditioning(1, lengths[0]), tiny.conditioning(2, lengths[1])
    text = tiny.conditioning(2, lengths[1], common=False)
    guided = sample(*node(patcher, text, **SETTINGS), x, positive)
    expected, shares = two_runs(tiny, patcher, x, positive, negative, *SETTINGS.values())
    assert difference(guided, expected) < ROUNDING
    assert difference(guided, sample(patcher, x, positive)) > 50 * ROUNDING
    assert sum(shares) > 0  # the clip acts


@unlike_families
def test_two_videos_or_images_at_once(node, model, name):
    tiny, patcher = model(name)
    x, positive, negative = tiny.start(rows=2), tiny.conditioning(1, 12), tiny.conditioning(2, 9)
    guided = sample(*node(patcher, negative, **SETTINGS), x, positive)
    apart = torch.cat([sample(*node(patcher, negative, **SETTINGS), row(x, i), positive) for i in range(2)])
    assert difference(guided, apart) < ROUNDING


@families
def test_a_negative_equal_to_the_prompt_changes_nothing(node, model, name):
    tiny, patcher = model(name)
    x, positive, negative = tiny.start(), tiny.conditioning(1, 12), tiny.conditioning(2, 9)
    plain = sample(patcher, x, positive)
    assert difference(sample(*node(patcher, positive, 4.0, 2.5, 0.6), x, positive), plain) < ROUNDING
    assert difference(sample(*node(patcher, negative, 1.0, 2.5, 0.6), x, positive), plain) < ROUNDING
    assert difference(sample(*node(patcher, negative, 4.0, 2.5, 0.0), x, positive), plain) < ROUNDING


@unlike_families
def test_the_model_is_as_before_without_the_node(node, model, name):
    tiny, patcher = model(name)
    x, positive, negative = tiny.start(), tiny.conditioning(1, 12), tiny.conditioning(2, 9)
    before = sample(patcher, x, positive)
    guided = node(patcher, negative, **SETTINGS)
    first = sample(*guided, x, positive)
    assert torch.equal(sample(patcher, x, positive), before)
    assert torch.equal(sample(*guided, x, positive), first)
    for module in patcher.model.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
        assert "forward" not in vars(module)


@unlike_families
def test_the_unconditional_branch_is_not_guided(node, model, name):
    tiny, patcher = model(name)
    x, positive, negative = tiny.start(), tiny.conditioning(1, 12), tiny.conditioning(2, 9)
    other = tiny.conditioning(3, 12)

    def branches(patcher):
        seen, patcher = [], patcher.clone()
        patcher.set_model_sampler_cfg_function(
            lambda args: (seen.append([args["cond_denoised"], args["uncond_denoised"]]), args["cond"])[1]
        )
        sample(patcher, x, positive, other, cfg=3.0)
        return seen[0]

    for rule, scale in (("nag", 4.0), ("nasa", 0.5), ("vsf", 2.0)):
        (guided,) = node(patcher, negative, scale, 1.6, 0.6, rule=rule)
        alone = sample(guided, x, positive)
        conditional, unconditional = (patcher.model.process_latent_out(y) for y in branches(guided))
        assert difference(conditional, alone) < ROUNDING
        assert difference(unconditional, sample(patcher, x, other)) < ROUNDING


@unlike_families
def test_nasa_equals_two_runs(node, model, name):
    tiny, patcher = model(name)
    x, positive, negative = tiny.start(), tiny.conditioning(1, 12), tiny.conditioning(2, 9)
    guided = sample(*node(patcher, negative, 0.5, rule="nasa"), x, positive)
    expected, _ = two_runs(tiny, patcher, x, positive, negative, 0.5, 0, 0, rule="nasa")
    assert difference(guided, expected) < ROUNDING


@unlike_families
def test_only_the_chosen_layers_are_guided(node, model, name):
    tiny, patcher = model(name)
    x, positive, negative = tiny.start(), tiny.conditioning(1, 12), tiny.conditioning(2, 9)
    guided = sample(*node(patcher, negative, **SETTINGS, layers="0"), x, positive)
    expected, shares = two_runs(tiny, patcher, x, positive, negative, *SETTINGS.values(), layers=[0])
    assert len(shares) == 1
    assert difference(guided, expected) < ROUNDING
    assert difference(guided, sample(patcher, x, positive)) > 50 * ROUNDING
