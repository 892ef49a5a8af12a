# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The node beside what else a workflow has: other nodes, several prompts, little memory, parts of the steps."""

import copy
import dataclasses
import importlib
from typing import ClassVar

import pytest
import torch
from comfy_oracle import comfy, copy_of, difference, one_call, sample, sigmas_of, two_runs

SETTINGS = {"nag_scale": 4.0, "nag_tau": 1.02, "nag_alpha": 0.6}
ROUNDING = 5e-6  # of float32, as in test_comfy_families.py
kinds = pytest.mark.parametrize("name", ["sd15", "flux"])  # cross-attention and joint attention


def texts(tiny, *lengths):
    return [tiny.conditioning(i + 1, n) for i, n in enumerate(lengths)]


def euler(patcher, x, positive, steps):
    return sample(patcher, x, positive, sigmas=steps, sampler=comfy("k_diffusion.sampling").sample_euler)


@kinds
@pytest.mark.parametrize(("start", "end", "guided"), [(0.0, 0.5, 2), (0.5, 1.0, 2), (0.5, 0.6, 1), (0.0, 1.0, 4)])
def test_only_the_steps_of_the_window_are_guided(node, model, name, start, end, guided):
    tiny, patcher = model(name)
    x, (positive, negative) = tiny.start(), texts(tiny, 12, 9)
    steps = sigmas_of(patcher, 0.1, 0.35, 0.55, 0.8)
    (both,) = node(patcher, negative, **SETTINGS, start_percent=start, end_percent=end)
    (always,) = node(patcher, negative, **SETTINGS)
    percents = [0.1, 0.35, 0.55, 0.8]
    inside = [start <= p <= end for p in percents]
    assert sum(inside) == guided
    result, expected = euler(both, x, positive, steps), None

    def by_hand(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i, ours in enumerate(inside):  # Euler's steps
            options = extra_args["model_options"]
            if not ours:
                options = options | {"transformer_options": options["transformer_options"] | {"nag_kernels": None}}
                denoised = unguided(model, x, sigmas[i], options)
            else:
                denoised = model(x, sigmas[i] * x.new_ones(len(x)), **extra_args)
            x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        return x

    def unguided(model, x, sigma, options):
        guider = model.inner_model
        return comfy("samplers").calc_cond_batch(
            guider.inner_model, [guider.conds["positive"]], x, sigma * x.new_ones(len(x)), options
        )[0]

    expected = sample(always, x, positive, sigmas=steps, sampler=by_hand)
    assert difference(result, expected) < ROUNDING
    if guided < 4:
        assert difference(result, euler(always, x, positive, steps)) > 50 * ROUNDING
    assert difference(result, euler(patcher, x, positive, steps)) > 50 * ROUNDING


@kinds
def test_weights_of_a_lora(node, model, name):
    tiny, patcher = model(name)
    key = {"sd15": "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "flux": "single_blocks.0.linear1.weight"}[
        name
    ]
    weight = patcher.model.diffusion_model.get_parameter(key)
    delta, before = torch.randn(weight.shape), weight.clone()
    x, (positive, negative) = tiny.start(), texts(tiny, 12, 9)
    changed = patcher.clone()
    changed.add_patches({f"diffusion_model.{key}": ("diff", (delta,))}, 0.5)
    guided = sample(*node(changed, negative, **SETTINGS), x, positive)
    changed.unpatch_model()
    assert torch.equal(weight, before)
    own = copy_of(patcher.model)
    own.diffusion_model.get_parameter(key).data += 0.5 * delta
    expected, _ = two_runs(tiny, tiny.patcher(own), x, positive, negative, *SETTINGS.values())
    assert difference(guided, expected) < ROUNDING
    assert difference(guided, sample(*node(patcher, negative, **SETTINGS), x, positive)) > 50 * ROUNDING


class Control:
    """A ControlNet as the core calls it, which always says the same."""

    extra_hooks = previous_controlnet = None

    def __init__(self, residuals):
        self.residuals = residuals

    def get_control(self, *_):
        return copy.deepcopy(self.residuals)

    multigpu_clones: ClassVar[dict] = {}  # which newer cores ask for

    def pre_run(self, *_):
        pass

    cleanup = pre_run

    def get_models(self):
        return []

    get_extra_hooks = get_models

    def inference_memory_requirements(self, dtype):
        return 0


@kinds
def test_controlnet(node, model, name):
    tiny, patcher = model(name)
    residuals = {
        "sd15": {"middle": [torch.randn(1, 64, 4, 4)], "output": [torch.randn(1, 32, 8, 8)], "input": []},
        "flux": {"input": [torch.randn(1, 16, 32)], "output": [torch.randn(1, 16, 32)]},
    }[name]
    x, (positive, negative) = tiny.start(), texts(tiny, 12, 9)
    plain = sample(*node(patcher, negative, **SETTINGS), x, positive)
    for each in (positive, negative):  # as Apply ControlNet gives both
        each[0][1] |= {"control": Control(residuals), "control_apply_to_uncond": False}
    guided = sample(*node(patcher, negative, **SETTINGS), x, positive)
    expected, _ = two_runs(tiny, patcher, x, positive, negative, *SETTINGS.values())
    assert difference(guided, expected) < ROUNDING
    assert difference(guided, plain) > 50 * ROUNDING


@kinds
def test_another_override_of_attention_stays(node, model, name):
    tiny, patcher = model(name)
    x, (positive, negative) = tiny.start(), texts(tiny, 12, 9)
    seen = []

    def override(function, *args, **kwargs):
        seen.append(kwargs.get("mask"))
        return function(*args, **kwargs)

    other = patcher.clone()
    other.model_options["transformer_options"]["optimized_attention_override"] = override
    sample(other, x, positive)
    plain_calls, seen[:] = len(seen), []
    guided = sample(*node(other, negative, **SETTINGS), x, positive)
    # In sd15 that of the image to itself; in flux that of each text, in every layer.
    assert len(seen) == {"sd15": plain_calls // 2, "flux": 2 * plain_calls}[name]
    assert difference(guided, sample(*node(patcher, negative, **SETTINGS), x, positive)) < ROUNDING


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_node_that_adds_attention_to_an_image(node, model, name):
    """As IP-Adapters do, for two blocks by their two ways to name a block."""
    tiny, patcher = model(name)
    x, (positive, negative) = tiny.start(), texts(tiny, 12, 9)
    added, attention = torch.randn(64), comfy("ldm.modules.attention").optimized_attention
    width = {"sd15": (32, 64), "sdxl": (64, 128)}[name]

    def adapter(query, key, value, options):
        assert key.shape[1] == 12
        return attention(query, key, value, options["n_heads"]) + added.repeat(2)[: query.shape[-1]]

    other = patcher.clone()
    other.set_model_attn2_replace(adapter, "input", 1, 0)
    other.set_model_attn2_replace(adapter, "middle", 0)
    guided = sample(*node(other, negative, **SETTINGS), x, positive)

    sites = dict.fromkeys(("input_blocks.1.1.transformer_blocks.0.attn2", "middle_block.1.transformer_blocks.0.attn2"))
    modules = dict(patcher.model.diffusion_model.named_modules())
    own = copy_of(patcher.model)
    modules = dict(own.diffusion_model.named_modules())
    for layer, n in zip(sites, width, strict=True):  # the same by a bias of the next layer
        out = modules[layer].to_out[0]
        out.bias.data += out.weight @ added.repeat(2)[:n]
    expected, _ = two_runs(tiny, tiny.patcher(own), x, positive, negative, *SETTINGS.values())
    assert difference(guided, expected) < ROUNDING
    chosen = sample(*node(other, negative, **SETTINGS, layers="1-5"), x, positive)
    assert difference(chosen, guided) > 50 * ROUNDING
    middle = sample(*node(other, negative, **SETTINGS, layers="middle_block"), x, positive)
    assert difference(middle, sample(*node(other, negative, **SETTINGS, layers="2"), x, positive)) == 0


def test_perturbed_attention(node, model):
    """The core's node calls the model once more with the prompt, with another self-attention: both calls are guided."""
    tiny, patcher = model("sd15")
    x, (positive, negative, other) = tiny.start(), texts(tiny, 12, 9, 12)
    seen = []

    def perturb(args):
        options = comfy("model_patcher").set_model_options_patch_replace(
            args["model_options"], lambda q, k, v, options: v, "attn1", "middle", 0
        )
        (out,) = comfy("samplers").calc_cond_batch(args["model"], [args["cond"]], args["input"], args["sigma"], options)
        seen.append(out)
        return args["denoised"]

    pag = patcher.clone()
    pag.set_model_sampler_post_cfg_function(perturb)
    guided = sample(*node(pag, negative, **SETTINGS), x, positive, other, cfg=3.0)
    assert difference(guided, sample(*node(patcher, negative, **SETTINGS), x, positive, other, cfg=3.0)) < ROUNDING
    perturbed = patcher.clone()
    perturbed.set_model_attn1_replace(lambda q, k, v, options: v, "middle", 0)
    expected = sample(*node(perturbed, negative, **SETTINGS), x, positive)
    assert difference(patcher.model.process_latent_out(seen[0]), expected) < ROUNDING


def test_blocks_that_a_node_leaves_out(node, model):
    tiny, patcher = model("flux")
    x, (positive, negative) = tiny.start(), texts(tiny, 12, 9)
    other = patcher.clone()
    other.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 1)
    guided = sample(*node(other, negative, **SETTINGS), x, positive)
    own = copy_of(patcher.model)
    del own.diffusion_model.double_blocks[1]
    expected, _ = two_runs(tiny, tiny.patcher(own), x, positive, negative, *SETTINGS.values())
    assert difference(guided, expected) < ROUNDING


def test_a_cache_of_the_core_leaves_steps_out(node, model):
    """As EasyCache: a step is drawn from what an earlier one has left; the steps that are drawn are guided."""
    tiny, patcher = model("sd15")
    x, (positive, negative) = tiny.start(), texts(tiny, 12, 9)
    left = []

    def cache(executor, x, *args, **kwargs):
        if len(left) == 2:
            return x + left[-1]
        left.append(executor(x, *args, **kwargs) - x)
        return x + left[-1]

    cached = patcher.clone()
    cached.add_wrapper_with_key("diffusion_model", "easycache", cache)
    cached.model_options["transformer_options"]["easycache"] = cache
    steps = sigmas_of(patcher, 0.2, 0.4, 0.6)
    guided = euler(*node(cached, negative, **SETTINGS), x, positive, steps)
    assert len(left) == 2
    left.clear()
    assert difference(guided, euler(cached, x, positive, steps)) > 50 * ROUNDING


@kinds
def test_several_prompts_with_areas_and_masks(node, model, name):
    tiny, patcher = model(name)
    x, (first, second, negative, other) = tiny.start(), texts(tiny, 12, 12, 9, 12)
    mask = torch.zeros(1, 8, 8)
    mask[:, :, :3] = 1
    second[0][1] |= {"mask": mask, "mask_strength": 0.7, "set_area_to_bounds": False}
    third = tiny.conditioning(5, 12)
    third[0][1] |= {"area": (4, 8, 4, 0), "strength": 0.5}
    whole = sample(*node(patcher, negative, **SETTINGS), x, first + second + third, other, cfg=2.0)
    # By hand: each prompt by itself, weighed as the core weighs the parts.
    parts = [sample(*node(patcher, negative, **SETTINGS), x, y, other, cfg=2.0) for y in (first, second, third)]
    assert all(difference(whole, y) > 50 * ROUNDING for y in parts)

    def recorded(patcher):
        seen, patcher = [], patcher.clone()
        patcher.set_model_sampler_cfg_function(lambda args: (seen.append(args["uncond_denoised"]), args["cond"])[1])
        sample(patcher, x, first + second + third, other, cfg=2.0)
        return seen[0]

    (guided,) = node(patcher, negative, **SETTINGS)
    assert difference(recorded(guided), recorded(patcher)) < ROUNDING
    (same,) = node(patcher, negative, 1.0)
    assert difference(
        sample(same, x, first + second + third, other, cfg=2.0), sample(patcher, x, first + second + third, other, cfg=2.0)
    ) < ROUNDING  # fmt: skip


@kinds
def test_little_memory_splits_the_batch(node, model, name, monkeypatch):
    tiny, patcher = model(name)
    x, (positive, negative, other) = tiny.start(), texts(tiny, 12, 9, 12)
    (guided,) = node(patcher, negative, **SETTINGS)
    together = sample(guided, x, positive, other, cfg=3.0)
    rows = []
    monkeypatch.setattr(patcher.model, "memory_required", lambda shape, cond_shapes=None: rows.append(shape[0]) or 1e30)
    apart = sample(guided, x, positive, other, cfg=3.0)
    assert 2 in rows
    assert difference(apart, together) < ROUNDING


@pytest.mark.parametrize("rule", ["nag", "nasa", "vsf"])
def test_lengths_that_the_core_repeats(node, model, rule):
    """Conditionings of 12 and 24 tokens go in one batch, the first with its tokens twice."""
    tiny, patcher = model("sd15")
    x, (positive, negative, other) = tiny.start(), texts(tiny, 12, 9, 24)
    (guided,) = node(patcher, negative, 2.0, 1.02, 0.6, rule=rule)
    seen = []
    watched = guided.clone()
    watched.set_model_sampler_cfg_function(lambda args: (seen.append(args["cond_denoised"]), args["cond"])[1])
    sample(watched, x, positive, other, cfg=3.0)
    alone = sample(guided, x, positive)
    assert difference(patcher.model.process_latent_out(seen[0]), alone) < ROUNDING


def test_a_guider_whose_first_conditioning_is_the_negative(node, model):
    """As DualCFGGuider, which passes [negative, middle, positive]."""
    tiny, patcher = model("sd15")
    x, (positive, negative, other, middle) = tiny.start(), texts(tiny, 12, 9, 12, 12)
    (guided,) = node(patcher, negative, **SETTINGS)

    class Dual(comfy("samplers").CFGGuider):
        def predict_noise(self, x, timestep, model_options={}, seed=None):  # noqa: B006
            conds = [self.conds.get(name) for name in ("negative", "middle", "positive")]
            self.out = comfy("samplers").calc_cond_batch(self.inner_model, conds, x, timestep, model_options)
            return self.out[2]

    guider = Dual(guided)
    guider.inner_set_conds({"positive": positive, "negative": other, "middle": middle})
    with torch.no_grad():
        guider.sample(x, torch.zeros_like(x), comfy("samplers").KSAMPLER(one_call), sigmas_of(patcher, 0.4), seed=0)
    outs = [patcher.model.process_latent_out(y) for y in guider.out]
    assert difference(outs[0], sample(patcher, x, other)) < ROUNDING
    assert difference(outs[1], sample(patcher, x, middle)) < ROUNDING
    assert difference(outs[2], sample(guided, x, positive)) < ROUNDING


@kinds
def test_value_sign_flip(node, model, name):
    """Against a model in which text- is a part of the prompt, whose values are changed as attention adds them up."""
    tiny, patcher = model(name)
    x, (positive, negative) = tiny.start(), texts(tiny, 12, 9)
    guided = sample(*node(patcher, negative, 2.0, rule="vsf"), x, positive)
    both = [[torch.cat([positive[0][0], negative[0][0]], dim=1), positive[0][1]]]
    flipped = patcher.clone()

    def attend(function, q, k, v, heads, mask=None, skip_reshape=False, **kwargs):
        if not (k.shape[2] == 37 if skip_reshape else k.shape[1] == 21):
            return function(q, k, v, heads, mask=mask, skip_reshape=skip_reshape, **kwargs)
        q, k, v = (y.transpose(1, 2) if skip_reshape else y.unflatten(-1, (heads, -1)) for y in (q, k, v))
        kind = torch.tensor([0] * 12 + [1] * 9 + [2] * (k.shape[1] - 21))  # text+, text-, image
        asking = kind if skip_reshape else torch.full((q.shape[1],), 2)
        seen = ~((asking[:, None] + kind[None] == 1) & (asking[:, None] < 2) & (kind[None] < 2))
        logits = torch.einsum("bshd,bthd->bhst", q.double(), k.double()) / q.shape[-1] ** 0.5
        weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
        sign = torch.where((asking[:, None] == 2) & (kind[None] == 1), -2.0, 1.0).double()
        return torch.einsum("bhst,bthd->bshd", weights * sign, v.double()).flatten(2).to(v.dtype)

    flipped.model_options["transformer_options"]["optimized_attention_override"] = attend
    assert difference(guided, sample(flipped, x, both)) < ROUNDING


@pytest.mark.parametrize("name", ["sd15", "wan", "ltxv", "cosmos"])
def test_as_many_image_tokens_as_text_tokens(node, model, name):
    tiny, patcher = model(name)
    tokens = {"sd15": 64, "wan": 32, "ltxv": 128, "cosmos": 32}[name]
    x, positive, negative = tiny.start(), tiny.conditioning(1, 12), tiny.conditioning(2, tokens - 12)
    guided = sample(*node(patcher, negative, **SETTINGS), x, positive)
    expected, _ = two_runs(tiny, patcher, x, positive, negative, *SETTINGS.values())
    assert difference(guided, expected) < ROUNDING


def test_a_mask_that_only_the_text_refiner_sees(node, model):
    """Lumina 2 masks the text among itself, and not in the layers that see the image."""
    tiny, patcher = model("lumina2")
    tiny = dataclasses.replace(tiny, text=lambda n: {"attention_mask": torch.arange(n)[None] < n - 2})
    x, (positive, negative) = tiny.start(), texts(tiny, 12, 9)
    guided = sample(*node(patcher, negative, **SETTINGS), x, positive)
    expected, _ = two_runs(tiny, patcher, x, positive, negative, *SETTINGS.values())
    assert difference(guided, expected) < ROUNDING


@kinds
def test_half_precision(node, model, name):
    tiny, patcher = model(name)
    x, (positive, negative) = tiny.start(), texts(tiny, 12, 9)
    exact = sample(*node(patcher, negative, **SETTINGS), x, positive)
    half = copy_of(patcher.model)
    half.diffusion_model.to(torch.bfloat16)
    half.diffusion_model.dtype = torch.bfloat16
    plain = difference(sample(tiny.patcher(half), x, positive), sample(patcher, x, positive))
    assert difference(sample(*node(tiny.patcher(half), negative, **SETTINGS), x, positive), exact) < 4 * plain


@pytest.mark.slow
def test_a_node_that_compiles_the_model(node, model):
    tiny, patcher = model("flux")
    x, (positive, negative) = tiny.start(), texts(tiny, 12, 9)
    steps = sigmas_of(patcher, 0.1, 0.35)
    compiled = patcher.clone()
    helpers = importlib.import_module("comfy_api.torch_helpers.torch_compile")
    helpers.set_torch_compile_wrapper(model=compiled, backend="eager")
    plain, fast = (
        euler(*node(each, negative, **SETTINGS, start_percent=0.2, end_percent=0.4), x, positive, steps)
        for each in (patcher, compiled)
    )
    assert difference(fast, plain) < ROUNDING
    torch._dynamo.reset()
