# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Pipelines whose `__call__` does not name its arguments, and whose class is none like others."""

import abc
import functools

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from drawing import draw
from every_model import pipeline
from pipeline_parts import NEGATIVE
from tiny import error

from nag_kernels.diffusers import disable_guidance, enable_guidance, encode_negative, guide

pytestmark = pytest.mark.usefixtures("one_thread")


def of(kind):
    if issubclass(kind, StableDiffusionXLPipeline):
        return kind(**pipeline("sdxl").components, add_watermarker=False)
    return kind(**pipeline("sd15").components, requires_safety_checker=False)


def timed(function):
    """A decorator made without functools.wraps."""

    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


def within(function):
    return timed(timed(function))


def as_method(function):
    def call(self, *args, **kwargs):
        return function(self, *args, **kwargs)

    return call


class Timed(StableDiffusionPipeline):
    __call__ = timed(StableDiffusionPipeline.__call__)


class Twice(StableDiffusionPipeline):
    __call__ = within(StableDiffusionPipeline.__call__)


class Method(StableDiffusionPipeline):
    __call__ = as_method(StableDiffusionPipeline.__call__)


class Inherited(StableDiffusionXLPipeline):
    """With a default of its own, on which the encoding depends."""

    def __call__(self, *args, **kwargs):
        kwargs.setdefault("clip_skip", 1)
        return super().__call__(*args, **kwargs)


class ByName(StableDiffusionPipeline):
    def __call__(self, **kwargs):
        return super().__call__(**kwargs)


def by_position(pipe):
    if isinstance(pipe, StableDiffusionXLPipeline):
        return lambda prompt, height, width, **rest: pipe(prompt, None, height, width, **rest)
    return lambda prompt, height, width, **rest: pipe(prompt, height, width, **rest)


@pytest.mark.parametrize("kind", [Timed, Twice, Method, Inherited, ByName])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
def test_a_call_that_hands_all_on(kind, guidance_scale):
    own = {"clip_skip": 1} if kind is Inherited else {}
    plain = of(StableDiffusionXLPipeline if kind is Inherited else StableDiffusionPipeline)
    with guide(plain, NEGATIVE):
        wanted = draw(plain, guidance_scale=guidance_scale, **own)
    pipe, options = of(kind), {"guidance_scale": guidance_scale}
    ready = encode_negative(pipe, NEGATIVE, **own)
    assert "prompt_embeds" in ready
    for negative in (NEGATIVE, ready):
        with guide(pipe, negative):
            assert torch.equal(draw(pipe, **options), wanted)
    if kind is not ByName:
        with guide(pipe, NEGATIVE):
            got = draw(pipe, by=by_position(pipe), **options)
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("kind", [Timed, Inherited])
def test_callbacks_of_such_a_call_rest(kind):
    pipe, seen = of(kind), []

    def look(pipe, step, timestep, tensors):
        seen.append("NAG" in str(type(pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.processor)))
        return tensors

    with guide(pipe, NEGATIVE):
        draw(pipe, callback_on_step_end=look)
    assert seen == [False] * 4


class Praising(StableDiffusionPipeline):
    """Takes its first argument in hand."""

    def __call__(self, *args, **kwargs):
        return super().__call__(f"best, {args[0]}", *args[1:], **kwargs)


def test_a_call_that_takes_its_first_argument_in_hand():
    plain, pipe = of(StableDiffusionPipeline), of(Praising)
    with guide(plain, f"best, {NEGATIVE}"):
        wanted = draw(plain, prompt="best, a cat")
    with guide(pipe, NEGATIVE):
        got = draw(pipe, prompt="a cat", by=lambda prompt, height, width, **rest: pipe(prompt, height, width, **rest))
    assert torch.equal(got, wanted)


class Hidden:
    """A decorator that is an object: what it calls is not found."""

    def __init__(self, function):
        self.function = function

    def __get__(self, pipe, kind):
        return self if pipe is None else functools.partial(self, pipe)

    def __call__(self, *args, **kwargs):
        return self.function(*args, **kwargs)


class Unnamed(StableDiffusionPipeline):
    __call__ = timed(Hidden(lambda *args, **kwargs: StableDiffusionPipeline.__call__(*args, **kwargs)))


class Foreign:
    """No pipeline of diffusers, so no base class names the arguments either."""

    def __init__(self, pipe):
        self.unet, self.inner = pipe.unet, pipe

    __call__ = timed(Hidden(lambda self, *args, **kwargs: self.inner(*args, **kwargs)))


class ByPosition(StableDiffusionPipeline):
    def __call__(self, prompt, /, *args):
        return super().__call__(prompt, 8, 8)


def test_a_call_whose_arguments_nothing_names():
    pipe = Foreign(pipeline("sd15"))
    pipe("a cat", num_inference_steps=1, height=8, width=8)
    wanted = r"arguments of this Foreign must be given by name: .*functools.wraps"
    with guide(pipe, NEGATIVE), pytest.raises(TypeError, match=wanted):
        pipe("a cat", num_inference_steps=1, height=8, width=8)
    wanted = r"the __call__ of this ByPosition takes no arguments by name, .*let it take \*\*kwargs"
    with guide(of(ByPosition), NEGATIVE) as pipe, pytest.raises(TypeError, match=wanted):
        pipe("a cat")
    base = of(Unnamed)  # the base class names them
    with guide(base, NEGATIVE):
        draw(base)


# --- classes ----------------------------------------------------------------------------------------------------------


class Wanting(type):
    """Needs a keyword of every class that it makes."""

    def __new__(cls, name, bases, own, *, kind):
        return super().__new__(cls, name, bases, own)

    def __init__(cls, name, bases, own, *, kind):
        super().__init__(name, bases, own)
        cls.kind = kind


class Final(type):
    """Refuses subclasses."""

    def __new__(cls, name, bases, own):
        if any(isinstance(base, cls) for base in bases):
            raise RuntimeError(f"{name}: no subclasses")
        return super().__new__(cls, name, bases, own)


class FinalAbstract(Final, abc.ABCMeta):
    """Has an answer of its own to isinstance."""


def with_metaclass(meta, **more):
    """diffusers' classes have a metaclass of their own."""
    both = type(meta.__name__, (meta, type(StableDiffusionPipeline)), {})
    return both("StableDiffusionPipeline", (StableDiffusionPipeline,), {}, **more)


KINDS = {
    "keyword": with_metaclass(Wanting, kind="sd"),
    "final": with_metaclass(Final),
    "abstract": with_metaclass(FinalAbstract),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_metaclass_that_makes_no_subclass(kind):
    plain = of(StableDiffusionPipeline)
    with guide(plain, NEGATIVE):
        wanted = draw(plain)
    pipe = of(kind)
    assert isinstance(pipe, kind)
    with guide(pipe, NEGATIVE):
        assert isinstance(pipe, kind)
        assert torch.equal(draw(pipe), wanted)
    assert type(pipe) is kind
    enable_guidance(pipe, NEGATIVE)
    assert torch.equal(draw(pipe), wanted)
    disable_guidance(pipe)
    assert type(pipe) is kind
    assert error(draw(pipe), wanted) > 1e-4
