# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`NormalizedAttentionGuidance`, guidance as a guider of a modular pipeline."""

import threading

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers.guiders import ClassifierFreeGuidance
from drawing import draw
from modular_tiny import MODULAR, NEGATIVE, modular
from test_modular_guiders import FIRM, Reversed, run, sd3, sdxl
from test_modular_pipelines import Outputs, furthest
from tiny import error

from nag_kernels.diffusers import NormalizedAttentionGuidance, diagnose, guide
from nag_kernels.diffusers.models.registry import guided_layers

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

GUIDERS = ("guider", "guider_2")


def with_guider(pipe, make):
    pipe.update_components(**{name: make() for name in GUIDERS if name in pipe._component_specs})


def guiders_are_free(name):
    """Whether its blocks have guiders, and take any."""
    specs = getattr(diffusers, name)()._component_specs
    return "guider" in specs and "audio_guider" not in specs


@pytest.mark.parametrize("name", [name for name in MODULAR if guiders_are_free(name)])
def test_draws_what_guide_draws(name):
    """To the bit, with one call of the denoiser for each step."""
    pipe, call, negative = modular(name)
    draw = Outputs(pipe)
    with guide(pipe, negative, **FIRM):
        wanted = draw(**call)
    with_guider(pipe, lambda: NormalizedAttentionGuidance(**FIRM))
    got = draw(**call | {"negative_prompt": negative})
    assert furthest(got, wanted) == 0
    assert len(got) == len(wanted)
    with_guider(pipe, lambda: ClassifierFreeGuidance(guidance_scale=1.0))
    assert furthest(draw(**call), wanted) > 1e-3


SETTINGS = [
    {"nag_scale": 3.0},
    {"nag_tau": 1.2},
    {"nag_alpha": 0.9},
    {"rule": "nasa", "nag_scale": 0.3},
    {"rule": "vsf", "nag_scale": 0.5, "negative_logit_bias": -0.2},
    {"layers": "1"},
    {"start": 0.5},
    {"stop": 0.5},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda x: ", ".join(x))
def test_settings_are_those_of_guide(settings):
    pipe, call = sdxl()
    settings = FIRM | settings
    as_of_guide = {"end" if name == "stop" else name: x for name, x in settings.items()}
    with guide(pipe, NEGATIVE, **as_of_guide):
        wanted = run(pipe, **call)
    for given, differ in ((settings, False), (FIRM, True)):
        pipe.update_components(guider=NormalizedAttentionGuidance(**given))
        assert (error(run(pipe, **call, negative_prompt=NEGATIVE), wanted) > 1e-5) == differ


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda x: ", ".join(x))
@pytest.mark.parametrize("way", ["attribute", "change", "config"])
def test_settings_may_be_changed(settings, way):
    """As those of diffusers' own guiders are, by an attribute or in the config."""
    pipe, call = sdxl()
    pipe.update_components(guider=NormalizedAttentionGuidance(**FIRM | settings))
    wanted = run(pipe, **call, negative_prompt=NEGATIVE)
    guider = NormalizedAttentionGuidance(**FIRM)
    pipe.update_components(guider=guider)
    assert error(run(pipe, **call, negative_prompt=NEGATIVE), wanted) > 1e-5
    if way == "attribute":
        for name, value in settings.items():  # a scale of 0.3 needs its rule first
            setattr(guider, name, value)
    elif way == "change":
        guider.change(**settings)
    else:
        guider.register_to_config(**settings)
    for name, value in settings.items():
        assert getattr(guider, name) == value
        assert guider.config[name] == value
    assert torch.equal(run(pipe, **call, negative_prompt=NEGATIVE), wanted)


def test_enabled_may_be_changed():
    pipe, call = sdxl()
    plain = run(pipe, **call)
    guider = NormalizedAttentionGuidance(**FIRM)
    pipe.update_components(guider=guider)
    steered = run(pipe, **call, negative_prompt=NEGATIVE)
    guider.enabled = False
    assert torch.equal(run(pipe, **call, negative_prompt=NEGATIVE), plain)
    guider.enabled = True
    assert torch.equal(run(pipe, **call, negative_prompt=NEGATIVE), steered)
    assert error(steered, plain) > 1e-5


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rule", "cfg", "rule must be"),
        ("nag_scale", [3.0, 1.0], "nag_scale must be one number"),
        ("start", 1.5, "start"),
        ("nag_scale", "5", "nag_scale"),
    ],
)
def test_settings_that_are_changed_are_checked(name, value, message):
    guider = NormalizedAttentionGuidance(**FIRM)
    before = guider.settings
    with pytest.raises((ValueError, TypeError), match=message):
        setattr(guider, name, value)
    assert guider.settings == before


def test_layers_of_any_kind_are_saved(tmp_path):
    for layers in (range(2), {1, 0}, (0.0, 0.5), "0-1"):
        NormalizedAttentionGuidance(layers=layers).save_pretrained(tmp_path)
        saved = NormalizedAttentionGuidance.from_pretrained(tmp_path).layers
        assert saved == (layers if isinstance(layers, str) else list(layers))


def test_guiders_of_two_threads_over_one_denoiser():
    """Both wait for a call of it, the one that prepared first calls first; nothing of either is left behind."""
    unet = sdxl()[0].unet
    text = [torch.randn(1, 5, 64, generator=torch.manual_seed(i)) for i in range(3)]
    more = {"added_cond_kwargs": {"text_embeds": torch.zeros(1, 24), "time_ids": torch.zeros(1, 6)}}

    def call(which):
        return unet(torch.ones(1, 4, 4, 4), 1, text[which], **more)[0]

    def step(guider, which, before_call):
        with torch.no_grad():
            guider.calls = guider._input_predictions
            for name in guider.calls:
                guider._count_prepared = guider.calls.index(name)
                guider.prepare_models(unet)  # counts on
                before_call()
                result = call(which if name == "pred_cond" else 0)
                guider.cleanup_models(unet)
            return result

    plain = call(0)
    alone = [step(NormalizedAttentionGuidance(**FIRM), which, lambda: None) for which in (1, 2)]
    guiders = [NormalizedAttentionGuidance(**FIRM) for _ in range(2)]
    ready, called = threading.Barrier(2, timeout=30), threading.Event()
    got = {}

    def first():
        got[0] = step(guiders[0], 1, ready.wait)
        called.set()
        with torch.no_grad():
            got["plain"] = call(0)

    def second():
        def wait():
            ready.wait()
            called.wait(0.3)

        got[1] = step(guiders[1], 2, wait)

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(got[0], alone[0])
    assert torch.equal(got[1], alone[1])
    assert torch.equal(got["plain"], plain)
    assert "_compiled_call_impl" not in unet.__dict__
    assert torch.equal(call(0), plain)


def test_negative_pooled():
    pipe, call = sd3()
    with guide(pipe, NEGATIVE, negative_pooled=True, **FIRM):
        wanted = run(pipe, **call)
    for pooled in (True, False):
        pipe.update_components(guider=NormalizedAttentionGuidance(negative_pooled=pooled, **FIRM))
        assert (error(run(pipe, **call | {"negative_prompt": NEGATIVE}), wanted) < 1e-6) == pooled


def test_the_paper_s_settings_where_none_are_given():
    pipe, call = sdxl()
    with guide(pipe, NEGATIVE):
        wanted = run(pipe, **call)
    pipe.update_components(guider=NormalizedAttentionGuidance())
    assert torch.equal(run(pipe, **call, negative_prompt=NEGATIVE), wanted)


def test_each_image_has_its_negative():
    pipe, call = sdxl()
    pipe.update_components(guider=NormalizedAttentionGuidance(**FIRM))
    call |= {"prompt": ["a cat", "a dog"], "latents": torch.randn(2, 4, 4, 4, generator=torch.manual_seed(3))}
    both = run(pipe, **call, negative_prompt=["a house", "a tree"])
    for i, (prompt, negative) in enumerate(zip(call["prompt"], ["a house", "a tree"], strict=True)):
        alone = run(pipe, **call | {"prompt": prompt, "latents": call["latents"][i : i + 1]}, negative_prompt=negative)
        assert error(both[i : i + 1], alone) < 1e-5


def test_a_guider_is_saved_with_its_settings(tmp_path):
    settings = FIRM | {"layers": ["1"], "start": 0.25, "stop": 0.75}
    guider = NormalizedAttentionGuidance(**settings)
    guider.save_pretrained(tmp_path)
    for other in (NormalizedAttentionGuidance.from_pretrained(tmp_path), guider.new()):
        assert other.settings == guider.settings
        assert (other.start, other.stop) == (0.25, 0.75)
    assert guider.new(nag_scale=3.0).settings == guider.settings | {"nag_scale": 3.0}


def test_disabled():
    pipe, call = sdxl()
    plain = run(pipe, **call)
    pipe.update_components(guider=NormalizedAttentionGuidance(enabled=False, **FIRM))
    assert torch.equal(run(pipe, **call, negative_prompt=NEGATIVE), plain)


def test_blocks_that_switch_guiders_off_do_not_switch_it_off():
    """SDXL's do, for a UNet that embeds its guidance scale (LCM's)."""
    guider = NormalizedAttentionGuidance(**FIRM)
    with pytest.warns(UserWarning, match=r"disable\(\) leaves it on, .* make it with enabled=False"):
        guider.disable()
    assert guider.num_conditions == 2
    guider = NormalizedAttentionGuidance(enabled=False)
    guider.enable()
    assert guider.num_conditions == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "cfg"}, "rule"),
        ({"nag_scale": 0.5}, "nag_scale must be at least 1"),
        ({"nag_scale": [2.0, 3.0]}, "nag_scale must be one number, got .*; `guide` takes one for each step"),
        ({"start": 1.5}, "start"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        NormalizedAttentionGuidance(**settings)


def test_guide_refuses_a_pipeline_that_has_it():
    wanted = "has the guider NormalizedAttentionGuidance, which guides by itself, away from the call's negative_prompt"
    with pytest.raises(ValueError, match=wanted), guide(sd3(NormalizedAttentionGuidance())[0], NEGATIVE):
        pass


def traces(model):
    return dict(model.__dict__), [layer.processor for layer in guided_layers(model)]


def test_nothing_is_left_behind():
    pipe, call = sdxl()
    before = traces(pipe.unet)
    pipe.update_components(guider=NormalizedAttentionGuidance(**FIRM))
    run(pipe, **call, negative_prompt=NEGATIVE)
    assert traces(pipe.unet) == before
    hook = pipe.unet.mid_block.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(pipe, **call, negative_prompt=NEGATIVE)
    hook.remove()
    assert traces(pipe.unet) == before


def test_no_negative_text():
    """Blocks that read `num_conditions` make one; others may not."""
    model, guider = sdxl()[0].unet, NormalizedAttentionGuidance()
    guider.calls = guider._input_predictions
    guider.prepare_models(model)
    with pytest.raises(
        ValueError, match=r"made no negative text for UNet2DConditionModel \(encoder_hidden_states is None"
    ):
        model(torch.zeros(1, 4, 4, 4), 1, None)


def test_a_block_that_does_not_call_the_denoiser():
    model, guider = sdxl()[0].unet, NormalizedAttentionGuidance()
    plain = traces(model)
    guider.calls = guider._input_predictions
    guider.prepare_models(model)
    with pytest.raises(
        RuntimeError, match="did not call its UNet2DConditionModel between prepare_models and cleanup_models"
    ):
        guider.cleanup_models(model)
    assert traces(model) == plain


def test_a_run_that_fails_before_its_denoiser_call_leaves_nothing():
    """As where a ControlNet in the loop runs out of memory: neither the ordinary pipeline nor another guider meets the guider."""
    pipe, call = sdxl()
    guider = NormalizedAttentionGuidance(nag_scale=5.0)
    pipe.update_components(guider=guider)
    parts = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "scheduler")
    ordinary = diffusers.StableDiffusionXLPipeline(
        **{name: pipe.components[name] for name in parts}, add_watermarker=False
    )
    plain = draw(ordinary)
    unguided = ClassifierFreeGuidance(guidance_scale=1.0)
    pipe.update_components(guider=unguided)
    other = run(pipe, **call)
    prepare = type(guider).prepare_models

    def failing(self, denoiser):
        prepare(self, denoiser)
        raise torch.OutOfMemoryError("simulated")

    for fails_at in (1, 2):
        for after in ("ordinary", "guider"):
            pipe.update_components(guider=guider)
            left = [fails_at]

            def at(self, denoiser, left=left):
                left[0] -= 1
                return (failing if left[0] == 0 else prepare)(self, denoiser)

            with pytest.MonkeyPatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
                patch.setattr(type(guider), "prepare_models", at)
                run(pipe, **call, negative_prompt=NEGATIVE)
            if after == "ordinary":
                assert torch.equal(draw(ordinary), plain)
            else:
                pipe.update_components(guider=unguided)
                assert torch.equal(run(pipe, **call), other)


def test_calls_of_other_threads_are_plain():
    """That come between the guider's preparation and the call that it waits for."""
    unet, guider = sdxl()[0].unet, NormalizedAttentionGuidance()
    text, size = torch.randn(1, 5, 64, generator=torch.manual_seed(3)), (1, 4, 4, 4)
    added = {"text_embeds": torch.zeros(1, 24), "time_ids": torch.zeros(1, 6)}
    plain = unet(torch.ones(size), 1, text, added_cond_kwargs=added)[0]
    guider.calls = guider._input_predictions
    guider.prepare_models(unet)
    got = []

    def work():
        with torch.no_grad():
            got.append(unet(torch.ones(size), 1, text, added_cond_kwargs=added)[0])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert torch.equal(got[0], plain)
    assert not unet(torch.ones(size), 1, text, added_cond_kwargs=added)[0].any()  # it is read, and not run
    guider.cleanup_models(unet)


@pytest.mark.parametrize(
    "guider", [lambda: ClassifierFreeGuidance(guidance_scale=3.0), lambda: Reversed(guidance_scale=3.0)]
)
def test_diagnose_measures_modular_pipelines(guider):
    """The call with the prompt alone."""
    pipe, call = sd3(guider())
    with guide(pipe, NEGATIVE, **FIRM):
        wanted = run(pipe, **call)
    with diagnose(pipe, NEGATIVE, **FIRM) as found:
        assert torch.equal(run(pipe, **call), wanted)
    assert len(found.layers) == len(guided_layers(pipe.transformer))
    assert len(found.steps) == 2
    assert found.cell().moved > 0
