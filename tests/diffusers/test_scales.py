# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""A nag_scale for each step, against the untouched model with a doubled batch in each step."""

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import HeunDiscreteScheduler, StableDiffusion3Img2ImgPipeline
from drawing import compile_transformer, denoiser, draw, draw_with_oracle, negative_of
from every_model import MODELS, PIPELINES, pipeline, text_width
from pipeline_parts import NEGATIVE
from test_modular_guiders import Reversed
from test_modular_guiders import run as modular_run
from test_modular_guiders import sd3 as modular_sd3
from tiny import error, seeded
from torch._dynamo.testing import CompileCounterWithBackend

from nag_kernels.diffusers import GuidedDenoiser, NormalizedAttentionGuidance, diagnose, enable_guidance, guide, guided
from nag_kernels.diffusers.models.registry import guided_layers

pytestmark = pytest.mark.usefixtures("one_thread")

REST = {"nag_tau": 3.0, "nag_alpha": 0.5}
SCALES = [9.0, 6.5, 4.0, 1.5]


def guided_calls(pipe):
    """Grows by one for each call of the denoiser: whether it was guided."""
    calls = []
    layer = guided_layers(denoiser(pipe))[0]
    layer.register_forward_hook(lambda layer, *_: calls.append("NAG" in type(layer.processor).__name__))
    return calls


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("kind", ["sd15", "sdxl", "pixart", "sd3", "flux", "wan", "ltx"])
def test_a_scale_for_each_step_equals_the_doubled_batch(kind, guidance_scale):
    pipe = pipeline(kind)
    recorded = negative_of(pipe, guidance_scale=guidance_scale)
    wanted, _ = draw_with_oracle(pipe, 1, recorded, SCALES, 3.0, 0.5, guidance_scale=guidance_scale)
    with guide(pipe, NEGATIVE, nag_scale=SCALES, **REST):
        got = draw(pipe, guidance_scale=guidance_scale)
    assert error(got, wanted) < 2e-5
    with guide(pipe, NEGATIVE, nag_scale=SCALES[::-1], **REST):
        assert error(draw(pipe, guidance_scale=guidance_scale), got) > 1e-3


@pytest.mark.parametrize(
    ("rule", "scales", "bias"), [("nasa", [0.4, 0.3, 0.2, 0.1], None), ("vsf", [1.5, 0.5, 0.0, 2.0], -0.4)]
)
@pytest.mark.parametrize("kind", ["sd15", "sd3"])
def test_the_other_rules(kind, rule, scales, bias):
    pipe = pipeline(kind)
    recorded = negative_of(pipe, guidance_scale=3.0)
    wanted, _ = draw_with_oracle(pipe, 1, recorded, scales, bias, None, rule=rule, guidance_scale=3.0)
    with guide(pipe, NEGATIVE, nag_scale=scales, rule=rule, negative_logit_bias=bias or 0.0):
        assert error(draw(pipe, guidance_scale=3.0), wanted) < 2e-5


def test_all_forms_are_the_same():
    pipe, asked = pipeline("sd3"), []

    def falling(i, n):
        asked.append((i, n))
        return 9.0 - 2.5 * i

    with guide(pipe, NEGATIVE, nag_scale=SCALES):
        wanted = draw(pipe)
    for scales in (tuple(SCALES), torch.tensor(SCALES), np.array(SCALES), falling):
        assert torch.equal(draw(guided(pipe, NEGATIVE, nag_scale=scales)), wanted)
    assert asked == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert torch.equal(draw(guided(pipe, NEGATIVE, nag_scale=[4.0] * 4)), draw(guided(pipe, NEGATIVE, nag_scale=4.0)))


@pytest.mark.parametrize(("rule", "idle"), [("nag", 1.0), ("nasa", 0.0)])
def test_steps_whose_scale_does_nothing_are_the_stock_model(rule, idle):
    pipe, steps = pipeline("sd3"), {}
    calls = guided_calls(pipe)

    def keep(name):
        return lambda pipe, i, t, values: steps.setdefault(name, []).append(values["latents"].clone()) or values

    draw(pipe, callback_on_step_end=keep("plain"))
    calls.clear()
    with guide(pipe, NEGATIVE, nag_scale=[idle, idle, 5.0, idle], rule=rule):
        draw(pipe, callback_on_step_end=keep("guided"))
    assert calls == [False, False, True, False]
    assert [torch.equal(a, b) for a, b in zip(*steps.values(), strict=True)] == [True, True, False, False]
    assert torch.equal(draw(pipe), steps["plain"][-1])


def test_a_low_tau_clips_also_where_the_scale_is_1():
    pipe = pipeline("sd3")
    calls = guided_calls(pipe)
    with guide(pipe, NEGATIVE, nag_scale=[5.0, 1.0, 1.0, 1.0], nag_tau=0.5):
        draw(pipe)
    assert calls == [True] * 4


def test_beside_start_and_end_the_scales_are_those_of_all_steps():
    pipe = pipeline("flux")
    recorded = negative_of(pipe)
    wanted, _ = draw_with_oracle(pipe, 1, recorded, SCALES, 3.0, 0.5, steps=[1, 2])
    with guide(pipe, NEGATIVE, nag_scale=SCALES, start=0.25, end=0.75, **REST):
        assert error(draw(pipe), wanted) < 2e-5


def test_schedulers_of_second_order_have_one_scale_for_both_visits():
    pipe = pipeline("sd15")
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    recorded = negative_of(pipe)
    wanted, _ = draw_with_oracle(pipe, 1, recorded, SCALES, 3.0, 0.5)
    with guide(pipe, NEGATIVE, nag_scale=SCALES, **REST):
        assert error(draw(pipe), wanted) < 2e-5


def test_a_run_that_leaves_out_its_first_steps():
    pipe = StableDiffusion3Img2ImgPipeline(**pipeline("sd3").components)
    pipe.set_progress_bar_config(disable=True)
    calls, asked = guided_calls(pipe), []
    call = {
        "num_inference_steps": 6,
        "strength": 0.5,
        "max_sequence_length": 12,
        "guidance_scale": 1.0,
        "output_type": "latent",
    }
    image = torch.linspace(0, 1, 192).view(1, 3, 8, 8)
    with guide(pipe, NEGATIVE, nag_scale=lambda i, n: asked.append((i, n)) or (1.0 if i == 1 else 5.0)):
        pipe("a small red cat", image=image, **call)
    assert asked == [(0, 3), (1, 3), (2, 3)]
    assert calls == [True, False, True]
    with pytest.raises(ValueError, match="each step of the call, 3, got 6"), guide(pipe, NEGATIVE, nag_scale=[5.0] * 6):
        pipe("a small red cat", image=image, **call)


PARTS = [  # of four steps, by the calls of the denoiser
    ("framepack", [5, 1, 5, 1], "YnYn YnYn"),
    # Keys and values of a part are kept by a call of their own, which goes with the step before it.
    ("anyflow from an image", [5, 5, 1, 1], "Y YYnn n YYnn"),
    ("anyflow from an image", [1, 5, 1, 5], "n nYnY Y nYnY"),
]


@pytest.mark.parametrize(("kind", "scales", "wanted"), [x for x in PARTS if x[0] in PIPELINES])
def test_videos_in_parts_go_through_their_scales_anew(kind, scales, wanted):
    pipe, call, prompt, negative = PIPELINES[kind]()
    pipe.set_progress_bar_config(disable=True)
    call = {name: x for name, x in call.items() if not name.startswith("negative_")}  # no classifier-free guidance
    calls = guided_calls(pipe)
    with guide(pipe, negative, nag_scale=scales):
        pipe(**{"guidance_scale": 1.0} | call | {"num_inference_steps": 4, "output_type": "latent"}, **prompt)
    assert "".join("Y" if x else "n" for x in calls) == wanted.replace(" ", "")


@pytest.mark.parametrize("how", ["torch.compile", "blocks"])
def test_compiled_denoisers_are_not_compiled_for_each_scale(how):
    pipe = pipeline("pixart")
    compiler = CompileCounterWithBackend("eager")
    with guide(pipe, NEGATIVE, nag_scale=SCALES):
        wanted = draw(pipe)
    compile_transformer(pipe, how, compiler)
    with guide(pipe, NEGATIVE, nag_scale=SCALES):
        assert error(draw(pipe), wanted) < 1e-5
    graphs = {"torch.compile": 1, "blocks": 2}[how]
    assert compiler.frame_count == graphs
    with guide(pipe, NEGATIVE, nag_scale=lambda i, n: 2.0 + i / n):
        draw(pipe, num_inference_steps=6)
    assert compiler.frame_count == graphs


def test_numbers_in_tensors_and_arrays():
    pipe = pipeline("sd3")
    wanted = draw(guided(pipe, NEGATIVE, nag_scale=3.0, nag_tau=1.5, nag_alpha=0.5))
    for make in (torch.tensor, np.float32, np.float64, np.array, lambda x: torch.tensor(x, dtype=torch.bfloat16)):
        got = draw(guided(pipe, NEGATIVE, nag_scale=make(3.0), nag_tau=make(1.5), nag_alpha=make(0.5)))
        assert torch.equal(got, wanted)
        for scales in ([make(3.0)] * 4, lambda i, n, make=make: make(3.0)):
            assert torch.equal(draw(guided(pipe, NEGATIVE, nag_scale=scales, nag_tau=1.5, nag_alpha=0.5)), wanted)
    vsf = {"nag_scale": 2.0, "rule": "vsf"}
    wanted = draw(guided(pipe, NEGATIVE, negative_logit_bias=-0.25, **vsf))
    assert torch.equal(draw(guided(pipe, NEGATIVE, negative_logit_bias=torch.tensor(-0.25), **vsf)), wanted)
    text = {"encoder_hidden_states": torch.zeros(1, 7, text_width("sd15"))}
    with guide(seeded(MODELS["sd15"]), text, nag_scale=torch.tensor(3)) as model:
        model(torch.ones(1, 4, 8, 8), 1, torch.ones(1, 7, text_width("sd15")))


def test_objects_that_keep_their_settings_keep_numbers():
    guider = NormalizedAttentionGuidance(nag_scale=torch.tensor(3.0), nag_tau=np.array(1.5))
    assert (type(guider.nag_scale), guider.nag_scale, guider.nag_tau) == (float, 3.0, 1.5)
    assert '"nag_scale": 3.0' in guider.to_json_string()
    guider.nag_alpha = torch.tensor(0.25)
    assert guider.nag_alpha == 0.25
    denoiser = GuidedDenoiser(seeded(MODELS["sd15"]), nag_scale=torch.tensor(3.0))
    assert type(denoiser.nag_scale) is float


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [[5.0] * 3, [5.0] * 5, torch.full((3,), 5.0)])
@pytest.mark.parametrize("kind", ["sd15", "flux"])
def test_a_list_of_another_length_than_the_steps(kind, scales):
    """It is found before the denoiser is called."""
    pipe = pipeline(kind)
    calls = guided_calls(pipe)
    message = f"nag_scale must have a number for each step of the call, 4, got {len(scales)}; a function nag_scale"
    with pytest.raises(ValueError, match=message), guide(pipe, NEGATIVE, nag_scale=scales):
        draw(pipe, guidance_scale=3.0)
    assert calls == []


def test_the_length_is_found_before_an_unconditional_call():
    pipe, call = modular_sd3(Reversed(guidance_scale=3.0))
    calls = guided_calls(pipe)
    with (
        pytest.raises(ValueError, match=r"each step of the call, .* got 7"),
        guide(pipe, NEGATIVE, nag_scale=[5.0] * 7),
    ):
        modular_run(pipe, **call)
    assert calls == []


BAD = [
    (0.5, {}, "nag_scale must be at least 1 for rule 'nag', got 0.5: 1 does nothing"),
    (float("inf"), {}, "nag_scale must be finite, got inf"),
    (float("nan"), {"rule": "nasa"}, "nag_scale must be finite, got nan"),
    (1e39, {"rule": "nasa"}, r"finite in float32, got 1e\+39"),
]


@pytest.mark.parametrize(("bad", "settings", "message"), BAD)
def test_each_value_is_checked(bad, settings, message):
    pipe = pipeline("sd15")
    calls, scales = guided_calls(pipe), [5.0, 5.0, bad, 5.0]
    with pytest.raises(ValueError, match=f"guide: step 2: .*{message}"):
        enable_guidance(pipe, NEGATIVE, nag_scale=scales, **settings)
    with (
        pytest.raises(ValueError, match=f"guide: step 2: .*{message}"),
        guide(pipe, NEGATIVE, nag_scale=lambda i, n: scales[i], **settings),
    ):
        draw(pipe)
    assert calls == []


def test_what_is_no_number():
    pipe = pipeline("sd15")
    for scales, message in (
        ([5.0, "6"], "guide: step 1: nag_scale must be a number, got str"),
        ([5.0, None], "guide: step 1: nag_scale must be a number, got None"),
        ("5", "guide: nag_scale must be a number, got str"),
        (torch.ones(2, 2), "guide: nag_scale must be a number, got Tensor"),
    ):
        with pytest.raises(TypeError, match=message):
            enable_guidance(pipe, NEGATIVE, nag_scale=scales)
    with pytest.raises(ValueError, match="nag_scale must have a number for each step, got none"):
        enable_guidance(pipe, NEGATIVE, nag_scale=[])


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize(("rule", "idle"), [("nag", 1.0), ("nasa", 0.0)])
@pytest.mark.parametrize("form", ["number", "list", "function"])
def test_scales_that_all_do_nothing_are_the_stock_model(form, rule, idle, guidance_scale):
    """A slider at its end switches guidance off, whatever the form."""
    pipe = pipeline("sd15")
    calls, plain = guided_calls(pipe), draw(pipe, guidance_scale=guidance_scale)
    scale = {"number": idle, "list": [idle] * 4, "function": lambda i, n: idle}[form]
    with guide(pipe, NEGATIVE, nag_scale=scale, rule=rule, end=0.5):
        assert torch.equal(draw(pipe, guidance_scale=guidance_scale), plain)
    assert calls == [False] * 8


def test_a_single_scale_of_1_acts_where_a_low_tau_clips():
    pipe = pipeline("sd3")
    calls = guided_calls(pipe)
    with guide(pipe, NEGATIVE, nag_scale=1.0, nag_tau=0.5):
        draw(pipe)
    assert calls == [True] * 4


def test_scales_that_do_nothing_in_the_window():
    message = "start 0 and end 0.5 with a nag_scale other than 1, which does nothing: guidance did not act; the call had 4 steps"
    pipe = pipeline("sd15")
    with pytest.raises(RuntimeError, match=message), guide(pipe, NEGATIVE, nag_scale=[1.0, 1.0, 5.0, 5.0], end=0.5):
        draw(pipe)


def test_where_one_number_is_needed():
    model, text = seeded(MODELS["sd15"]), {"encoder_hidden_states": torch.zeros(1, 7, text_width("sd15"))}
    for scales in ([5.0] * 4, lambda i, n: 5.0):
        with (
            pytest.raises(ValueError, match=r"one number for a bare denoiser, .* a block of their own"),
            guide(model, text, nag_scale=scales),
        ):
            pass
    pipe = pipeline("sd15")
    with (
        pytest.raises(ValueError, match=r"diagnose: nag_scale must be one number"),
        diagnose(pipe, NEGATIVE, nag_scale=[5.0]),
    ):
        pass
    assert type(pipe).__name__ == "StableDiffusionPipeline"


@pytest.mark.parametrize("rule", ["nasa", "vsf"])
def test_a_negative_scale_would_draw_the_negative(rule):
    with pytest.raises(ValueError, match=f"nag_scale must be at least 0 for rule '{rule}', got -0.5: less would draw"):
        guided(pipeline("pixart"), NEGATIVE, nag_scale=-0.5, rule=rule)
    with pytest.raises(ValueError, match="step 1: nag_scale must be at least 0"):
        guided(pipeline("pixart"), NEGATIVE, nag_scale=[0.5, -0.5], rule=rule)


def test_a_scale_that_is_no_number():
    with pytest.raises(TypeError, match="nag_scale must be a number, got True"):
        guided(pipeline("pixart"), NEGATIVE, nag_scale=True)


def test_a_number_that_requires_a_gradient():
    pipe, one = pipeline("pixart"), torch.tensor(3.0, requires_grad=True)
    for name, given in (
        ("nag_scale", one),
        ("nag_tau", one),
        ("nag_alpha", one),
        ("nag_scale", one.expand(4)),
        ("nag_scale", [one]),
    ):
        with pytest.raises(
            ValueError, match=rf"{name} is a tensor that requires a gradient, .* give {name}.detach\(\)"
        ):
            guided(pipe, NEGATIVE, **{name: given})
    with pytest.raises(TypeError, match="nag_tau must be a number, got a tensor that cannot be read"):
        guided(pipe, NEGATIVE, nag_tau=torch.tensor(3.0, device="meta"))
    for bad in (torch.tensor(True), torch.tensor(3j)):
        with pytest.raises(TypeError, match="nag_scale must be a number, got"):
            guided(pipe, NEGATIVE, nag_scale=bad)
