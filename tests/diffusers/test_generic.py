# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The generic processor: it equals the drop-in ones, and what it refuses."""

import dataclasses
import functools
import sys

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("diffusers")

from drawing import denoiser, draw
from every_model import TINY, pipeline
from stand_in import filled
from tiny import ROWS, error

from nag_kernels.diffusers import enable_guidance, guide
from nag_kernels.diffusers.attention import generic
from nag_kernels.diffusers.attention.generic import Layout
from nag_kernels.diffusers.models.registry import file_of, guided_layers

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

LAYOUTS = {
    "sd15": Layout("cross", ("AttnProcessor2_0",)),
    "pixart": Layout("cross", ("AttnProcessor2_0",), masks=True),
    "sana": Layout("cross", ("SanaAttnProcessor2_0",), masks=True),
    "ltx": Layout("cross", ("LTXVideoAttnProcessor",), masks=True),
    "wan": Layout("cross", ("WanAttnProcessor",)),
    "sd35": Layout("last", ("JointAttnProcessor2_0",)),
    "flux": Layout("first", ("FluxAttnProcessor",)),
    "SkyReelsV2Transformer3DModel": Layout("cross", ("SkyReelsV2AttnProcessor",)),
    "ChromaTransformer2DModel": Layout("first", ("FluxAttnProcessor",), masks=True),
    "HunyuanVideoTransformer3DModel": Layout("last", ("HunyuanVideoAttnProcessor2_0",), masks=True),
    "ZImageTransformer2DModel": Layout("last", ("ZSingleStreamAttnProcessor",), masks=True),
}


@pytest.mark.parametrize("rule", ["nag", "nasa", "vsf"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_both_routes_are_equal(kind, rule, monkeypatch):
    if kind in TINY:
        pipe = filled(TINY[kind], masked=TINY[kind].seen is not None)
        run, negative, name = functools.partial(pipe, pipe.prompt), "negative", kind
    else:
        pipe = pipeline(kind)
        run, negative = functools.partial(draw, pipe, guidance_scale=3.0), "a large blue dog on grass"
        name = type(denoiser(pipe)).__name__
    settings = {"nag_scale": 3.0, "rule": rule} | ({"negative_logit_bias": -0.4} if rule == "vsf" else {})
    plain = run()
    with guide(pipe, negative, **settings):
        wanted = run()
    models = file_of(name).MODELS
    monkeypatch.setitem(models, name, dataclasses.replace(models[name], layout=LAYOUTS[kind], keeps_text=False))
    with guide(pipe, negative, **settings):
        got = run()
    assert error(got, wanted) < 1e-5
    assert error(got, plain) > 1e-4


def stock(call):
    """A processor with this `__call__`, as if of diffusers."""
    return type("CosmosAttnProcessor2_0", (), {"__call__": call, "__module__": "diffusers.models"})()


def calls_something_else(self, attn, hidden_states, encoder_hidden_states=None, **_):
    return torch.softmax(hidden_states @ encoder_hidden_states.mT, dim=-1) @ encoder_hidden_states


def closing_over(x):
    return lambda self, attn, *call, **options: F.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(("processor", "message"), [
    (stock(calls_something_else), "does not call dispatch_attention_fn or scaled_dot_product_attention itself"),
    (stock(closing_over(3)), "closes over other variables"),
    (stock(torch.nn.Identity()), "is not a function of its own"),
    (type("CosmosAttnProcessor2_0", (), {})(), "which is not known"),  # of another library
])  # fmt: skip
def test_processors_that_cannot_be_rebound(processor, message):
    pipe = filled(TINY["CosmosTransformer3DModel"])
    guided_layers(pipe.transformer)[0].processor = processor
    with pytest.raises(ValueError, match=rf"CosmosAttnProcessor2_0, (whose __call__ )?{message}.*needs Cosmos"):
        enable_guidance(pipe, "negative")


@pytest.mark.parametrize(("call", "message"), [
    ({"is_causal": True}, "not causal"),
    ({"dropout_p": 0.5}, "without dropout"),
    ({"scale": 0.3}, r"scaled by 12 \*\* -0.5, got 0.3"),
    ({"attn_mask": torch.zeros(1, 1, 1, 12)}, "must have no mask"),
    ({"key": torch.zeros(ROWS, 13, 2, 12), "value": torch.zeros(ROWS, 13, 2, 12)}, "must have 12 keys, got 13"),
])  # fmt: skip
def test_calls_that_are_not_as_assumed(call, message, monkeypatch):
    """By a processor whose code has changed under its name."""
    pipe = filled(TINY["CosmosTransformer3DModel"])
    module = sys.modules[type(pipe.transformer).__module__]
    query, text = torch.zeros(ROWS, 16, 2, 12), torch.zeros(ROWS, 12, 2, 12)
    changed = {"query": query, "key": text, "value": text} | call
    source = "def call(self, attn, x, encoder_hidden_states=None, **_): return dispatch_attention_fn(**CHANGED)"
    scope = {"dispatch_attention_fn": lambda **_: torch.zeros(ROWS, 16, 24), "CHANGED": changed}  # of self-attention
    exec(source, scope)
    monkeypatch.setattr(module.CosmosAttnProcessor2_0, "__call__", scope["call"])
    generic._generic_class.cache_clear()
    try:
        with pytest.raises(ValueError, match=message), guide(pipe, "negative"):
            pipe(pipe.prompt)
    finally:
        generic._generic_class.cache_clear()


def test_attention_that_happens_twice():
    pipe = filled(TINY["CosmosTransformer3DModel"])
    site = guided_layers(pipe.transformer)[0]
    plain = site.forward
    site.forward = lambda *call, **options: plain(*call, **options) + plain(*call, **options)
    with pytest.raises(RuntimeError, match="1 saw it more often"), guide(pipe, "negative"):
        pipe(pipe.prompt)
