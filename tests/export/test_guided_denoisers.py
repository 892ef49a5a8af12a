# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`GuidedDenoiser`: guided models of every route as exported programs, whose inputs are the texts of both prompts."""

import functools
from dataclasses import replace

import pytest
import torch
from torch.utils._pytree import tree_leaves

pytest.importorskip("diffusers")
pytest.importorskip("openvino")

from runtimes import OpenVINO
from stand_in import filled, firm
from test_cosmos import TINY as COSMOS
from test_latte import TINY as LATTE
from test_sd3 import DROP_IN as SD3
from test_unet import DROP_IN as UNET
from tiny import error, noise, seeded, texts

from nag_kernels.diffusers import GuidedDenoiser, guide
from nag_kernels.diffusers.models.registry import spec_of

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

FIRM = {"nag_scale": 8.0, "nag_tau": 1.25, "nag_alpha": 0.5}
TOLERANCE = 2e-6  # of a whole tiny model in float32, in another runtime


def with_layers(tiny, **number):
    """As few as go: an export takes seconds for each."""
    model = tiny.build()
    return replace(tiny, build=lambda: type(model).from_config(model.config, **number))


def drop_in(tiny):
    model = seeded(tiny.build)
    positive, negative = texts(2, 7, 5, tiny.width, torch.float32)
    return model, tiny.arguments(2, torch.float32) | {"encoder_hidden_states": positive}, negative


def sd15():
    model, call, negative = drop_in(UNET["sd15"])
    seen = [(torch.arange(n) < torch.tensor([[n], [n - 2]])).long() for n in (7, 5)]
    call |= {"encoder_attention_mask": seen[0], "class_labels": None}
    return model, call, {"encoder_hidden_states": negative, "encoder_attention_mask": seen[1]}, FIRM


def sd3():
    model, call, negative = drop_in(with_layers(SD3["sd3"], num_layers=2))
    return model, call, {"encoder_hidden_states": negative}, FIRM


def whole_model(tiny):
    pipe = filled(tiny)
    return pipe.transformer, pipe.arguments | pipe.texts["positive"], pipe.texts["negative"], firm(tiny)


ROUTES = {
    "drop-in, cross-attention": sd15,
    "drop-in, joint attention": sd3,
    "generic": lambda: whole_model(with_layers(LATTE["LatteTransformer3DModel"], num_layers=1)),
    "dual forward": lambda: whole_model(with_layers(COSMOS["Cosmos3OmniTransformer"], num_hidden_layers=1)),
}
every_route = pytest.mark.parametrize("route", ROUTES)


@functools.cache
def exported(route):
    with torch.no_grad():
        model, call, negative, settings = ROUTES[route]()
        guided = GuidedDenoiser(model, **settings)
        return guided, torch.export.export(guided, (call, negative), strict=False), call, negative


def whole(outputs):
    """All that a model returns, of which there may be several."""
    return torch.cat([x.flatten() for x in tree_leaves(outputs) if isinstance(x, torch.Tensor)])


def others(model, text):
    """Another text of the same length; of masked ones the first row loses a token."""
    name = next(iter(spec_of(model).text))
    numbers = text[name].is_floating_point()
    changed = text | {name: noise(*text[name].shape, seed=11, dtype=torch.float32) if numbers else text[name].flip(-1)}
    for mask in spec_of(model).masks:
        if text.get(mask) is not None:
            changed[mask] = text[mask].clone()
            changed[mask][0, -1] = 0
    return changed


@every_route
def test_the_module_computes_what_the_block_does(route):
    guided, _, call, negative = exported(route)
    with guide(guided.denoiser, negative, **ROUTES[route]()[3]):
        wanted = guided.denoiser(**call, return_dict=False)
    assert torch.equal(whole(guided(call, negative)), whole(wanted))


@every_route
def test_texts_are_inputs_of_the_program(route):
    guided, program, call, negative = exported(route)
    before = whole(guided(call, negative))
    assert error(whole(program.module()(call, negative)), before) < 1e-6
    for calls in ((call, others(guided.denoiser, negative)), (others(guided.denoiser, call), negative)):
        wanted = whole(guided(*calls))
        assert error(whole(program.module()(*calls)), wanted) < 1e-6
        assert error(before, wanted) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("route", [x for x in ROUTES if x != "drop-in, cross-attention"])  # test_page.py has one
def test_openvino_runs_it(route):
    guided, program, call, negative = exported(route)
    model = OpenVINO(program)
    assert model.inputs == [x for x in program.graph_signature.user_inputs if isinstance(x, str)]
    assert any(name.startswith("negative_") for name in model.inputs)
    assert model.operators["ScaledDotProductAttention"] > 0
    for calls in ((call, negative), (call, others(guided.denoiser, negative))):
        assert error(whole(model(*calls)), whole(guided(*calls))) < TOLERANCE


def test_settings_of_the_call_stand_for_those_of_the_module():
    model, call, negative, settings = sd3()
    guided = GuidedDenoiser(model, **settings)
    number = guided(call, negative)
    tensors = [torch.tensor(x) for x in settings.values()]
    assert torch.equal(GuidedDenoiser(model)(call, negative, *tensors), number)
    plain = model(**call, return_dict=False)[0]
    mixed = guided(call, negative, torch.tensor([1.0, settings["nag_scale"]]))
    assert error(mixed[0], plain[0]) < 1e-5  # unconditional rows of classifier-free guidance
    assert torch.equal(mixed[1], number[1])


def test_a_setting_with_another_number_of_rows_is_refused():
    model, call, negative, settings = sd3()
    with pytest.raises(
        ValueError, match=r"nag_scale must have shape \[\] or \[2\], one number for each row.*got \(3,\)"
    ):
        GuidedDenoiser(model, **settings)(call, negative, torch.ones(3))


def test_what_no_call_could_mend_is_refused_at_once():
    model = sd3()[0]
    with pytest.raises(TypeError, match=r"denoiser must be a model \(pipe.unet or pipe.transformer\), got str"):
        GuidedDenoiser("stabilityai/stable-diffusion-3.5-large")
    with pytest.raises(ValueError, match="nag_scale must be at least 1"):
        GuidedDenoiser(model, nag_scale=0.5)
    with pytest.raises(ValueError, match="SiLU is not supported"):
        GuidedDenoiser(torch.nn.SiLU())


def test_an_export_has_no_masks_to_pad_by():
    model, call, negative, settings = sd15()
    with pytest.raises(ValueError, match="pad looks at the values of the masks, which there are none of in an export"):
        torch.export.export(GuidedDenoiser(model, **settings, pad=True), (call, negative), strict=False)


def test_nothing_is_left_on_the_denoiser():
    model, call, negative, settings = sd3()
    before = dict(model.attn_processors)
    GuidedDenoiser(model, **settings)(call, negative)
    assert dict(model.attn_processors) == before
