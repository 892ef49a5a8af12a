# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""A stand-in for a pipeline: a tiny model and ready-made text."""

import torch
from oracles import output
from tiny import TEXT, seeded, texts


class Pipeline:
    """As `guide` sees one: a denoiser, and a call with a prompt. Each prompt is the name of ready-made text."""

    def __init__(self, tiny, dtype=torch.float32, build=None):
        self.transformer = seeded(build or tiny.build, dtype)
        self.arguments, self.texts = tiny.arguments(tiny.rows, dtype), {}
        self.prompt = ["positive"] * tiny.rows

    def text_of(self, prompt):
        others = {"not positive": "negative", "not negative": "positive"}  # asked for where the negative is the prompt
        return self.texts[prompt if prompt in self.texts else others[prompt]]

    def __call__(self, prompt):
        return output(self.transformer, self.arguments | self.text_of(prompt[0]))


def filled(tiny, dtype=torch.float32, masked=False, build=None):
    """A pipeline with a prompt "positive" and a negative "negative"."""
    pipe = Pipeline(tiny, dtype, build=build)
    masks = dict.fromkeys(("positive", "negative"))
    if masked:
        masks = {
            name: torch.arange(length) < torch.tensor(seen)[:, None]
            for name, length, seen in zip(masks, tiny.lengths, tiny.seen, strict=True)
        }
    both = texts(tiny.rows, *tiny.lengths, TEXT, dtype)
    pipe.texts = {name: tiny.text(x, masks[name]) for name, x in zip(masks, both, strict=True)}
    return pipe


def firm(tiny):
    """The clip fires on a part of the tokens."""
    return {"nag_scale": 8.0, "nag_tau": tiny.tau, "nag_alpha": 0.5}


def state(pipe):
    modules = list(pipe.transformer.modules())
    return [dict(x.__dict__) for x in modules], [type(x) for x in modules], type(pipe), dict(pipe.__dict__)


class Alone(Pipeline):
    """In the place of a pipeline that cannot be built here: it calls its model once, with ready-made text."""

    def set_progress_bar_config(self, **options):
        pass

    def __call__(self, prompt, **options):
        return (super().__call__(prompt),)


def alone(tiny):
    def build():
        pipe = Alone(tiny)
        both = texts(tiny.rows, *tiny.lengths, TEXT, torch.float32)
        pipe.texts = {name: tiny.text(x, None) for name, x in zip(("positive", "negative"), both, strict=True)}
        return pipe, {}, {"prompt": pipe.prompt}, "negative"

    return build
