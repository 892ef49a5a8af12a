# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Calls of a guided pipeline's denoiser that guidance does not see raise; they are not drawn unguided in silence."""

import contextlib
import gc
import threading

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from drawing import denoiser, draw
from every_model import pipeline
from pipeline_parts import NEGATIVE
from tiny import error

from nag_kernels.diffusers import disable_guidance, enable_guidance, guide

pytestmark = pytest.mark.usefixtures("one_thread")

UNSEEN = "called by the StableDiffusionPipeline that is guided, in a call that would not be guided"


def test_a_call_that_was_looked_up_before():
    pipe = pipeline("sd15")
    call = pipe.__call__
    with guide(pipe, NEGATIVE):
        draw(pipe)
        with pytest.raises(RuntimeError, match=UNSEEN):
            draw(pipe, by=call)
        with pytest.raises(RuntimeError, match=UNSEEN):
            draw(pipe, by=lambda *args, **options: StableDiffusionPipeline.__call__(pipe, *args, **options))
    draw(pipe, by=call)


def test_a_class_that_is_set_within_a_block():
    pipe = pipeline("sd15")
    plain = draw(pipe)
    with guide(pipe, NEGATIVE):
        draw(pipe)
        pipe.__class__ = type("StableDiffusionPipeline", (StableDiffusionPipeline,), {})
        with pytest.raises(RuntimeError, match=f"{UNSEEN}.*set its class before"):
            draw(pipe)
    assert torch.equal(draw(pipe), plain)


def test_guidance_ends_also_where_the_class_was_set():
    pipe = pipeline("sd15")
    plain = draw(pipe)
    enable_guidance(pipe, NEGATIVE)
    draw(pipe)
    pipe.__class__ = StableDiffusionPipeline
    with pytest.raises(RuntimeError, match=UNSEEN):
        draw(pipe)
    disable_guidance(pipe)
    assert torch.equal(draw(pipe), plain)


@pytest.mark.parametrize("by", ["callback", "thread"])
def test_a_plain_call_that_began_before_goes_on(by):
    pipe = pipeline("sd15")
    plain = draw(pipe)

    def enable(pipe, step, timestep, tensors):
        if step == 1 and by == "thread":
            thread = threading.Thread(target=enable_guidance, args=[pipe, NEGATIVE])
            thread.start()
            thread.join()
        elif step == 1:
            enable_guidance(pipe, NEGATIVE)
        return tensors

    call = pipe.__call__
    assert torch.equal(draw(pipe, callback_on_step_end=enable), plain)
    assert error(draw(pipe), plain) > 1e-4
    with pytest.raises(RuntimeError, match=UNSEEN):
        draw(pipe, by=call)
    disable_guidance(pipe)


@pytest.mark.parametrize("how", ["disable", "enable", "guide"])
def test_a_guided_pipeline_that_is_gone_while_another_has_its_denoiser(how):
    """As in `pipe = AutoPipelineForImage2Image.from_pipe(pipe)`."""
    first = pipeline("sd15")
    call = {"image": torch.ones(1, 3, 8, 8), "num_inference_steps": 4, "output_type": "latent", "guidance_scale": 1.0}
    enable_guidance(first, NEGATIVE)
    pipe = StableDiffusionImg2ImgPipeline.from_pipe(first)
    del first
    gc.collect()
    with pytest.raises(
        RuntimeError, match="enabled on a pipeline with this UNet2DConditionModel that is there no more"
    ):
        pipe("a cat", **call)
    if how == "guide":
        with guide(pipe, NEGATIVE):
            pipe("a cat", **call)
    elif how == "enable":
        enable_guidance(pipe, NEGATIVE)
        pipe("a cat", **call)
        disable_guidance(pipe)
    else:
        disable_guidance(pipe)
    pipe("a cat", **call)
    with pytest.raises(RuntimeError, match="guidance is not enabled on this StableDiffusionImg2ImgPipeline"):
        disable_guidance(pipe)


def test_a_denoiser_that_a_guided_pipeline_gets_is_its_own():
    pipe, other = pipeline("sd15"), denoiser(pipeline("sd15"))
    enable_guidance(pipe, NEGATIVE)
    pipe.unet = other
    second = StableDiffusionPipeline.from_pipe(pipe)
    with pytest.raises(
        RuntimeError, match="called by another StableDiffusionPipeline than the StableDiffusionPipeline"
    ):
        draw(second)
    draw(pipe)
    disable_guidance(pipe)
    draw(second)


class Outer(StableDiffusionPipeline):
    """Draws by another pipeline over its denoiser."""

    def __call__(self, prompt, **call):
        inner = StableDiffusionPipeline(**self.components, requires_safety_checker=False)
        return inner(prompt, **call)


def test_another_pipeline_within_the_guided_call():
    parts = pipeline("sd15").components | {"safety_checker": None, "feature_extractor": None}
    pipe = Outer(**parts, requires_safety_checker=False)
    call = {"num_inference_steps": 2, "height": 8, "width": 8, "output_type": "latent"}
    pipe("a small red cat", **call)
    wanted = (
        "called by a StableDiffusionPipeline within the guided call of the Outer, .* guide the inner pipeline instead"
    )
    with guide(pipe, NEGATIVE), pytest.raises(RuntimeError, match=wanted):
        pipe("a small red cat", **call)


@pytest.mark.parametrize("enable", [False, True], ids=["guide", "enable_guidance"])
def test_an_own_loop_in_the_block_of_a_pipeline_raises(enable):
    """It would be plain, as would a class of one's own over the same denoiser. A method of the pipeline is."""
    pipe = pipeline("sd15")
    text = torch.ones(1, 7, pipe.unet.config.cross_attention_dim)
    call = lambda: pipe.unet(torch.ones(1, 4, 4, 4), 1, encoder_hidden_states=text).sample  # noqa: E731
    plain = call()
    loop = lambda pipe: call()  # noqa: E731
    StableDiffusionPipeline.of_its_own = lambda pipe: call()
    try:
        with contextlib.nullcontext() if enable else guide(pipe, NEGATIVE):
            if enable:
                enable_guidance(pipe, NEGATIVE)
            draw(pipe)
            with pytest.raises(
                RuntimeError, match=r"called by a loop of your own, .*to guide a loop of your own write `with g"
            ):
                call()
            with pytest.raises(RuntimeError, match=r"called by a loop of your own"):
                loop(pipe)  # no method of the pipeline, whatever its first argument is
            assert torch.equal(pipe.of_its_own(), plain)
            if enable:
                disable_guidance(pipe)
    finally:
        del StableDiffusionPipeline.of_its_own
    assert torch.equal(call(), plain)


HOLDERS = pytest.mark.parametrize(
    "hold", [lambda x: x, lambda x: [x], lambda x: (x,), lambda x: {"low noise": x}, lambda x: {"all": [x]},
             lambda x: torch.nn.ModuleList([x])],
    ids=["itself", "list", "tuple", "dict", "nested", "ModuleList"],
)  # fmt: skip


class WithExperts(StableDiffusionPipeline):
    """Calls a further denoiser in its last step."""

    at, further, calls = 3, None, None

    def __call__(self, *args, **options):
        self.calls = []

        def count(unet, arguments):
            if len(self.calls) == self.at:
                self.further(*arguments[:2], encoder_hidden_states=options["prompt_embeds"])
            self.calls.append(unet)

        hook = self.unet.register_forward_pre_hook(count)
        try:
            return super().__call__(*args, **options)
        finally:
            hook.remove()


@HOLDERS
def test_further_denoisers_that_a_pipeline_holds(hold):
    """A copy that lies there is no matter; a call of it would not be guided."""
    pipe, further = pipeline("sd15"), pipeline("sd15").unet
    plain = draw(pipe)
    with guide(pipe, NEGATIVE):
        wanted = draw(pipe)
    pipe.__dict__["experts"] = hold(further)
    with guide(pipe, NEGATIVE):
        assert torch.equal(draw(pipe), wanted)
        assert torch.equal(draw(pipe), wanted)
    assert further._compiled_call_impl is None
    assert torch.equal(draw(pipe), plain)
    pipe.__dict__["experts"] = hold(pipe.unet)
    with guide(pipe, NEGATIVE):
        assert torch.equal(draw(pipe), wanted)


@HOLDERS
@pytest.mark.parametrize("at", [0, 3])
def test_a_call_of_a_further_denoiser_that_a_pipeline_holds(hold, at):
    pipe = WithExperts(**pipeline("sd15").components, requires_safety_checker=False)
    pipe.at, further = at, pipeline("sd15").unet
    pipe.__dict__["experts"] = hold(further)
    pipe.further = lambda *args, **given: further(*args, **given)
    options = {"prompt": None, "prompt_embeds": torch.ones(1, 7, 32)}
    plain = draw(pipe, **options)
    message = r"has a denoiser named experts \(UNet2DConditionModel\), whose calls are not seen; it was called in a guided call"
    with guide(pipe, NEGATIVE), pytest.raises(RuntimeError, match=message):
        draw(pipe, **options)
    assert torch.equal(draw(pipe, **options), plain)


def test_a_callback_may_call_a_further_denoiser():
    pipe, further, called = pipeline("sd15"), pipeline("sd15").unet, []
    pipe.__dict__["experts"] = [further]
    text = torch.ones(1, 7, pipe.unet.config.cross_attention_dim)

    def call(pipe, step, timestep, tensors):
        called.append(further(torch.ones(1, 4, 4, 4), 1, encoder_hidden_states=text).sample)
        return tensors

    with guide(pipe, NEGATIVE):
        draw(pipe, callback_on_step_end=call)
    assert torch.equal(called[0], further(torch.ones(1, 4, 4, 4), 1, encoder_hidden_states=text).sample)


def test_a_pipeline_that_is_gone_does_not_keep_its_denoiser():
    pipe = pipeline("sd15")
    unet, text = pipe.unet, torch.ones(1, 7, pipe.unet.config.cross_attention_dim)
    call = lambda: unet(torch.ones(1, 4, 4, 4), 1, encoder_hidden_states=text).sample  # noqa: E731
    plain = call()
    enable_guidance(pipe, NEGATIVE)
    del pipe
    gc.collect()
    assert torch.equal(call(), plain)
    with guide(unet, {"encoder_hidden_states": -text}):
        assert error(call(), plain) > 1e-4


@pytest.mark.slow
def test_the_denoiser_itself_beside_its_compiled_form_is_no_other():
    pipe = pipeline("sd15")
    plain = draw(pipe)
    pipe.__dict__["kept"] = {"unet": pipe.unet}
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with guide(pipe, NEGATIVE):
        assert error(draw(pipe), plain) > 1e-4


@pytest.mark.parametrize("first", ["holder", "held"])
def test_a_pipeline_whose_denoiser_another_one_holds(first):
    """Both are guided at once, by two threads."""
    one, other = pipeline("sd15"), pipeline("sd15")
    with torch.no_grad():
        other.unet.conv_out.weight.mul_(1.5)
    one.__dict__["experts"] = [other.unet]
    wanted, drawn = [], {}
    for pipe in (one, other):
        with guide(pipe, NEGATIVE):
            wanted.append(draw(pipe))

    def in_thread(pipe):
        with guide(pipe, NEGATIVE):
            drawn["inner"] = draw(pipe)

    outer, inner = (one, other) if first == "holder" else (other, one)

    def call(pipe, step, timestep, tensors):
        if step == 1:
            thread = threading.Thread(target=in_thread, args=[inner], daemon=True)
            thread.start()
            thread.join(60)
        return tensors

    with guide(outer, NEGATIVE):
        drawn["outer"] = draw(outer, callback_on_step_end=call)
    found = [drawn["outer"], drawn["inner"]]
    assert all(torch.equal(x, y) for x, y in zip(found, wanted if first == "holder" else wanted[::-1], strict=True))
    assert one.unet._compiled_call_impl is other.unet._compiled_call_impl is None
