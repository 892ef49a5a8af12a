# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`GuidedDenoiser`: guided models of every route as exported programs, whose inputs are the texts of both prompts."""

import functools

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from runtimes import ONNXRuntime, OpenVINO
from stand_in import filled, firm
from test_bria import TINY as BRIA
from test_flux import DROP_IN as FLUX
from test_lumina import TINY as LUMINA
from test_pixart import DROP_IN as PIXART
from tiny import error, noise, seeded, texts

from nag_kernels.diffusers import GuidedDenoiser, guide
from nag_kernels.diffusers.models.registry import spec_of

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

FIRM = {"nag_scale": 8.0, "nag_tau": 1.25, "nag_alpha": 0.5}
TOLERANCE = 2e-6  # of a whole tiny model in float32, in another runtime


def pixart():
    model = seeded(PIXART["pixart"].build)
    positive, negative = texts(2, 7, 5, 32, torch.float32)
    masks = [torch.arange(n) < torch.tensor([[n], [n - 2]]) for n in (7, 5)]
    arguments = PIXART["pixart"].arguments(2, torch.float32) | {"added_cond_kwargs": {}}
    call = arguments | {"encoder_hidden_states": positive, "encoder_attention_mask": masks[0].long()}
    return model, call, {"encoder_hidden_states": negative, "encoder_attention_mask": masks[1].long()}, FIRM


def flux():
    model = seeded(FLUX["flux"].build)
    positive, negative = texts(2, 7, 5, 32, torch.float32)
    call = FLUX["flux"].arguments(2, torch.float32) | {"encoder_hidden_states": positive, "txt_ids": torch.zeros(7, 3)}
    return model, call, {"encoder_hidden_states": negative, "txt_ids": torch.zeros(5, 3)}, FIRM


def of_table(table, kind, masked):
    tiny = table[kind]
    pipe = filled(tiny, masked=masked)
    return pipe.transformer, pipe.arguments | pipe.texts["positive"], pipe.texts["negative"], firm(tiny)


ROUTES = {
    "drop-in, cross-attention": pixart,
    "drop-in, joint attention": flux,
    "generic": lambda: of_table(LUMINA, "LuminaNextDiT2DModel", masked=True),
    "dual forward": lambda: of_table(BRIA, "BriaFibo2Transformer2DModel", masked=False),
}
every_route = pytest.mark.parametrize("route", ROUTES)


@functools.cache
def exported(route):
    with torch.no_grad():
        model, call, negative, settings = ROUTES[route]()
        guided = GuidedDenoiser(model, **settings)
        return guided, torch.export.export(guided, (call, negative), strict=False), call, negative


def others(model, text):
    """Another text of the same length; of masked ones the first row loses a token."""
    name = next(iter(spec_of(model).text))
    changed = text | {name: noise(*text[name].shape, seed=11, dtype=torch.float32)}
    for mask in spec_of(model).masks:
        if text.get(mask) is not None:
            changed[mask] = text[mask].clone()
            changed[mask][0, -1] = 0
    return changed


@every_route
def test_the_module_computes_what_the_block_does(route):
    guided, _, call, negative = exported(route)
    with guide(guided.denoiser, negative, **ROUTES[route]()[3]):
        wanted = guided.denoiser(**call, return_dict=False)[0]
    assert torch.equal(guided(call, negative), wanted)


@every_route
def test_texts_are_inputs_of_the_program(route):
    guided, program, call, negative = exported(route)
    names = [x for x in program.graph_signature.user_inputs if isinstance(x, str)]
    assert any(x.startswith("negative_") for x in names)
    changed = [(call, others(guided.denoiser, negative)), (others(guided.denoiser, call), negative)]
    before = guided(call, negative)
    for calls in [(call, negative), *changed]:
        wanted = guided(*calls)
        assert error(program.module()(*calls), wanted) < 1e-6
        assert calls[0] is call and calls[1] is negative or error(before, wanted) > 1e-3


@every_route
def test_openvino_runs_it(route):
    guided, program, call, negative = exported(route)
    model = OpenVINO(program)
    names = [x for x in program.graph_signature.user_inputs if isinstance(x, str)]
    assert model.inputs == names
    assert model.operators["ScaledDotProductAttention"] > 0
    for calls in ((call, negative), (call, others(guided.denoiser, negative))):
        assert error(model(*calls)[0], guided(*calls)) < TOLERANCE


@pytest.mark.parametrize("route", ["drop-in, cross-attention", "drop-in, joint attention"])
def test_onnxruntime_runs_it(route):
    guided, program, call, negative = exported(route)
    model = ONNXRuntime(program)
    for calls in ((call, negative), (call, others(guided.denoiser, negative))):
        assert error(model(*calls)[0], guided(*calls)) < TOLERANCE
