# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Pipelines whose batch is not one row, or two, for each image: overlapping views of one image, three-row guidance."""

import functools

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from every_model import pipeline
from oracles import doubled_batch_oracle
from test_scales import guided_calls
from tiny import error

from nag_kernels.diffusers import guide
from nag_kernels.diffusers.models.registry import guided_layers

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT, NEGATIVE = "a small red cat", "a large blue dog on grass"
FIRM = {"nag_scale": 8.0, "nag_tau": 3.0, "nag_alpha": 0.5}


def parts(unet=None):
    pipe = pipeline("sd15")
    parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return parts | absent | ({} if unet is None else {"unet": unet(pipe.unet.config)})


def panorama(guidance_scale=1.0, scheduler=None):
    """A pipeline with three views of 8 x 8 (its own are of 64 x 64), and what draws with it."""
    pipe = diffusers.StableDiffusionPanoramaPipeline(**parts())
    pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipe.scheduler = scheduler()
    pipe.get_views = functools.partial(pipe.get_views, window_size=8, stride=1)
    assert pipe.get_views(64, 80) == [(0, 8, 0, 8), (0, 8, 1, 9), (0, 8, 2, 10)]

    def draw(views, steps=1, prompt=PROMPT, **more):
        more |= {"num_inference_steps": steps, "guidance_scale": guidance_scale, "view_batch_size": views}
        seed = torch.Generator().manual_seed(3)
        return pipe(prompt, height=64, width=80, output_type="latent", generator=seed, **more).images

    return pipe, draw


def with_two_runs(pipe, draw, cfg, scale, tau, alpha):
    """What it draws if each view's prompt runs beside the negative, by hooks."""
    unet = pipe.unet
    forward, negative = unet.forward, pipe.encode_prompt(NEGATIVE, "cpu", 1, False)[0]

    def both(sample, t, encoder_hidden_states, **more):
        out = forward(sample, t, encoder_hidden_states=encoder_hidden_states, **more).sample.clone()
        rows = slice(1, None, 2) if cfg else slice(None)  # of the prompt
        image, text = sample[rows], encoder_hidden_states[rows]
        texts = torch.cat([text, negative.expand_as(text)])
        with doubled_batch_oracle(guided_layers(unet), text.shape[1], scale, tau, alpha):
            out[rows] = forward(torch.cat([image, image]), t, encoder_hidden_states=texts, **more).sample[: len(image)]
        return UNet2DConditionOutput(sample=out)

    unet.forward = both
    try:
        return draw()
    finally:
        unet.forward = forward


@pytest.mark.slow
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
def test_views_of_one_image(guidance_scale):
    """Three, in batches of one, of two and one, of three: as two runs of the untouched model."""
    pipe, draw = panorama(guidance_scale)
    wanted = with_two_runs(pipe, lambda: draw(3), guidance_scale > 1, 8.0, 3.0, 0.5)
    assert error(wanted, draw(1)) > 1e-3
    for views in (1, 2, 3, 7):
        with guide(pipe, PROMPT, nag_scale=8.0, nag_tau=1.0, nag_alpha=1.0):
            assert error(draw(views), draw(1)) < 2e-5
        with guide(pipe, NEGATIVE, **FIRM):
            assert error(draw(views), wanted) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "scheduler", [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler, diffusers.HeunDiscreteScheduler]
)
def test_the_views_of_a_batch_are_of_one_step(scheduler, mode):
    """One scheduler goes with all views of a batch, and the window with each."""
    pipe, draw = panorama(3.0, scheduler)
    calls = guided_calls(pipe)
    with mode(), guide(pipe, NEGATIVE, end=0.5, **FIRM):
        draw(3, steps=2)
    steps = 3 if scheduler is diffusers.HeunDiscreteScheduler else 2
    assert calls == [True] * 3 + [False] * 3 * (steps - 1)


@pytest.mark.slow
def test_several_views_of_several_images():
    pipe, draw = panorama()
    call = {"prompt": [PROMPT, "a fox"], "num_images_per_prompt": 2}
    with guide(pipe, [NEGATIVE, "a house"], **FIRM):
        wanted = draw(1, **call)
        assert error(draw(2, **call), wanted) < 2e-5
    assert len(wanted) == 4


def test_three_row_guidance_is_refused():
    """Of InstructPix2Pix: the prompt, the image alone, neither. With one row it is guided."""
    unet = lambda config: diffusers.UNet2DConditionModel.from_config(config, in_channels=8).eval()  # noqa: E731
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline(**parts(unet))
    pipe.set_progress_bar_config(disable=True)
    image = torch.linspace(0, 1, 192).view(1, 3, 8, 8)

    def draw(guidance_scale):
        return pipe(PROMPT, image=image, num_inference_steps=2, guidance_scale=guidance_scale, output_type="latent",
                    generator=torch.Generator().manual_seed(3)).images  # fmt: skip

    plain = draw(1.0)
    with guide(pipe, NEGATIVE, **FIRM):
        assert error(draw(1.0), plain) > 1e-3
        with pytest.raises(ValueError, match="a batch of 3 texts for 1 images; guidance knows 1, and 2"):
            draw(3.0)
    assert torch.equal(draw(1.0), plain)
