# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which step a call of the denoiser is for, where their number does not tell: calls that are left out, windows and views."""

import functools

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionPanoramaPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
)
from drawing import draw
from every_model import PIPELINES, pipeline
from test_scales import guided_calls

from nag_kernels.diffusers import guide

pytestmark = pytest.mark.usefixtures("one_thread")

NEGATIVE = "a large blue dog on grass"


class Skips(StableDiffusionPipeline):
    """Calls its denoiser in some steps, and takes what that gave in the others too, as caches do."""

    steps, visited = range(0, 8, 2), slice(None)

    def __call__(self, prompt):
        text = self.encode_prompt(prompt, "cpu", 1, False)[0]
        self.scheduler.set_timesteps(8)
        self._num_timesteps = len(self.scheduler.timesteps)
        latents = torch.ones(1, 4, 8, 8)
        for i, t in enumerate(self.scheduler.timesteps[self.visited]):
            if i in self.steps:
                # Some round the timestep, or scale it; then only the scheduler tells.
                noise = self.unet(latents, self.given(t), encoder_hidden_states=text).sample
            latents = self.scheduler.step(noise, t, latents).prev_sample
        return latents


def skips(scheduler, given=lambda t: t):
    pipe = Skips(**pipeline("sd15").components, requires_safety_checker=False)
    pipe.scheduler, pipe.given = scheduler(), given
    return pipe, guided_calls(pipe)


@pytest.mark.parametrize(
    ("scheduler", "given", "steps"),
    [
        (EulerDiscreteScheduler, lambda t: t + 0, [0, 2, 4, 6]),
        (DDIMScheduler, lambda t: t, [0, 2, 5, 7]),
    ],
    ids=["by the scheduler", "by the timestep"],
)
def test_a_pipeline_that_leaves_out_denoiser_calls(scheduler, given, steps):
    pipe, calls = skips(scheduler, given)
    pipe.steps = steps
    with torch.no_grad(), guide(pipe, NEGATIVE, end=0.5):
        pipe("a cat")
    assert calls == [True, True, False, False]
    calls.clear()
    with torch.no_grad(), guide(pipe, NEGATIVE, nag_scale=[1.0 if i == steps[2] else 5.0 for i in range(8)]):
        pipe("a cat")
    assert calls == [True, True, False, True]


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("settings", [{"end": 0.5}, {"sigma_end": 1.0}, {"nag_scale": [5.0] * 8}])
def test_steps_that_were_not_those_of_the_call(scheduler, settings):
    """Placed by their number, or over more steps than there were."""
    message = (
        r"were placed over 8 steps, and Skips called its denoiser in {} of them, and not in the last; leave them out"
    )
    if scheduler is DDIMScheduler:  # it counts no steps
        pipe, _ = skips(scheduler, lambda t: t + 0)
        with torch.no_grad(), pytest.raises(RuntimeError, match=message.format(4)), guide(pipe, NEGATIVE, **settings):
            pipe("a cat")
    pipe, _ = skips(scheduler)
    pipe.steps, pipe.visited = range(8), slice(-1)
    with torch.no_grad(), pytest.raises(RuntimeError, match=message.format(7)), guide(pipe, NEGATIVE, **settings):
        pipe("a cat")


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"end": 0.5}, "YYn YYn"),
        ({"sigma_end": 0.6}, "YYn YYn"),
        ({"nag_scale": [5.0, 1.0, 5.0]}, "YnY YnY"),
        ({"end": 0.5, "skip": 0.9}, "Yn Yn"),  # of two steps
        ({"sigma_end": 0.6, "skip": 0.9}, "Yn Yn"),
    ],
)
def test_windows_of_a_video_whose_pipeline_leaves_out_the_last_timestep(settings, wanted):
    pipe, call, prompt, negative = PIPELINES["ltx of several prompts"]()
    pipe.set_progress_bar_config(disable=True)
    calls = guided_calls(pipe)
    call |= {"num_frames": 17, "num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent"}
    settings = dict(settings)
    call["skip_steps_sigma_threshold"] = settings.pop("skip", 1)
    with guide(pipe, negative, **settings):
        pipe(**call, **prompt)
    assert "".join("Y" if x else "n" for x in calls) == wanted.replace(" ", "")
    with (
        pytest.raises(ValueError, match=r"each step of the call, .*, got 5"),
        guide(pipe, negative, nag_scale=[5.0] * 5),
    ):
        pipe(**call, **prompt)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler])
def test_the_views_of_a_panorama_are_of_one_step(scheduler):
    """Each view has a scheduler's state of its own."""
    parts = pipeline("sd15").components
    pipe = StableDiffusionPanoramaPipeline(**parts | {"safety_checker": None}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler()
    pipe.get_views = functools.partial(pipe.get_views, window_size=8, stride=1)
    calls = guided_calls(pipe)
    with guide(pipe, NEGATIVE, end=0.5):
        pipe("a small red cat", height=64, width=80, num_inference_steps=4, guidance_scale=1.0, output_type="latent")
    visits, guided = (7, 3) if scheduler is HeunDiscreteScheduler else (4, 2)
    views = len(calls) // visits
    assert views == 3
    assert calls == [True] * views * guided + [False] * views * (visits - guided)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize(("strength", "denoising_end", "steps"), [(0.5, 0.7, 4), (0.6, 0.8, 8), (0.99, 0.7, 13)])
def test_a_part_at_both_ends_is_left_out(scheduler, strength, denoising_end, steps):
    """By a pipeline that says how many steps it has before it leaves the last ones out."""
    parts = pipeline("sdxl").components
    controlnet = ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(16,))
    pipe = StableDiffusionXLControlNetInpaintPipeline(
        **parts | {"scheduler": scheduler.from_config(parts["scheduler"].config)},
        controlnet=controlnet,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    image = torch.linspace(0, 1, 192).view(1, 3, 8, 8)
    call = {"image": image, "control_image": image, "mask_image": torch.ones(1, 1, 8, 8), "strength": strength,
            "denoising_end": denoising_end, "num_inference_steps": 20, "guidance_scale": 1.0}  # fmt: skip
    calls = guided_calls(pipe)
    with guide(pipe, NEGATIVE, start=0.25, end=0.75):
        draw(pipe, **call)
    assert calls == [0.25 <= i / steps < 0.75 for i in range(steps)]


class Later(StableDiffusionPipeline):
    """Begins with a later timestep, as pipelines from an image do."""

    says, begins, steps = 8, 3, range(8)

    @torch.no_grad()
    def __call__(self, prompt, **options):
        text, _ = self.encode_prompt(prompt, "cpu", 1, False)
        self.scheduler.set_timesteps(8)
        self._num_timesteps, x = self.says, torch.ones(1, 4, 4, 4)
        for i, t in enumerate(self.timesteps()[self.begins :], self.begins):
            if i in self.steps:
                noise = self.unet(x, t, encoder_hidden_states=text).sample
            x = self.scheduler.step(noise, t, x).prev_sample
        return x

    def timesteps(self):
        return self.scheduler.timesteps


class LaterByCopies(Later):
    def timesteps(self):
        return self.scheduler.timesteps.clone()


def later(kind, scheduler):
    parts = pipeline("sd15").components
    parts |= {"scheduler": scheduler.from_config(parts["scheduler"].config)}
    return kind(**parts, requires_safety_checker=False)


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
@pytest.mark.parametrize("kind", [Later, LaterByCopies])
@pytest.mark.parametrize("begins", [1, 3, 7])
def test_a_pipeline_that_begins_later_than_it_says_raises(kind, scheduler, begins):
    pipe = later(kind, scheduler)
    pipe.begins = begins
    message = (
        "not in the last" if kind is LaterByCopies and scheduler is DDIMScheduler else "are not the 8 that it takes"
    )
    with guide(pipe, NEGATIVE, end=0.5), pytest.raises(RuntimeError, match=message):
        pipe("a cat")


@pytest.mark.parametrize("kind", [Later, LaterByCopies])
def test_a_pipeline_that_begins_later_and_says_so(kind):
    """Its scheduler tells once it has stepped; where it began is what its first timestep says."""
    pipe = later(kind, EulerDiscreteScheduler)
    pipe.says = 5
    calls = guided_calls(pipe)
    with guide(pipe, NEGATIVE, end=0.5):
        pipe("a cat")
    assert calls == [True] * 3 + [False] * 2
    calls.clear()
    pipe.steps = [3, 5, 6, 7]
    if kind is LaterByCopies:  # the call that is left out comes before anything tells
        with guide(pipe, NEGATIVE, end=0.5), pytest.raises(RuntimeError, match="are not the 5 that it takes"):
            pipe("a cat")
        return
    with guide(pipe, NEGATIVE, end=0.5):
        pipe("a cat")
    assert calls == [True, True, False, False]
