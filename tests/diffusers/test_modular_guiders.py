# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Guidance in modular pipelines: guiders, windows, states, pipelines in parts, and what is refused."""

import copy
import pathlib
import re

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import guiders
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks, OutputParam
from drawing import draw
from every_model import pipeline
from modular_tiny import NEGATIVE, modular
from pipeline_parts import CAT, PICTURE
from tiny import error

from nag_kernels.diffusers import disable_guidance, enable_guidance, guide, guided

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

FIRM = {"nag_scale": 8.0, "nag_tau": 2.0, "nag_alpha": 0.5}
TWO_CALLS = [
    name
    for name in guiders.__dict__
    if name.endswith("Guidance")
    and getattr(guiders, name)._input_predictions == ["pred_cond", "pred_uncond"]
    and name not in ("AutoGuidance", "FrequencyDecoupledGuidance")  # changes layers; needs another package
]
LAYERS = {
    "AutoGuidance": {"auto_guidance_layers": 0, "dropout": 0.5},
    "SkipLayerGuidance": {"skip_layer_guidance_layers": 0},
    "PerturbedAttentionGuidance": {"perturbed_guidance_layers": 0},
    "SmoothedEnergyGuidance": {"seg_guidance_layers": [0]},
}


def run(pipe, output="latents", **call):
    return pipe(**call, output=output, generator=torch.Generator().manual_seed(7))


def sd3(guider=None, scale=1.0):
    pipe, call, _ = modular("StableDiffusion3ModularPipeline", scale)
    if guider is not None:
        pipe.update_components(guider=guider)
    return pipe, call


def sdxl(scale=1.0):
    """With the steps, prompt and size of `draw`."""
    pipe, call, _ = modular("StableDiffusionXLModularPipeline", scale)
    return pipe, call | CAT | {"num_inference_steps": 4}


@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("window", [{}, {"end": 0.5}, {"start": 0.5}, {"sigma_end": 3.0}], ids=str)
def test_texts_and_windows_are_those_of_the_ordinary_pipeline(scale, window):
    pipe, call = sdxl(scale)
    other, options = pipeline("sdxl"), {"guidance_scale": scale, "negative_prompt": "a house"}
    plain = run(pipe, **call, negative_prompt="a house")
    with guide(pipe, NEGATIVE, **window, **FIRM):
        got = run(pipe, **call, negative_prompt="a house")
    with guide(other, NEGATIVE, **window, **FIRM):
        wanted = draw(other, **options)
    assert error(got, wanted) < 1e-5
    assert error(plain, wanted) > (5e-5 if "start" in window else 1e-3)
    assert torch.equal(run(pipe, **call, negative_prompt="a house"), plain)


def test_a_negative_that_is_the_unconditional_text():
    """Which the text alone cannot tell: the guider does."""
    pipe, call = sdxl(3.0)
    other = pipeline("sdxl")
    with guide(pipe, "a house", **FIRM):
        got = run(pipe, **call, negative_prompt="a house")
    with guide(other, "a house", **FIRM):
        wanted = draw(other, guidance_scale=3.0, negative_prompt="a house")
    assert error(got, wanted) < 1e-5


def guided_steps(pipe, end, **call):
    """Of each call of the denoiser, whether its text is longer than one."""
    seen = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda model, inputs, named: seen.append(named["encoder_hidden_states"].shape[1] > 16), with_kwargs=True
    )
    with guide(pipe, NEGATIVE, end=end):
        run(pipe, **call)
    hook.remove()
    return seen


def test_a_window_counts_the_steps_of_a_run_that_leaves_some_out():
    pipe, call = sdxl()
    pipe.update_components(scheduler=diffusers.EulerDiscreteScheduler())
    picture = PICTURE.resize((8, 8))
    assert guided_steps(pipe, 0.5, **call) == [True, True, False, False]
    assert guided_steps(pipe, 0.5, **call | {"image": picture, "strength": 1.0}) == [True, True, False, False]
    assert guided_steps(pipe, 0.5, **call | {"image": picture, "strength": 0.5}) == [True, False]
    assert guided_steps(pipe, 0.5, **call, denoising_end=0.5) == [True, False]
    assert guided_steps(pipe, 0.5, **call | {"image": picture, "denoising_start": 0.5}) == [True, False]


def test_a_window_needs_to_know_where_the_steps_begin():
    pipe, call = sdxl()
    pipe.update_components(scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False))
    with guide(pipe, NEGATIVE, end=0.5):
        run(pipe, **call)
        with pytest.raises(
            ValueError, match="DDIMScheduler does not say with which of its steps a run from an image begins"
        ):
            run(pipe, **call | {"image": PICTURE.resize((8, 8)), "strength": 0.5})
    pipe, call, negative = modular("EchoModularPipeline")
    with guide(pipe, negative, end=0.5), pytest.raises(ValueError, match="EchoModularPipeline has no scheduler"):
        pipe(**call)


@pytest.mark.parametrize("name", TWO_CALLS)
def test_guiders_that_make_two_calls(name):
    """The guider steers away from what the untouched unconditional call gives."""
    pipe, call, negative = modular("Flux2KleinBaseModularPipeline")
    pipe.update_components(guider=getattr(guiders, name)(guidance_scale=3.0))
    outputs = []
    pipe.transformer.register_forward_hook(lambda model, inputs, output: outputs.append(output[0]))
    run(pipe, **call)
    with guide(pipe, negative, **FIRM):
        run(pipe, **call)
    plain, got = outputs[:4], outputs[4:]
    assert torch.equal(got[1], plain[1])
    assert error(got[0], plain[0]) > 1e-3
    assert len(got) == 4


def test_the_dry_run_leaves_a_guider_as_it_is():
    """One that keeps a running average over the steps, and over runs."""

    def momentum():
        return guiders.AdaptiveProjectedGuidance(guidance_scale=3.0, adaptive_projected_guidance_momentum=-0.5)  # fmt: skip

    (pipe, call), (again, _) = sd3(momentum()), sd3(momentum())
    with guide(pipe, NEGATIVE, nag_scale=1 + 1e-6):
        got = run(pipe, **call)
    assert error(got, run(again, **call)) < 1e-5


@pytest.mark.parametrize("part", [{"start": 0.5}, {"stop": 0.5}], ids=["late", "early"])
def test_guiders_that_act_in_a_part_of_the_steps(part):
    pipe, call = sd3(ClassifierFreeGuidance(guidance_scale=3.0, **part))
    outputs = []
    pipe.transformer.register_forward_hook(lambda model, inputs, output: outputs.append(output[0]))
    run(pipe, **call)
    with guide(pipe, NEGATIVE, **FIRM):
        run(pipe, **call)
    plain, got = outputs[:3], outputs[3:]
    assert error(got[0], plain[0]) > 1e-3
    if "stop" in part:
        assert torch.equal(got[1], plain[1])


def test_other_passes_of_ltx2_stay_as_they_are():
    """Spatio-temporal guidance and modality guidance, of video and sound."""
    pipe, call, negative = modular("LTX2ModularPipeline", 3.0)
    for name in ("guider", "audio_guider"):
        guider = guiders.LTX2Guidance(
            guidance_scale=3.0, stg_scale=1.0, modality_scale=3.0, spatio_temporal_guidance_blocks=[0]
        )
        pipe.update_components(**{name: guider})
    outputs = []
    pipe.transformer.register_forward_hook(lambda model, inputs, output: outputs.append(output[0]))
    call["num_inference_steps"] = 1
    run(pipe, **call)
    with guide(pipe, negative, **FIRM):
        run(pipe, **call)
    plain, got = outputs[:4], outputs[4:]
    assert error(got[0], plain[0]) > 1e-3
    for i in (1, 2, 3):
        assert torch.equal(got[i], plain[i])


@pytest.mark.parametrize("name", LAYERS)
def test_guiders_that_change_layers_are_refused(name):
    guider = getattr(guiders, name)(**LAYERS[name])
    wanted = f"has the guider {name}, which changes layers of the denoiser .*update_components\\(guider="
    pipe, call = sd3(guider)
    with pytest.raises(ValueError, match=wanted), guide(pipe, NEGATIVE):
        pass
    pipe, call = sd3()
    with guide(pipe, NEGATIVE):
        pipe.update_components(guider=guider)
        with pytest.raises(ValueError, match=wanted):
            pipe(**call)


def test_guiders_with_calls_of_their_own_are_refused():
    class Three(ClassifierFreeGuidance):
        _input_predictions = ["pred_cond", "pred_uncond", "pred_other"]

    with pytest.raises(ValueError, match="has the guider Three"), guide(sd3(Three())[0], NEGATIVE):
        pass


def test_all_ways_to_enable_guidance():
    pipe, call = sdxl()
    plain = run(pipe, **call)
    with guide(pipe, NEGATIVE, **FIRM):
        wanted = run(pipe, **call)
    assert torch.equal(run(pipe, **call), plain)
    steered = guided(pipe, NEGATIVE, **FIRM)
    assert torch.equal(run(steered, **call), wanted)
    enable_guidance(pipe, NEGATIVE, **FIRM)
    assert torch.equal(run(pipe, **call), wanted)
    disable_guidance(pipe)
    assert torch.equal(run(pipe, **call), plain)
    with pytest.raises(RuntimeError, match="StableDiffusionXLModularPipeline was not called"), guide(pipe, NEGATIVE):
        pass


def test_the_examples_of_the_page(monkeypatch):
    """With a tiny pipeline in the place of the one that they load."""
    page = pathlib.Path(__file__).parents[2] / "docs" / "modular_pipelines.md"
    whole, parts, as_a_guider = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    pipe = diffusers.StableDiffusionXLModularPipeline()
    pipe.update_components(
        **{name: x for name, x in pipeline("sdxl").components.items() if name in pipe._component_specs}
    )
    pipe.load_components = lambda **_: None
    monkeypatch.setattr(diffusers.ModularPipeline, "from_pretrained", lambda name: pipe)
    names: dict = {}
    exec(whole, names)
    assert names["image"].size == (8, 8)
    exec(as_a_guider, names)
    assert names["image"].size == (8, 8)
    _, text_pipe, drawn, _, _ = parts_of_sdxl(decoded=True)
    drawn.update_components(guider=ClassifierFreeGuidance(guidance_scale=1.0))
    names |= {"text_pipe": text_pipe, "pipe": drawn}
    exec(parts, names)
    assert names["image"].size == (8, 8)


def parts_of_sdxl(decoded=False):
    """The pipeline that encodes a text, and the one that draws."""
    pipe, call = sdxl(3.0)
    whole, blocks = pipe, diffusers.StableDiffusionXLModularPipeline().blocks if decoded else pipe.blocks
    encoder = blocks.sub_blocks.pop("text_encoder")
    parts = [diffusers.StableDiffusionXLModularPipeline(x) for x in (encoder, blocks)]
    for pipe in parts:
        pipe.update_components(**{name: x for name, x in whole.components.items()
                                  if name in pipe._component_specs and name != "feature_extractor"})  # fmt: skip
    text = {"prompt": call.pop("prompt"), "negative_prompt": "a house"}
    return whole, *parts, text, call


@pytest.mark.parametrize("way", ["state", "names"])
def test_a_pipeline_without_a_text_encoder_takes_ready_made_text(way):
    whole, encode, drawn, text, call = parts_of_sdxl()
    with guide(whole, NEGATIVE, **FIRM):
        wanted = run(whole, **text, **call)
    state = encode(**text)
    names = ("prompt_embeds", "pooled_prompt_embeds")
    negative = encode(prompt=NEGATIVE, negative_prompt="a house").get(list(names))
    given = {name: x for name, x in state.values.items() if name.endswith("prompt_embeds")}
    ways = {"state": {"state": state}, "names": given}
    with guide(drawn, negative, **FIRM):
        got = run(drawn, **ways[way], **call)
    assert error(got, wanted) < 1e-6
    assert error(got, run(drawn, **ways[way], **call)) > 1e-3
    no_encoder = "this StableDiffusionXLModularPipeline has no block that takes a prompt: give ready-made text"
    with guide(drawn, NEGATIVE), pytest.raises(ValueError, match=no_encoder):
        run(drawn, **ways[way], **call)
    with (
        guide(drawn, {"prompt_ids": negative[names[0]]}),
        pytest.raises(ValueError, match="no ready-made text named prompt_ids"),
    ):
        run(drawn, **ways[way], **call)


def test_a_state_is_neither_read_for_the_negative_nor_written_into():
    whole, _, _, text, call = parts_of_sdxl()
    before = whole(**text, **call, generator=torch.Generator().manual_seed(3))
    kept = copy.copy(before.values)
    with guide(whole, NEGATIVE, **FIRM):
        wanted = run(whole, **text, **call)
        got = run(whole, state=before, **text, **call | {"latents": None, "timesteps": None})
    assert error(got, wanted) < 1e-6
    assert all(before.values[name] is x for name, x in kept.items())


def test_progress_bars_are_those_of_one_run(capfd):
    pipe, call = sdxl()
    run(pipe, **call)
    bars = capfd.readouterr().err.count("0/4")
    with guide(pipe, NEGATIVE):
        run(pipe, **call)
    assert capfd.readouterr().err.count("0/4") == bars == 1


def test_a_pipeline_that_is_not_loaded():
    pipe = diffusers.FluxModularPipeline()
    with pytest.raises(ValueError, match=r"has no denoiser .* load_components"), guide(pipe, NEGATIVE):
        pass


def test_a_doubled_batch_raises():
    """Classifier-free guidance is the guider's, call by call; of blocks that double the batch the order is not known."""
    pipe, call, negative = modular("LTXModularPipeline")
    with guide(pipe, negative), pytest.raises(ValueError, match="batch"):
        pipe(**call | {"prompt": call["prompt"][:1]})


@pytest.mark.skipif(
    not hasattr(diffusers, "Cosmos3OmniModularPipeline"), reason="this diffusers has no modular Cosmos 3"
)
def test_the_negative_comes_without_the_sentences_that_blocks_put_after_a_prompt(monkeypatch):
    """By their default, which a call does not name."""
    pipe, call, negative = modular("Cosmos3OmniModularPipeline")
    call = {name: x for name, x in call.items() if name not in ("add_resolution_template", "add_duration_template")}
    encode, texts = pipe.text_tokenizer.apply_chat_template, []

    def noted(conversation, **options):
        texts.append(conversation[-1]["content"])
        return encode(conversation, **options)

    monkeypatch.setattr(pipe.text_tokenizer, "apply_chat_template", noted, raising=False)
    with guide(pipe, negative):
        pipe(**call)
    assert NEGATIVE in texts
    assert call["prompt"] not in texts
    assert any(text.startswith(call["prompt"]) for text in texts)


class Rewriter(ModularPipelineBlocks):
    """Makes more of a prompt before it is encoded, as FLUX.3's prompt upsampler does."""

    model_name = "rewriter"
    asked: list = []

    @property
    def inputs(self):
        return [InputParam("prompt")]

    @property
    def intermediate_outputs(self):
        return [OutputParam("prompt")]

    def __call__(self, components, state):
        self.asked.append(state.get("prompt"))
        state.set("prompt", [f"{x} in detail" for x in state.get("prompt")])
        return components, state


def test_a_negative_is_not_rewritten_where_a_block_rewrites_prompts(monkeypatch):
    from diffusers.modular_pipelines.flux3.prompt_upsampler import Flux3AutoPromptUpsampleStep

    from nag_kernels.diffusers.modular import _rewrites_prompt

    assert _rewrites_prompt(Flux3AutoPromptUpsampleStep())
    monkeypatch.setattr(Rewriter, "asked", [])
    pipe, call = sd3()
    with guide(pipe, NEGATIVE, **FIRM):
        wanted = run(pipe, **call | {"prompt": ["a cat in detail"]})
    pipe._blocks.sub_blocks.insert("rewriter", Rewriter(), 0)
    with guide(pipe, NEGATIVE, **FIRM):
        got = run(pipe, **call | {"prompt": ["a cat"]})
    assert Rewriter.asked == [["a cat"]]
    assert torch.equal(got, wanted)
    assert "rewriter" in pipe._blocks.sub_blocks


class Reversed(ClassifierFreeGuidance):
    """Calls for the unconditional text first."""

    def prepare_inputs(self, data):
        return super().prepare_inputs(data)[::-1]

    def prepare_inputs_from_block_state(self, data, fields):
        return super().prepare_inputs_from_block_state(data, fields)[::-1]


def test_a_guider_whose_unconditional_call_comes_first():
    pictures = []
    for guider in (ClassifierFreeGuidance, Reversed):
        pipe, call = sd3(guider(guidance_scale=3.0))
        with guide(pipe, NEGATIVE, **FIRM):
            pictures.append(run(pipe, **call))
    assert error(*pictures) < 1e-6


def test_a_window_on_a_picture_that_was_encoded_before_raises_where_its_steps_cannot_be_told():
    pipe, call = sdxl()
    pipe.update_components(scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False))
    for picture in ({"image": PICTURE.resize((8, 8))}, {"image_latents": torch.zeros(1, 4, 4, 4)}):
        refused = pytest.raises(ValueError, match="DDIMScheduler does not say with which of its steps")
        with refused, guide(pipe, NEGATIVE, end=0.5, **FIRM):
            run(pipe, **call, **picture, strength=0.5)
