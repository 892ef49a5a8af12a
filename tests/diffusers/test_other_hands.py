# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Attention processors that somebody else sets while guidance is on: what is found at a guided call is what is replaced and put
back, and what is not known raises by name."""

import copy

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers.models.attention_processor import AttnProcessor2_0
from drawing import draw
from every_model import pipeline
from tiny import error

from nag_kernels.diffusers import guide

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

NEGATIVE = "a large blue dog on grass"


class Unknown:
    """As Prompt-to-Prompt has one: it looks at the attention of every layer."""

    calls = 0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **options):
        type(self).calls += 1
        return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask, **options)


class SetsProcessors(diffusers.StableDiffusionPipeline):
    """Sets processors of its own in each call, for each layer one."""

    made = AttnProcessor2_0

    def __call__(self, *args, **options):
        self.unet.set_attn_processor({name: self.made() for name in self.unet.attn_processors})
        self.set = dict(self.unet.attn_processors)
        return super().__call__(*args, **options)


def own(made=AttnProcessor2_0):
    pipe = pipeline("sd15")
    pipe.__class__ = type("Own", (SetsProcessors,), {"made": made})
    return pipe


def test_processors_that_a_pipeline_sets_in_its_call():
    pipe, found = own(), []
    cross = [name for name in pipe.unet.attn_processors if ".attn2." in name]
    pipe.unet.register_forward_hook(lambda model, *_: found.append(dict(model.attn_processors)))
    seen = []
    first = pipe.unet.get_submodule(cross[0].removesuffix(".processor"))
    first.register_forward_pre_hook(lambda layer, _: seen.append(layer.processor))
    plain = draw(pipe)
    seen.clear()
    with guide(pipe, NEGATIVE, end=0.5):
        guided = draw(pipe)
    assert error(guided, plain) > 1e-3
    assert ["NAG" in type(x).__name__ for x in seen] == [True, True, False, False]
    assert seen[2] is pipe.set[cross[0]]  # those of this very call, in the steps that are not guided
    assert dict(pipe.unet.attn_processors) == pipe.set  # and afterwards, as without guidance
    with guide(pipe, NEGATIVE, nag_scale=1 + 1e-6, nag_alpha=1.0, nag_tau=10.0):
        assert error(draw(pipe), plain) < 2e-5


@pytest.mark.parametrize("layers", [None, "1"])
def test_processors_that_a_callback_sets(layers):
    pipe, mine = pipeline("sd15"), []

    def change(pipe, step, timestep, tensors):
        if step == 1:
            pipe.unet.set_attn_processor({name: AttnProcessor2_0() for name in pipe.unet.attn_processors})
            mine.append(dict(pipe.unet.attn_processors))
        return tensors

    with guide(pipe, NEGATIVE, layers=layers):
        wanted = draw(pipe)
    with guide(pipe, NEGATIVE, layers=layers):
        got = draw(pipe, callback_on_step_end=change)
    assert error(got, wanted) < 2e-5
    assert dict(pipe.unet.attn_processors) == mine[0]


def test_an_unknown_processor_raises_by_name():
    pipe = own(Unknown)
    draw(pipe)
    with (
        pytest.raises(ValueError, match=r"attn2 is Unknown, which is not known.*draw without that"),
        guide(pipe, NEGATIVE),
    ):
        draw(pipe)
    assert dict(pipe.unet.attn_processors) == pipe.set
    Unknown.calls = 0
    draw(pipe)
    assert Unknown.calls  # and works as before


def test_an_unknown_processor_that_a_callback_sets_raises_by_name():
    pipe = pipeline("sd15")

    def change(pipe, step, timestep, tensors):
        pipe.unet.set_attn_processor({name: Unknown() for name in pipe.unet.attn_processors})
        return tensors

    with pytest.raises(ValueError, match="is Unknown, which is not known"), guide(pipe, NEGATIVE):
        draw(pipe, callback_on_step_end=change)
    assert {type(x) for x in pipe.unet.attn_processors.values()} == {Unknown}


def test_attend_and_excite_is_refused_by_name():
    name = "StableDiffusionAttendAndExcitePipeline"
    if not hasattr(diffusers, name):
        pytest.skip("this diffusers has no Attend-and-Excite")
    parts = pipeline("sd15").components | {"safety_checker": None, "feature_extractor": None}
    parts.pop("image_encoder", None)
    pipe = getattr(diffusers, name)(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    call = {
        "token_indices": [2],
        "max_iter_to_alter": 0,
        "attn_res": (2, 2),
        "height": 16,
        "width": 16,
        "output_type": "latent",
    }
    with (
        torch.enable_grad(),
        pytest.raises(ValueError, match="is AttendExciteAttnProcessor, which is not known"),
        guide(pipe, NEGATIVE),
    ):
        pipe("a small red cat", num_inference_steps=2, **call)


def test_a_pipeline_class_that_looks_at_its_subclasses():
    """What `guide` puts on the pipeline is none of them."""
    known = []

    class Registered(type(pipeline("sd15"))):
        def __init_subclass__(cls, *, key, **options):
            super().__init_subclass__(**options)
            known.append(key)

    class Mine(Registered, key="mine"):
        pass

    pipe = Mine(**pipeline("sd15").components, requires_safety_checker=False)
    plain = draw(pipe)
    with guide(pipe, NEGATIVE):
        assert error(draw(pipe), plain) > 1e-4
    assert known == ["mine"]
    assert type(pipe) is Mine


def test_copies_within_the_block_leave_the_class_as_it_was():
    """copyreg writes a list of slots on the class that a copied object has."""
    pipe = pipeline("sd15")
    with guide(pipe, NEGATIVE):
        copy.copy(pipe)
        draw(pipe)
    assert type(pipe) is diffusers.StableDiffusionPipeline
