# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a guided call spends before its first step: one walk over the denoiser's modules, one search for the pipeline's device."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")

from drawing import call_of, draw
from every_model import MODELS, pipeline
from pipeline_parts import NEGATIVE

from nag_kernels.diffusers import denoiser_calls as calls
from nag_kernels.diffusers import guide, guided, negative_prompt
from nag_kernels.diffusers.models.layers import layers_named

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", ["sd15", "flux", "wan"])
def test_the_walk_finds_what_torch_finds(kind):
    model = MODELS[kind]()
    assert list(calls.named_modules(model).items()) == list(model.named_modules())


def test_the_walk_meets_shared_and_absent_modules_as_torch_does():
    shared = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    model = torch.nn.ModuleDict({"a": shared, "b": torch.nn.Sequential(shared[1], shared, torch.nn.Tanh())})
    model.register_module("none", None)
    assert list(calls.named_modules(model).items()) == list(model.named_modules())
    assert calls.named_modules(torch.compile(model, backend="eager"))[""] is model


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux", "wan"])
def test_a_guided_call_walks_once(kind, monkeypatch):
    pipe, walks = pipeline(kind), []
    steered = guided(pipe, NEGATIVE, nag_scale=4.0)
    counted = calls.named_modules
    for name in ("guide", "compatibility", "models.registry"):
        module = __import__(f"nag_kernels.diffusers.{name}", fromlist=["named_modules"])
        if hasattr(module, "named_modules"):
            monkeypatch.setattr(module, "named_modules", lambda x: walks.append(x) or counted(x))
    plain = torch.nn.Module.named_modules

    def by_torch(self, *call, **more):  # as diffusers itself calls it
        frame = sys._getframe(1)
        while frame.f_globals["__name__"].startswith("torch."):
            frame = frame.f_back
        assert not frame.f_globals["__name__"].startswith("nag_kernels"), frame
        return plain(self, *call, **more)

    monkeypatch.setattr(torch.nn.Module, "named_modules", by_torch)
    steered(**call_of(pipe))
    assert len(walks) == 1


def test_layers_are_known_by_the_last_part_of_their_names():
    class Block(torch.nn.Module):
        processor = None

    modules = {
        "blocks.0.attn": Block(),
        "blocks.0.attn.inner": Block(),
        "embed.attn": Block(),
        "blocks.1.attn": torch.nn.ReLU(),
    }
    assert [name for name, _ in layers_named("attn")(modules)] == ["blocks.0.attn"]


def counting(pipe):
    """The same pipeline, of a class that counts how often its device is looked for, and the list of what was found."""
    found, plain = [], type(pipe)

    class Counting(plain):
        @property
        def _execution_device(self):
            found.append(super()._execution_device)
            return found[-1]

    Counting.__name__ = plain.__name__
    pipe.__class__ = Counting
    return found


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux", "wan", "pixart"])
def test_the_device_is_looked_for_no_more_often_than_without_guidance(kind):
    pipe = pipeline(kind)
    found = counting(pipe)
    draw(pipe)
    plain = len(found)
    steered = guided(pipe, NEGATIVE, nag_scale=4.0)
    for _ in range(2):
        found.clear()
        steered(**call_of(pipe))
        assert 0 < len(found) <= plain


def test_the_device_is_looked_for_again_after_the_denoisers_first_call():
    pipe = pipeline("sdxl")
    found, later = counting(pipe), []

    def end_of_step(pipe, i, t, tensors):
        before = len(found)
        assert pipe._execution_device == torch.device("cpu")
        assert pipe._execution_device == torch.device("cpu")
        later.append(len(found) - before)
        return {}

    guided(pipe, NEGATIVE, nag_scale=4.0)(**call_of(pipe), callback_on_step_end=end_of_step)
    assert later == [2] * 4
    with guide(pipe, NEGATIVE, nag_scale=4.0):
        draw(pipe)
        found.clear()
        assert pipe._execution_device == pipe._execution_device == copy.copy(pipe)._execution_device
        assert len(found) == 3


def test_a_call_that_fails_before_its_first_step_leaves_no_device_behind():
    pipe = pipeline("sdxl")
    found = counting(pipe)
    with guide(pipe, NEGATIVE, nag_scale=4.0):
        with pytest.raises(ValueError, match="divisible by 8"):
            draw(pipe, height=9)
        found.clear()
        assert pipe._execution_device == pipe._execution_device
        assert len(found) == 2
        draw(pipe)


def test_the_random_states_of_all_accelerators_are_put_back(monkeypatch):
    """With a stand-in for two devices, whose names have no index (as "mps" has none)."""
    states, drawn = [torch.tensor([1]), torch.tensor([2])], []
    module = SimpleNamespace(
        device_count=lambda: 2,
        get_rng_state=lambda i: states[i].clone(),
        set_rng_state=lambda x, i: states.__setitem__(i, x),
    )
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps"))
    monkeypatch.setattr(negative_prompt.torch, "get_device_module", lambda device: module)
    pipe = pipeline("sdxl")
    prepared = type(pipe).prepare_latents

    def prepare(self, *call, **more):
        drawn.append([int(x) for x in states])
        states[0], states[1] = states[0] + 10, states[1] + 10
        return prepared(self, *call, **more)

    monkeypatch.setattr(type(pipe), "prepare_latents", prepare)
    guided(pipe, NEGATIVE, nag_scale=4.0)(**call_of(pipe))
    assert drawn == [[1, 2], [1, 2]]  # in the recording and in the call
    assert [int(x) for x in states] == [11, 12]
