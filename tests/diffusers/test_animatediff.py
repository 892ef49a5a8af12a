# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What AnimateDiff's pipelines can do beside drawing a video: longer ones, better ones, and from image prompts."""

import pytest
import torch

pytest.importorskip("diffusers")

from every_model import PIPELINES
from test_adapters import with_image_prompts
from tiny import error

from nag_kernels.diffusers import enable_guidance, guide
from nag_kernels.diffusers.models.registry import guided_layers

pytestmark = pytest.mark.usefixtures("one_thread")

NEGATIVE = "a large blue dog on grass"
FIRM = {"nag_scale": 8.0, "nag_tau": 2.0, "nag_alpha": 0.5}


def animatediff(guidance_scale=1.0, **more):
    """The pipeline, and what draws with it."""
    pipe, call, prompt, _ = PIPELINES["animatediff"]()
    pipe.set_progress_bar_config(disable=True)
    call |= {"num_inference_steps": 4, "output_type": "latent", "guidance_scale": guidance_scale} | prompt | more
    return pipe, lambda **more: pipe(**call | more, generator=torch.Generator().manual_seed(7)).frames


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
def test_image_prompts(guidance_scale):
    pipe, draw = animatediff(guidance_scale)
    without = draw()
    images = with_image_prompts(pipe)["ip_adapter_image_embeds"]
    options = {"ip_adapter_image_embeds": images if guidance_scale > 1 else [x[1:] for x in images]}
    plain = draw(**options)
    assert error(plain, without) > 1e-2
    with guide(pipe, ["a small red cat", "a fox"], **FIRM):
        assert error(draw(**options), plain) < 2e-5
    with guide(pipe, NEGATIVE, **FIRM):
        assert error(draw(**options), plain) > 1e-3
    assert torch.equal(draw(**options), plain)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
def test_a_prompt_for_each_of_some_frames(guidance_scale):
    """FreeNoise. The negative is one for all frames."""
    pipe, draw = animatediff(guidance_scale, prompt={0: "a small red cat", 2: "a fox"}, num_frames=4)
    pipe.enable_free_noise(context_length=2, context_stride=1)
    plain = draw()
    with guide(pipe, NEGATIVE, nag_scale=1 + 1e-6):
        assert error(draw(), plain) < 2e-5
    with guide(pipe, NEGATIVE, **FIRM):
        other = draw()
    assert error(other, plain) > 1e-3
    assert torch.equal(draw(), plain)
    one = {"prompt": "a small red cat"}
    plain = draw(**one)
    with guide(pipe, "a small red cat", **FIRM):
        assert error(draw(**one), plain) < 2e-5


def test_layers_that_see_a_part_of_the_frames_at_a_time_are_refused():
    pipe, _ = animatediff()
    pipe.enable_free_noise(context_length=2, context_stride=1)
    pipe.enable_free_noise_split_inference(spatial_split_size=64, temporal_split_size=2)
    with pytest.raises(ValueError, match="its layers see a part of the frames at a time"):
        enable_guidance(pipe, NEGATIVE)


@pytest.mark.parametrize(("fast", "wanted"), [(False, "YYnn YYnn"), (True, "Yn YYnn")])
def test_steps_that_are_gone_through_several_times(fast, wanted):
    """FreeInit, in which the first pass may have fewer steps."""
    pipe, draw = animatediff()
    pipe.enable_free_init(num_iters=2, use_fast_sampling=fast)
    calls = []
    layer = guided_layers(pipe.unet)[0]
    layer.register_forward_hook(lambda layer, *_: calls.append("NAG" in type(layer.processor).__name__))
    with guide(pipe, NEGATIVE, end=0.5):
        draw()
    assert "".join("Y" if x else "n" for x in calls) == wanted.replace(" ", "")
