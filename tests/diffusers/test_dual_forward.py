# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The dual forward: models whose prompts cannot be packed run twice, in lockstep."""

import dataclasses
import threading

import pytest
import torch

pytest.importorskip("diffusers")

from every_model import TINY
from stand_in import filled, state
from tiny import error, noise, seeded

from nag_kernels.diffusers import enable_guidance, guide
from nag_kernels.diffusers.attention.dual_forward import DualForward
from nag_kernels.diffusers.models.registry import file_of, guided_layers

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

SLOW = "OmniGenTransformer2DModel"


@pytest.mark.parametrize("rule", ["nag", "nasa"])
@pytest.mark.parametrize(("kind", "image"), [
    ("CogView4Transformer2DModel", lambda model, arguments, length: slice(length - 16, None)),
    ("CosmosTransformer3DModel", lambda model, arguments, length: slice(0, length)),
])  # fmt: skip
def test_the_dual_forward_equals_packed_prompts(kind, image, rule, monkeypatch):
    pipe = filled(TINY[kind])
    with guide(pipe, "negative", nag_scale=3.0, rule=rule):
        wanted = pipe(pipe.prompt)
    models, twice = file_of(kind).MODELS, DualForward(("encoder_hidden_states",), image)
    monkeypatch.setitem(models, kind, dataclasses.replace(models[kind], dual_forward=twice))
    with guide(pipe, "negative", nag_scale=3.0, rule=rule):
        assert error(pipe(pipe.prompt), wanted) < 1e-5


def test_gradients_through_the_dual_forward_equal_those_of_packed_prompts(monkeypatch):
    kind, gradients = "CogView4Transformer2DModel", []
    tiny, models = TINY[kind], file_of(kind).MODELS
    arguments, model = tiny.arguments(1, torch.float64), seeded(tiny.build).double()
    image = {"image": lambda model, arguments, length: slice(length - 16, None)}
    for spec in (
        models[kind],
        dataclasses.replace(models[kind], dual_forward=DualForward(("encoder_hidden_states",), **image)),
    ):
        monkeypatch.setitem(models, kind, spec)
        texts = [noise(1, n, 32, seed=n).requires_grad_() for n in (6, 6)]
        with torch.enable_grad(), guide(model, {"encoder_hidden_states": texts[1]}, nag_scale=3.0):
            model(**arguments, encoder_hidden_states=texts[0]).sample.square().sum().backward()
        gradients.append([x.grad for x in texts])
    for one, other in zip(*gradients, strict=True):
        assert error(one, other) < 1e-8
        assert other.norm() > 0


def test_two_runs_have_the_modes_of_the_one():
    pipe, seen, threads = filled(TINY[SLOW]), [], threading.active_count()
    layer = guided_layers(pipe.transformer)[0].to_q
    layer.register_forward_pre_hook(lambda *_: seen.append(
        (torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"))
    ))  # fmt: skip
    with guide(pipe, "negative"), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        pipe(pipe.prompt)
    assert seen == [(True, False, True)] * 2
    assert threading.active_count() == threads


@pytest.mark.parametrize("where", ["prompt", "negative", "layer"])
def test_an_error_in_either_run_ends_both(where):
    pipe, calls, threads = filled(TINY[SLOW]), [], threading.active_count()
    plain, before = pipe(pipe.prompt), state(pipe)

    def interrupt(layer, inputs):
        calls.append(1)
        if len(calls) == {"prompt": 1, "negative": 2}.get(where):
            raise KeyboardInterrupt

    sites = guided_layers(pipe.transformer)
    hook = sites[1].to_q.register_forward_pre_hook(interrupt)
    forward = sites[1].forward
    if where == "layer":  # which no longer comes to what follows attention
        sites[1].forward = lambda hidden_states, **_: hidden_states
    expected = RuntimeError if where == "layer" else KeyboardInterrupt
    with pytest.raises(expected, match="there were 1 meetings" if where == "layer" else None), guide(pipe, "negative"):
        pipe(pipe.prompt)
    hook.remove()
    if where == "layer":
        assert sites[1].forward is not forward
        del sites[1].forward
    assert state(pipe) == before
    assert threading.active_count() == threads
    assert torch.equal(pipe(pipe.prompt), plain)


def test_what_the_dual_forward_refuses():
    pipe = filled(TINY[SLOW])
    with (
        pytest.raises(ValueError, match="rule 'vsf' needs texts in one sequence"),
        guide(pipe, "negative", rule="vsf", nag_scale=2.0),
    ):
        pipe(pipe.prompt)
    model = pipe.transformer
    model.layers[0].compile(backend="eager")
    with pytest.raises(ValueError, match="it is compiled, and its texts cannot be packed"):
        enable_guidance(pipe, "negative")
    model.layers[0]._compiled_call_impl = None
    pipe.transformer = torch.compile(model, backend="eager")
    with pytest.raises(ValueError, match="it is compiled, and its texts cannot be packed"):
        enable_guidance(pipe, "negative")
