# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Pipelines of one's own that write into what they are given, or use it up: the run that encodes the negative is not seen."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

from diffusers import StableDiffusionPipeline
from drawing import draw
from every_model import pipeline
from pipeline_parts import NEGATIVE

from nag_kernels.diffusers import guide

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")


def latents():
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))


def from_numbers(numbers):
    return torch.as_tensor(np.array(numbers)).float().view(1, 4, 8, 8)


class InPlace(StableDiffusionPipeline):
    def __call__(self, prompt, start=None, **call):
        start = getattr(self, "start", start)
        start *= 2
        return super().__call__(prompt, latents=start.clone(), **call)


class FromArray(StableDiffusionPipeline):
    def __call__(self, prompt, start=None, **call):
        start *= 2
        return super().__call__(prompt, latents=from_numbers(start), **call)


class FromImage(StableDiffusionPipeline):
    def __call__(self, prompt, start=None, **call):
        start.paste(start.getpixel((0, 0)) + 50, (0, 0, 16, 16))
        return super().__call__(prompt, latents=from_numbers(start) / 255, **call)


class FromList(StableDiffusionPipeline):
    def __call__(self, prompt, start=None, **call):
        start = getattr(self, "start", start)
        return super().__call__(prompt, latents=start.pop(0), **call)


class FromMapping(StableDiffusionPipeline):
    def __call__(self, prompt, start=None, **call):
        start = getattr(self, "start", start)
        return super().__call__(prompt, latents=start.pop("start") if "start" in start else None, **call)


class Random(StableDiffusionPipeline):
    def __call__(self, prompt, start=None, **call):
        start = getattr(self, "start", start)
        draw_one = start.gauss if isinstance(start, random.Random) else start.normal
        return super().__call__(prompt, latents=from_numbers([draw_one(0, 1) for _ in range(256)]), **call)


class Nested(StableDiffusionPipeline):
    def __call__(self, prompt, start=None, **call):
        noise = torch.randn(1, 4, 8, 8, generator=start["generators"][0])
        return super().__call__(prompt, latents=noise, **call)


GIVEN = {
    "a tensor": (InPlace, latents),
    "an array": (FromArray, lambda: latents().numpy()),
    "an image": (FromImage, lambda: Image.new("L", (16, 16), 20)),
    "a list": (FromList, lambda: [latents(), 2 * latents()]),
    "a mapping": (FromMapping, lambda: {"start": latents()}),
    "random numbers of numpy": (Random, lambda: np.random.default_rng(3)),
    "random numbers of numpy as of old": (Random, lambda: np.random.RandomState(3)),
    "random numbers of Python": (Random, lambda: random.Random(3)),
    "a generator within": (Nested, lambda: {"generators": [torch.Generator().manual_seed(3)]}),
}
HELD = ["a tensor", "a list", "a mapping", "random numbers of numpy", "random numbers of numpy as of old",
        "random numbers of Python"]  # fmt: skip


@pytest.mark.parametrize(("kind", "held"), [(x, False) for x in GIVEN] + [(x, True) for x in HELD])
def test_what_a_pipeline_writes_into_or_uses_up(kind, held):
    cls, build = GIVEN[kind]
    seen = []

    def run(guided):
        pipe, start = pipeline("sd15"), build()
        pipe.__class__ = cls
        if held:
            pipe.start = start
        hook = pipe.unet.register_forward_pre_hook(lambda model, args, kwargs: seen.append(args[0]), with_kwargs=True)
        options = {} if held else {"start": start}
        if guided:
            with guide(pipe, NEGATIVE):
                made = draw(pipe, **options)
        else:
            made = draw(pipe, **options)
        hook.remove()
        return made

    plain = run(guided=False)
    first = seen.pop(0)
    seen.clear()
    steered = run(guided=True)
    assert torch.equal(seen[0], first)  # the noise that it begins with
    assert not torch.equal(steered, plain)


def test_what_can_be_read_only_once_raises():
    pipe = pipeline("sd15")
    pipe.__class__ = FromList
    with pytest.raises(TypeError, match="start is a generator, which can be read only once"), guide(pipe, NEGATIVE):
        draw(pipe, start=(x for x in [latents()]))
