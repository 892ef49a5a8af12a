# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""How many images a call makes, and of which prompt each row is: from the rows, where arguments say something else."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from drawing import draw
from every_model import PIPELINES, pipeline
from tiny import error

from nag_kernels.diffusers import encode_negative, guide

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

PROMPT, NEGATIVE, FIRM = "a small red cat", "a large blue dog", {"nag_scale": 8.0, "nag_alpha": 0.5}


@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("kind", ["cogvideox", "allegro", "animatediff"])
def test_pipelines_that_make_one_video_whatever_they_are_told(kind, scale):
    pipe, call, prompt, negative = PIPELINES[kind].build()
    pipe.set_progress_bar_config(disable=True)
    call |= prompt | {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": scale}

    def run(videos):
        return pipe(**call, num_videos_per_prompt=videos, generator=torch.Generator().manual_seed(7)).frames

    plain = run(1)
    assert torch.equal(run(2), plain)
    with guide(pipe, negative, **FIRM):
        wanted, got = run(1), run(2)
    with guide(pipe, prompt.get("prompt", prompt), **FIRM):
        same = run(2)
    assert torch.equal(got, wanted)
    assert error(wanted, plain) > 1e-3
    assert error(same, plain) < 1e-5


@pytest.mark.parametrize(("before", "after"), [(3.0, 3.0), (1.0, 3.0)], ids=["with cfg", "cfg begins"])
def test_a_callback_that_drops_images_raises(before, after):
    pipe = pipeline("sd15")

    def keep_one(pipe, step, timestep, kwargs):
        if step == 1:
            text, images = kwargs["prompt_embeds"], len(kwargs["latents"])
            kwargs["latents"] = kwargs["latents"][:1]
            unconditional = text[:1] if before > 1 else torch.zeros_like(text[:1])
            kwargs["prompt_embeds"] = torch.cat([unconditional, text[-images:][:1]])
            pipe._guidance_scale = after
        return kwargs

    call = {"num_images_per_prompt": 2, "guidance_scale": before, "callback_on_step_end": keep_one,
            "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}  # fmt: skip
    draw(pipe, **call)
    with guide(pipe, NEGATIVE), pytest.raises(ValueError, match="2 texts for 2 images of 1 prompts, and those of one"):
        draw(pipe, **call)


def test_a_callback_that_drops_a_prompt_raises():
    pipe = pipeline("sd15")

    def keep_one(pipe, step, timestep, kwargs):
        if step == 1:
            kwargs["latents"], kwargs["prompt_embeds"] = kwargs["latents"][:1], kwargs["prompt_embeds"][::2]
        return kwargs

    call = {"prompt": [PROMPT, "a house"], "guidance_scale": 3.0, "callback_on_step_end": keep_one,
            "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}  # fmt: skip
    draw(pipe, **call)
    with guide(pipe, NEGATIVE), pytest.raises(ValueError, match="with 4 texts, and then with 2, which are no half"):
        draw(pipe, **call)


@pytest.mark.parametrize("images", [2, 3])
def test_ready_made_negatives_of_several_prompts_that_a_pipeline_does_not_repeat(images):
    pipe, prompts, negatives = pipeline("sd3"), [PROMPT, "an old fox in a deep wood"], [NEGATIVE, "a house"]
    call = {"prompt": prompts, "num_images_per_prompt": images, "guidance_scale": 3.0, "num_inference_steps": 2}
    encoded = encode_negative(pipe, negatives, max_sequence_length=12)
    with guide(pipe, negatives, **FIRM):
        wanted = draw(pipe, **call)
    with guide(pipe, encoded, **FIRM):
        got = draw(pipe, **call)
    with guide(pipe, {name: x.flip(0) for name, x in encoded.items()}, **FIRM):
        other = draw(pipe, **call)
    assert error(got, wanted) < 1e-6
    assert error(other, wanted) > 1e-3


class Own(diffusers.StableDiffusionPipeline):
    """[prompt; unconditional text] in the first two steps, and then the prompt alone; or the other way round."""

    prompt_first = True

    def __call__(self, prompt, negative_prompt="", generator=None):
        texts = self.encode_prompt(prompt, "cpu", 1, True, negative_prompt)
        latents = torch.randn(1, 4, 8, 8, generator=generator)
        self.scheduler.set_timesteps(4)
        for i, t in enumerate(self.scheduler.timesteps):
            noise = self.unet(latents, t, texts[0]).sample if i >= 2 else None
            if noise is None:
                order = texts if self.prompt_first else texts[::-1]
                both = self.unet(torch.cat([latents] * 2), t, torch.cat(order)).sample.chunk(2)
                of_prompt, of_nothing = both if self.prompt_first else both[::-1]
                noise = of_nothing + 3.0 * (of_prompt - of_nothing)
            latents = self.scheduler.step(noise, t, latents).prev_sample
        return latents


def own(kind=Own):
    parts = pipeline("sd15").components
    return kind(**parts | {"safety_checker": None, "feature_extractor": None}, requires_safety_checker=False)


def test_guidance_without_the_unconditional_text_after_a_batch_in_another_order():
    pictures = []
    for first in (True, False):
        pipe = own()
        pipe.prompt_first = first
        plain = pipe(PROMPT, "a house", generator=torch.Generator().manual_seed(7))
        with guide(pipe, PROMPT, **FIRM):
            same = pipe(PROMPT, "a house", generator=torch.Generator().manual_seed(7))
        with guide(pipe, NEGATIVE, **FIRM):
            pictures.append(pipe(PROMPT, "a house", generator=torch.Generator().manual_seed(7)))
        assert error(same, plain) < 1e-5
        assert error(pictures[-1], plain) > 1e-3
    assert error(*pictures) < 1e-5


class OneBuffer(diffusers.StableDiffusionPipeline):
    """Hands the denoiser the same tensor in each call, as CUDA graphs want it."""

    buffer = None

    def encode_prompt(self, *args, **kwargs):
        text, unconditional = super().encode_prompt(*args, **kwargs)
        self.buffer = torch.zeros_like(text) if self.buffer is None else self.buffer
        self.buffer.copy_(text)
        return self.buffer, unconditional


def test_a_pipeline_that_writes_every_text_into_one_tensor():
    pipe, other = own(OneBuffer), pipeline("sd15")
    pipe.set_progress_bar_config(disable=True)
    for prompt in (
        {"prompt": PROMPT},
        {"prompt": None, "prompt_embeds": other.encode_prompt(PROMPT, "cpu", 1, False)[0]},
    ):
        with guide(other, NEGATIVE, **FIRM):
            wanted = draw(other, **prompt)
        with guide(pipe, NEGATIVE, **FIRM):
            assert torch.equal(draw(pipe, **prompt), wanted)


def one_by_one(kind, chunk=1):
    """A pipeline that draws its prompts one after another, or so many at a time, as one does for want of memory."""

    class OneByOne(kind):
        def __call__(self, prompt, generator=None, num_images_per_prompt=1, guidance_scale=1.0, **call):
            parts = [prompt[i : i + chunk] for i in range(0, len(prompt), chunk)]
            if chunk == 1 and num_images_per_prompt == 1:
                parts = prompt
            call |= {"guidance_scale": guidance_scale, "num_images_per_prompt": num_images_per_prompt}
            one = super().__call__
            return SimpleNamespace(images=[one(part, **call).images for part in parts])

    return OneByOne


FOUR = [PROMPT, "a house", "an old fox", "a wood in snow"]
CHUNKS = [  # prompts, at a time, images of each
    (FOUR[:2], 1, 1),
    (FOUR, 2, 1),
    (FOUR[:2], 1, 2),
    (FOUR, 2, 2),
]


@pytest.mark.parametrize("negative", [NEGATIVE, "a list"])
@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize(("prompts", "chunk", "images"), CHUNKS)
def test_prompts_that_are_drawn_one_after_another_raise(prompts, chunk, images, scale, negative):
    """Two rows of text may be two prompts, or one and the unconditional text; only the texts tell."""
    pipe = own(one_by_one(diffusers.StableDiffusionPipeline, chunk))
    pipe.set_progress_bar_config(disable=True)
    negatives = negative if negative == NEGATIVE else [NEGATIVE, "red", "grass", "a dog"][: len(prompts)]
    message = r"one after another\. Call the pipeline once for each prompt"
    with pytest.raises(ValueError, match=message), guide(pipe, negatives, rule="nasa", nag_scale=0.5):
        draw(pipe, prompt=prompts, guidance_scale=scale, num_images_per_prompt=images)


def test_prompts_one_after_another_where_texts_are_a_list():
    """As Z-Image has them."""

    class OneByOne(diffusers.ZImagePipeline):
        def __call__(self, prompt=None, prompt_embeds=None, negative_prompt_embeds=None, **call):
            texts = zip(prompt_embeds, negative_prompt_embeds, strict=True)
            one = super().__call__
            return [one(prompt_embeds=[x], negative_prompt_embeds=[y], **call).images for x, y in texts]

    pipe, call, prompt, negative = PIPELINES["z image"].build()  # of two prompts
    pipe.__class__ = OneByOne
    pipe.set_progress_bar_config(disable=True)
    call |= prompt | {"num_inference_steps": 2, "output_type": "latent", "guidance_scale": 0.8}
    pipe(**call)
    with pytest.raises(ValueError, match=r"2 texts for 2 images, .* one after another"), guide(pipe, negative):
        pipe(**call)


@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["alone", "with cfg"])
def test_prompts_of_the_windows_of_one_video(scale):
    """LTX's list of prompts is for the windows of one video; as one text they have one negative."""
    pipe, call, _, negative = PIPELINES["ltx of several prompts"].build()
    pipe.set_progress_bar_config(disable=True)
    call |= {"num_frames": 17, "num_inference_steps": 2, "guidance_scale": scale, "output_type": "latent"}

    def run(prompt):
        return pipe(**call, prompt=prompt, generator=torch.Generator().manual_seed(7)).frames

    with guide(pipe, negative), pytest.raises(ValueError, match="give the prompts in one text if it takes that"):
        run(FOUR[:2])
    plain = run(" | ".join(FOUR[:2]))
    assert torch.equal(run(FOUR[:2]), plain)
    with guide(pipe, negative, **FIRM):
        assert error(run(" | ".join(FOUR[:2])), plain) > 1e-3


@pytest.mark.parametrize("negative", [NEGATIVE, FOUR[0], [NEGATIVE, FOUR[0]], FOUR[:2]])
def test_a_prompt_that_is_its_own_negative_is_no_unconditional_row(negative):
    pipe = pipeline("sd15")
    plain = draw(pipe, prompt=FOUR[:2])
    with guide(pipe, negative, **FIRM):
        got = draw(pipe, prompt=FOUR[:2])
    alike = [error(x, y) < 1e-5 for x, y in zip(got, plain, strict=True)]
    negatives = [negative] * 2 if isinstance(negative, str) else negative
    assert alike == [x == y for x, y in zip(FOUR[:2], negatives, strict=True)]


@pytest.mark.parametrize("kind", ["wan from an image", "skyreels", "cosmos", "hunyuan video", "kandinsky 5", "bria"])
def test_one_ready_made_text_for_several_images(kind):
    """These pipelines do not repeat it, and stock attention spreads it over the images."""
    pipe, call, prompt, negative = PIPELINES[kind].build()
    pipe.set_progress_bar_config(disable=True)
    one, negative = (
        {name: x[:1] if name != "prompt_cu_seqlens" else x for name, x in text.items()} for text in (prompt, negative)
    )
    latents = {"num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent", "return_dict": False}
    call = {name: x for name, x in call.items() if not name.startswith("negative_")} | latents | one
    count = "num_images_per_prompt" if kind == "bria" else "num_videos_per_prompt"
    (plain,) = pipe(**call, **{count: 2})
    assert len(plain) == 2
    with guide(pipe, negative), pytest.raises(ValueError, match=r"called with one text for 2 images; .* with 2 rows"):
        pipe(**call, **{count: 2})
