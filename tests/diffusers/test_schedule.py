# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which steps are guided: by noise level, and where a pipeline takes only some of its scheduler's timesteps."""

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import (
    AmusedImg2ImgPipeline,
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    VQModel,
)
from drawing import denoiser, draw
from every_model import PIPELINES, pipeline
from test_scales import guided_calls
from torch.utils._python_dispatch import TorchDispatchMode

from nag_kernels.diffusers import enable_guidance, guide
from nag_kernels.diffusers.models import registry
from nag_kernels.diffusers.models.registry import guided_layers
from nag_kernels.diffusers.schedule import Steps

pytestmark = pytest.mark.usefixtures("one_thread")

NEGATIVE = "a large blue dog on grass"


@pytest.mark.parametrize("kind", ["flux", "wan", "sd15", "sdxl"])
def test_sigma_end(kind):
    """Steps whose noise level is above it; given together with end, whichever comes first."""
    pipe, guided_steps = pipeline(kind), []
    layer = guided_layers(denoiser(pipe))[0]
    layer.register_forward_hook(lambda layer, *_: guided_steps.append("NAG" in type(layer.processor).__name__))
    draw(pipe, num_inference_steps=6)
    guided_steps.clear()
    scheduler = pipe.scheduler
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas[:-1].double()
    else:  # of a scheduler that has alphas alone
        kept = scheduler.alphas_cumprod.double()[scheduler.timesteps]
        sigmas = ((1 - kept) / kept).sqrt()
    assert len(sigmas) == 6
    for settings, wanted in (
        ({"sigma_end": sigmas[3].item() - 1e-6}, range(4)),
        ({"sigma_end": sigmas[3].item() + 1e-6}, range(3)),
        ({"sigma_end": 0.0}, range(6)),
        ({"sigma_end": sigmas[3].item() - 1e-6, "end": 0.34}, range(3)),
        ({"sigma_end": sigmas[3].item() - 1e-6, "start": 0.5}, [3]),
    ):
        with guide(pipe, NEGATIVE, **settings):
            draw(pipe, num_inference_steps=6)
        assert [i for i, yes in enumerate(guided_steps) if yes] == list(wanted), settings
        guided_steps.clear()


@pytest.mark.parametrize("scheduler", [HeunDiscreteScheduler, FlowMatchHeunDiscreteScheduler])
def test_sigma_end_with_schedulers_of_second_order(scheduler):
    kind = "sd3" if "FlowMatch" in scheduler.__name__ else "sd15"
    pipe, guided_visits = pipeline(kind), []
    pipe.scheduler = scheduler()
    layer = guided_layers(denoiser(pipe))[0]
    layer.register_forward_hook(lambda layer, *_: guided_visits.append("NAG" in type(layer.processor).__name__))
    draw(pipe)
    sigma = pipe.scheduler.sigmas[3].item()  # of the third distinct timestep: both its visits have it
    assert pipe.scheduler.sigmas[4].item() == sigma
    guided_visits.clear()
    with guide(pipe, NEGATIVE, sigma_end=sigma):
        draw(pipe)
    assert guided_visits == [True] * 3 + [False] * 4


def test_sigma_end_where_the_scheduler_counts_upwards():
    pipe, guided_steps = pipeline("sd3"), []
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    layer = guided_layers(pipe.transformer)[0]
    layer.register_forward_hook(lambda layer, *_: guided_steps.append("NAG" in type(layer.processor).__name__))
    with guide(pipe, NEGATIVE, sigma_end=0.6):
        draw(pipe)
    assert pipe.scheduler.sigmas[0] < 0.1
    assert guided_steps == [True, True, False, False]


def test_sigma_end_where_the_first_steps_are_left_out():
    pipe, guided_steps = StableDiffusion3Img2ImgPipeline(**pipeline("sd3").components), []
    pipe.set_progress_bar_config(disable=True)
    layer = guided_layers(pipe.transformer)[0]
    layer.register_forward_hook(lambda layer, *_: guided_steps.append("NAG" in type(layer.processor).__name__))
    call = {
        "num_inference_steps": 6,
        "strength": 0.5,
        "max_sequence_length": 12,
        "guidance_scale": 1.0,
        "output_type": "latent",
    }
    pipe.scheduler.set_timesteps(6)
    with guide(pipe, NEGATIVE, sigma_end=pipe.scheduler.sigmas[4].item() - 1e-6):
        pipe("a small red cat", image=torch.linspace(0, 1, 192).view(1, 3, 8, 8), **call)
    assert guided_steps == [True, True, False]


def test_sigma_end_refusals():
    pipe = pipeline("flux")
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="sigma_end must be a noise level of at least 0, or None, got"):
            enable_guidance(pipe, NEGATIVE, sigma_end=bad)
    with (
        pytest.raises(RuntimeError, match=r"end 1 with a sigma above 7: .* 4 steps and its highest sigma is 1"),
        guide(pipe, NEGATIVE, sigma_end=7.0),
    ):
        draw(pipe)
    with (
        pytest.raises(ValueError, match="SCMScheduler has none: use end"),
        guide(pipeline("sana sprint"), NEGATIVE, sigma_end=0.5) as sprint,
    ):
        draw(sprint)


def test_sigma_end_where_the_last_steps_are_left_out():
    """SDXL's denoising_end leaves the rest to a refiner: the first noise levels of the scheduler are the run's."""
    pipe, guided_steps = pipeline("sdxl"), []
    pipe.scheduler = EulerDiscreteScheduler()
    layer = guided_layers(pipe.unet)[0]
    layer.register_forward_hook(lambda layer, *_: guided_steps.append("NAG" in type(layer.processor).__name__))
    draw(pipe, num_inference_steps=6, denoising_end=0.6)
    steps = len(guided_steps)
    assert 2 < steps < 6
    guided_steps.clear()
    sigmas = pipe.scheduler.sigmas
    with guide(pipe, NEGATIVE, sigma_end=sigmas[1].item() - 1e-6):
        draw(pipe, num_inference_steps=6, denoising_end=0.6)
    assert guided_steps == [True] * 2 + [False] * (steps - 2)


PARTS = [  # of four steps, by the calls of the denoiser
    ("framepack", {}, {"end": 0.5}, "YYnn YYnn"),
    ("framepack", {}, {"start": 0.25, "end": 0.75}, "nYYn nYYn"),
    # Keys and values of a part are kept by a call of their own, which goes with the step before it.
    ("anyflow from an image", {}, {"end": 0.5}, "Y YYnn n YYnn"),
    ("anyflow from an image", {}, {"start": 0.5}, "n nnYY Y nnYY"),
    ("wan animate", {}, {"end": 0.5}, "YYnn YYnn"),
    ("skyreels forced", {"base_num_frames": 5, "overlap_history": 1}, {"end": 0.5}, "YYnn YYnn"),
    # Frames that come in one after another: it is the noisiest that counts.
    ("skyreels forced", {"ar_step": 1}, {"end": 0.5}, "YYYYnn"),
]


@pytest.mark.parametrize(("kind", "more", "window", "wanted"), [x for x in PARTS if x[0] in PIPELINES])
def test_videos_in_parts_go_through_their_steps_anew(kind, more, window, wanted):
    pipe, call, prompt, negative = PIPELINES[kind]()
    pipe.set_progress_bar_config(disable=True)
    call = {name: x for name, x in call.items() if not name.startswith("negative_")}  # no classifier-free guidance
    call = {"guidance_scale": 1.0} | call | {"num_inference_steps": 4, "output_type": "latent"} | more
    calls = []
    layer = guided_layers(pipe.transformer)[0]
    layer.register_forward_hook(lambda layer, *_: calls.append("NAG" in type(layer.processor).__name__))
    with guide(pipe, negative, **window):
        pipe(**call, **prompt)
    assert "".join("Y" if x else "n" for x in calls) == wanted.replace(" ", "")


@pytest.mark.parametrize("kind", [x for x in ("framepack", "anyflow from an image") if x in PIPELINES])
def test_a_step_that_its_timestep_tells_is_read_once_in_a_call(kind, monkeypatch):
    """Each read of a value waits for a GPU."""

    class Reads(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            reads[-1] += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **kwargs or {})

    reads, visit = [], Steps.visit

    def counted(steps, arguments):
        reads.append(0)
        with Reads():
            return visit(steps, arguments)

    monkeypatch.setattr(Steps, "visit", counted)
    pipe, call, prompt, negative = PIPELINES[kind]()
    pipe.set_progress_bar_config(disable=True)
    call = {name: x for name, x in call.items() if not name.startswith("negative_")}
    call = {"guidance_scale": 1.0} | call | {"num_inference_steps": 4, "output_type": "latent"}
    with guide(pipe, negative, end=0.5):
        pipe(**call, **prompt)
    assert set(reads) <= {0, 1}
    assert len(reads) > 7


@pytest.mark.parametrize("kind", [x for x in ("anyflow", "anyflow from an image") if x in PIPELINES])
def test_a_last_timestep_that_the_pipeline_leaves_out_is_no_step(kind):
    pipe, call, prompt, negative = PIPELINES[kind]()
    pipe.set_progress_bar_config(disable=True)
    call = {name: x for name, x in call.items() if not name.startswith("negative_")}
    call |= {"num_inference_steps": 5, "sigmas": [1.0, 0.75, 0.5, 0.25, 0.0], "guidance_scale": 1.0}
    calls = guided_calls(pipe)
    with guide(pipe, negative, end=0.5):
        pipe(**call, **prompt, output_type="latent")
    wanted = "YYnn" if kind == "anyflow" else "Y YYnn n YYnn"
    assert "".join("Y" if x else "n" for x in calls) == wanted.replace(" ", "")


@pytest.mark.parametrize(("kind", "scheduler", "taken"), [
    ("LTX2DFRPipeline", "LTXEulerAncestralRFScheduler", 3),
    ("LTX2DFRTemporalRefinePipeline", "LTXEulerAncestralRFScheduler", 3),
    ("LTX2DFRTemporalRefinePipeline", "FlowMatchEulerDiscreteScheduler", 4),
])  # fmt: skip
def test_pipelines_of_ltx2_that_draw_in_tiles(kind, scheduler, taken):
    """What their loop goes through is what guidance counts."""
    pipe = object.__new__(getattr(diffusers, kind))
    pipe.__dict__["scheduler"] = getattr(diffusers, scheduler)()
    steps = pipe._inference_timesteps([1.0, 0.7, 0.4, 0.0], "cpu")
    spec = registry.entry("LTX2VideoTransformer3DModel")
    assert spec.timesteps_taken(pipe, {}) == range(len(steps)) == range(taken)


def from_a_video(scheduler=None, **window):
    """Which calls are guided of a pipeline that leaves out its first steps, and does not say how many."""
    pipe, call, prompt, negative = PIPELINES["modelscope from a video"]()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler or pipe.scheduler
    calls = guided_calls(pipe)
    call |= {"num_inference_steps": 8, "strength": 0.5, "guidance_scale": 1.0, "output_type": "latent"}
    with guide(pipe, negative, **window):
        pipe(**call, **prompt)
    return calls


def test_a_pipeline_that_does_not_say_with_which_step_it_begins():
    asked = []
    assert from_a_video(end=0.5) == [True, True, False, False]
    from_a_video(nag_scale=lambda i, n: asked.append((i, n)) or 3.0)
    assert asked == [(0, 4), (1, 4), (2, 4), (3, 4)]


@pytest.mark.parametrize("scheduler", [HeunDiscreteScheduler, PNDMScheduler])
def test_it_may_begin_with_the_second_visit_of_a_step(scheduler):
    more = {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    calls = from_a_video(scheduler(**more), end=0.5)
    assert calls == sorted(calls, reverse=True)
    timesteps = scheduler(**more)
    timesteps.set_timesteps(8)
    visited = timesteps.timesteps[-len(calls) :].tolist()
    guided_timesteps = {t for t, yes in zip(visited, calls, strict=True) if yes}
    assert guided_timesteps == set(sorted(set(visited), reverse=True)[: (len(set(visited)) + 1) // 2])


def test_a_model_that_is_told_no_timestep():
    parts, _, prompt, negative = PIPELINES["amused"]()
    images = VQModel(block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=32)
    pipe = AmusedImg2ImgPipeline(**parts.components | {"vqvae": images})
    pipe.set_progress_bar_config(disable=True)
    with (
        pytest.raises(ValueError, match=r"does not say which of .* 4 timesteps it uses; leave them out"),
        guide(pipe, negative, end=0.5),
    ):
        pipe(**prompt, image=torch.rand(1, 3, 8, 8), strength=0.5, num_inference_steps=4, output_type="latent")


class Own(StableDiffusionPipeline):
    """Draws with `steps`, or with its scheduler's timesteps."""

    steps = None

    def __call__(self, prompt):
        text = self.encode_prompt(prompt, "cpu", 1, False)[0]
        self.scheduler.set_timesteps(4)
        latents = torch.ones(1, 4, 8, 8)
        for t in self.scheduler.timesteps if self.steps is None else self.steps:
            latents = latents + self.unet(latents, t, encoder_hidden_states=text).sample
        return latents


def own_pipeline():
    return Own(**pipeline("sd15").components, requires_safety_checker=False)


def test_a_pipeline_of_ones_own_is_placed_by_its_timesteps():
    pipe = own_pipeline()
    calls = guided_calls(pipe)
    with torch.no_grad(), guide(pipe, NEGATIVE, end=0.5):
        pipe("a cat")
        pipe.steps = pipe.scheduler.timesteps[2:]
        pipe("a cat")
    assert calls == [True, True, False, False, True, False]


@pytest.mark.parametrize(("steps", "error", "what"), [
    ([333, 1], ValueError, "does not say which of its scheduler's 4 timesteps it uses; leave them out, or set self._num_time"),
    ([501, 1], RuntimeError, "Own calls its denoiser are not those of its scheduler one after another; leave them out"),
])  # fmt: skip
def test_a_pipeline_whose_timesteps_are_not_its_schedulers(steps, error, what):
    pipe = own_pipeline()
    pipe.steps = torch.tensor(steps)
    with torch.no_grad(), pytest.raises(error, match=what), guide(pipe, NEGATIVE, end=0.75):
        pipe("a cat")


def test_timesteps_that_are_equal_by_rounding_are_steps_of_their_own():
    pipe = pipeline("sd15")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}  # Stable Diffusion's
    pipe.scheduler = DPMSolverMultistepScheduler(**betas, use_exponential_sigmas=True)
    pipe.scheduler.set_timesteps(20)
    assert len(pipe.scheduler.timesteps.unique()) < 20
    calls, asked = guided_calls(pipe), []
    with guide(pipe, NEGATIVE, start=0.9):
        draw(pipe, num_inference_steps=20)
    assert [i for i, yes in enumerate(calls) if yes] == [18, 19]
    with guide(pipe, NEGATIVE, nag_scale=lambda i, n: asked.append((i, n)) or 3.0):
        draw(pipe, num_inference_steps=20)
    assert asked == [(i, 20) for i in range(20)]


def test_the_last_steps_are_left_out_after_they_were_counted():
    """As SDXL with a ControlNet does."""
    parts = pipeline("sdxl").components
    pipe = StableDiffusionXLControlNetPipeline(
        **parts,
        controlnet=ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(8,)),
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    calls = guided_calls(pipe)
    call = {"num_inference_steps": 6, "denoising_end": 0.67, "guidance_scale": 1.0, "output_type": "latent"}
    with guide(pipe, NEGATIVE, end=0.5):
        pipe("a small red cat", image=torch.rand(1, 3, 16, 16), height=16, width=16, **call)
    assert calls == [True, True, False, False]
