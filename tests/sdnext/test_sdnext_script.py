# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""SD.Next's script, over a stand-in for SD.Next and real tiny pipelines."""

import importlib.util
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from sdnext_stand_in import Application
from test_unet import sd15_pipeline, sdxl_pipeline

from nag_kernels.diffusers import guide

SCRIPT = Path(__file__).parents[2] / "sdnext" / "nag_guidance.py"
ON, OFF = (True, 5, 2.5, 0.5, 1), (False, 5, 2.5, 0.5, 1)
DOES_NOTHING = (True, 1, 2.5, 0.5, 1)


def loaded(name="nag_guidance"):
    spec = importlib.util.spec_from_file_location(name, SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Opened:
    """SD.Next with the script in it."""

    def __init__(self, pipe):
        self.app = Application(pipe)
        self.modules = self.app.modules()
        self.plain = {name: getattr(self.app.drawing, name) for name in ("set_pipeline_args", "process_diffusers")}

    def load(self):
        self.module = loaded()
        self.script = self.module.NegativeGuidance()

    def draw(self, *values, **given):
        return self.app.draw(self.script, values, **given)

    def refused(self, *values, words, **given):
        before, kind = self.draw(*OFF), type(self.app.pipe)
        with pytest.raises(self.module.NegativeGuidanceError, match=words) as raised:
            self.draw(*values, **given)
        assert raised.value.detail.startswith("Negative guidance (NAG): ")
        assert self.app.shared.sd_model is self.app.pipe
        assert type(self.app.pipe) is kind
        assert same(self.draw(*OFF), before)


@pytest.fixture(autouse=True)
def _quick(one_thread):
    """Tiny models."""


@pytest.fixture(params=[sd15_pipeline, sdxl_pipeline], ids=["sd15", "sdxl"])
def sdnext(request, monkeypatch):
    return opened(request.param(), monkeypatch)


@pytest.fixture
def sd15(monkeypatch):
    return opened(sd15_pipeline(), monkeypatch)


def opened(pipe, monkeypatch):
    pipe.set_progress_bar_config(disable=True)
    its = Opened(pipe)
    for name, module in its.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    its.load()
    return its


def same(a, b):
    return len(a) == len(b) > 0 and all(map(torch.equal, a, b))


def image(seed=0):
    return [diffusers.image_processor.PIL.Image.new("RGB", (8, 8), (200, 90, 10 + seed))]


PASSES = [{}, {"init_images": image()}, {"hires": True}, {"cfg_scale": 4.0}, {"batch": 2}]
NAMES = ["from text", "from an image", "hires", "CFG", "two at once"]


@pytest.mark.parametrize("given", PASSES, ids=NAMES)
def test_the_negative_prompt_steers(sdnext, given):
    plain = sdnext.draw(*OFF, **given)
    first, second = sdnext.draw(*ON, **given), sdnext.draw(*ON, negative="green", **given)
    assert not same(first, plain)
    assert not same(second, first)
    assert same(sdnext.draw(*ON, **given), first)
    assert same(sdnext.draw(*DOES_NOTHING, **given), plain)
    assert same(sdnext.draw(*OFF, **given), plain)
    assert same(sdnext.draw(**given), plain)
    assert type(sdnext.app.pipe).__call__ is getattr(diffusers, type(sdnext.app.pipe).__name__).__call__


@pytest.mark.parametrize("given", [PASSES[0], PASSES[1], PASSES[3]], ids=["from text", "from an image", "CFG"])
def test_it_is_the_picture_of_guide(sdnext, given):
    drawn = sdnext.draw(*ON, **given)
    pipe, arguments = sdnext.app.calls[-1]
    arguments["generator"] = [torch.Generator().manual_seed(1)]
    texts = {"prompt_embeds": arguments["negative_prompt_embeds"]}
    if "pooled_prompt_embeds" in arguments:
        texts["pooled_prompt_embeds"] = arguments["negative_pooled_prompt_embeds"]
    with guide(pipe, texts, nag_scale=5, nag_tau=2.5, nag_alpha=0.5):
        assert same(list(pipe(**arguments).images), drawn)


def test_a_prompt_that_sdnext_does_not_encode(sd15):
    sd15.app.encodes = False
    drawn = sd15.draw(*ON)
    pipe, arguments = sd15.app.calls[-1]
    arguments["generator"] = [torch.Generator().manual_seed(1)]
    with guide(pipe, "blurry dog", nag_scale=5, nag_tau=2.5, nag_alpha=0.5):
        assert same(list(pipe(**arguments).images), drawn)


def test_minus_one_is_the_published_setting(sd15):
    drawn = sd15.draw(True)
    assert sd15.app.parameters == {"Negative guidance (NAG)": "end=1"}
    assert same(sd15.draw(True, 3, 2.5, 0.375, 1.0), drawn)
    assert sd15.app.parameters == {"Negative guidance (NAG)": "scale=3 tau=2.5 alpha=0.375 end=1"}
    assert not same(sd15.draw(True, -1, -1, -1, 0.5), drawn)
    sd15.draw(*OFF)
    assert sd15.app.parameters == {}


REFUSED = {
    "an empty negative prompt": (ON, {"negative": " "}, "the negative prompt is empty"),
    "a negative prompt that changes": (ON, {"negative": "[blurry:dog:0.5]"}, "changes from step to step"),
    "a scale below 1": ((True, 0.5), {}, "nag_scale must be at least 1"),
    "an alpha out of range": ((True, 3, 2.5, 7), {}, "nag_alpha must be between 0 and 1"),
    "a text for a number": ((True, "5"), {}, "scale must be a number, got '5'"),
    "nothing for a number": ((True, 5, None), {}, "tau must be a number, got None"),
    "too many values": ((*ON, 3), {}, "enabled, scale, tau, alpha, end, and 6 were given"),
    "no step": ((True, 5, 2.5, 0.5, 0), {}, "guide: "),
}


@pytest.mark.parametrize(("values", "given", "words"), REFUSED.values(), ids=REFUSED)
def test_what_it_refuses(sd15, values, given, words):
    sd15.refused(*values, words=words, **given)


def test_a_model_that_cannot_be_guided(sd15):
    processors = sd15.app.pipe.unet.attn_processors
    sd15.app.pipe.unet.set_attn_processor(diffusers.models.attention_processor.SlicedAttnProcessor(2))
    sd15.refused(*ON, words="attention processor")
    sd15.app.pipe.unet.set_attn_processor(processors)
    assert not same(sd15.draw(*ON), sd15.draw(*OFF))


def test_without_the_package(sd15, monkeypatch):
    monkeypatch.setitem(sys.modules, "nag_kernels.diffusers", None)
    sd15.refused(*ON, words=r"nag-kernels is missing\. In a checkout .* -m pip install \.")


def test_a_call_that_goes_around_guidance(sd15):
    """As T-Gate's does: the pipeline draws, and its call is not seen."""
    sd15.app.otherwise = True
    with pytest.raises(sd15.module.NegativeGuidanceError, match="0 of 1 calls were guided"):
        sd15.draw(*ON)
    sd15.app.otherwise = False
    assert type(sd15.app.pipe) is diffusers.StableDiffusionPipeline
    assert not same(sd15.draw(*ON), sd15.draw(*OFF))


def test_a_run_that_makes_no_arguments(sd15):
    one_pass = sd15.app.one_pass
    sd15.app.one_pass = lambda p: torch.zeros(1, 4, 8, 8)
    assert (
        len(sd15.draw(*OFF)) == len(sd15.draw(*ON, skip=["base"])) == len(sd15.draw(*ON, state="reprocess_detail")) == 1
    )
    with pytest.raises(sd15.module.NegativeGuidanceError, match="0 of 1 calls were guided"):
        sd15.draw(*ON)
    sd15.app.one_pass = one_pass
    assert not same(sd15.draw(*ON), sd15.draw(*OFF))


def test_a_cancelled_run_ends_as_without_guidance(sd15):
    plain = sd15.draw(*OFF)
    sd15.app.cancels = True
    assert sd15.draw(*OFF) == sd15.draw(*ON) == []
    sd15.app.cancels = False
    assert same(sd15.draw(*OFF), plain)
    assert not same(sd15.draw(*ON), plain)


def test_an_assertion_that_fails_is_not_a_cancelled_run(sd15):
    plain = sd15.draw(*OFF)

    def step_end(pipe, step, timestep, kept):
        raise AssertionError("of another script")

    sd15.app.step_end = step_end
    assert sd15.draw(*OFF) == []
    with pytest.raises(sd15.module.NegativeGuidanceError, match="of another script"):
        sd15.draw(*ON)
    del sd15.app.step_end
    assert same(sd15.draw(*OFF), plain)


def test_loaded_again_it_guides_once(sd15):
    wrapped = {name: getattr(sd15.app.drawing, name) for name in sd15.plain}
    assert {name: function.__wrapped__ for name, function in wrapped.items()} == sd15.plain
    before = sd15.draw(*ON)
    sd15.load()
    assert {name: getattr(sd15.app.drawing, name) for name in sd15.plain} == wrapped
    assert same(sd15.draw(*ON), before)
    sd15.refused(True, 0.5, words="nag_scale must be at least 1")


def test_without_the_functions_that_it_wraps_there_is_no_section(sd15):
    del sd15.app.drawing.set_pipeline_args
    spec = importlib.util.spec_from_file_location("newer", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.raises(AttributeError):
        spec.loader.exec_module(module)
    assert not hasattr(module, "NegativeGuidance")  # SD.Next takes the classes that are there


def test_the_section(sd15):
    section = sd15.script.ui(False)
    assert sd15.script.title() == "Negative guidance (NAG)"
    assert [each.label for each in section] == ["Enabled", "Scale", "Tau", "Alpha", "End"]
    assert tuple(each.value for each in section) == sd15.module.DEFAULTS
    assert sd15.script.show(False) is sd15.modules["modules.scripts_manager"].AlwaysVisible
    assert same(sd15.draw(*(each.value for each in section)), sd15.draw(*OFF))


def test_a_run_within_a_run_keeps_the_settings(sd15):
    """The detailer draws again with a copy of the run, whose values of the section are gone."""
    sd15.draw(*ON)
    p = type("P", (), {})()
    sd15.script.process(p, *ON)
    sd15.script.process(p)
    assert p.negative_guidance == ON
    sd15.script.process(p, *OFF)
    assert p.negative_guidance == OFF
