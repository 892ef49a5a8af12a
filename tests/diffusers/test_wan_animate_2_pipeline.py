# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Wan-Animate 2's modular pipelines: two segments, each with a call of the denoiser that reads another video and its own text."""

import copy

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers

if not hasattr(diffusers, "WanAnimate2ModularPipeline"):
    pytest.skip("this diffusers has no Wan-Animate 2", allow_module_level=True)

from every_model import TINY
from modular_tiny import NEGATIVE, PROMPT, STEPS, modular
from oracles import two_runs_oracle
from stand_in import filled
from tiny import error, noise, seeded
from torch._dynamo.testing import CompileCounterWithBackend

from nag_kernels.diffusers import guide
from nag_kernels.diffusers.models.registry import guided_layers

pytestmark = [
    pytest.mark.usefixtures("no_grad", "one_thread"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
]

KIND = "WanAnimate2Transformer3DModel"
FIRM = {"nag_scale": 8.0, "nag_tau": 1.25, "nag_alpha": 0.5}
SEGMENTS = 2


def calls_of(pipe, **call):
    """Arguments, without the negative, and outputs of the denoiser's calls. Kept keys and values are those before the call."""
    found = []

    def before(model, args, kwargs):
        own = {name: copy.deepcopy(x) if name == "kv_cache" else x for name, x in kwargs.items()}
        found.append([own | {"hidden_states": args[0], "encoder_hidden_states": own["encoder_hidden_states"][:1]}])

    def after(model, inputs, output):
        found[-1].append(output[0][0])

    model = pipe.transformer
    hooks = [model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after)]
    pipe(**call, generator=torch.Generator().manual_seed(7))
    for hook in hooks:
        hook.remove()
    return found


def reads(call):
    return call[0]["kv_cache_mode"] == "extract"


@pytest.mark.parametrize("scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("name", ["WanAnimate2ModularPipeline", "WanAnimate2DistilledModularPipeline"])
def test_every_call_equals_two_runs(name, scale):
    pipe, call, negative = modular(name, scale)
    words = pipe.blocks.sub_blocks["text_encoder"]
    text = {"encoder_hidden_states": [words.texts[NEGATIVE]["prompt_embeds"][0]]}
    with guide(pipe, negative, **FIRM):
        guided = calls_of(pipe, **call)
    model, kinds = pipe.transformer, []
    for arguments, got in guided:
        plain = model(**copy.deepcopy(arguments)).sample[0]
        if arguments["kv_cache_mode"] == "extract" or arguments["is_uncondtion"]:
            kinds.append("plain")
            assert torch.equal(got, plain)
            continue
        kinds.append("guided")
        wanted, clipped = two_runs_oracle(TINY[KIND], model, guided_layers(model), arguments, {}, text, *FIRM.values())
        assert len(clipped) == len(guided_layers(model))
        assert error(got.flatten(), wanted.flatten()) < 1e-5
        assert error(got, plain) > 1e-3
    assert kinds == (["plain"] + (["guided"] + ["plain"] * (scale > 1)) * STEPS) * SEGMENTS


@pytest.mark.parametrize("beside", [PROMPT, NEGATIVE])
def test_the_call_that_reads_may_have_the_text_of_a_prompt(beside):
    pipe, call, negative = modular("WanAnimate2ModularPipeline")
    words = pipe._blocks.sub_blocks["text_encoder"]
    words.beside = {"prompt_ref_embeds": words.texts[beside]["prompt_embeds"].clone()}
    plain = calls_of(pipe, **call)
    with guide(pipe, negative, **FIRM):
        guided = calls_of(pipe, **call)
    assert [i for i, x in enumerate(guided) if reads(x)] == [0, STEPS + 1]
    assert torch.equal(guided[0][1], plain[0][1])  # that of the second segment comes after guided frames
    assert all(error(guided[i][1], plain[i][1]) > 1e-3 for i in range(1, STEPS + 1))


def test_the_negative_is_encoded_once():
    pipe, call, negative = modular("WanAnimate2ModularPipeline", 3.0)
    words, seen = pipe._blocks.sub_blocks["text_encoder"], []
    plain = words._of
    words._of = lambda text: seen.append(text) or plain(text)
    with guide(pipe, negative, **FIRM):
        pipe(**call)
    assert [x[0] if isinstance(x, list) else x for x in seen].count(NEGATIVE) == 1


def test_ready_made_text():
    pipe, call, negative = modular("WanAnimate2DistilledModularPipeline")
    with guide(pipe, negative, **FIRM):
        wanted = calls_of(pipe, **call)
    blocks = diffusers.WanAnimate2DistilledModularPipeline().blocks
    words = pipe._blocks.sub_blocks["text_encoder"]
    for unused in ("text_encoder", "decode"):
        blocks.sub_blocks.pop(unused)
    other = diffusers.WanAnimate2DistilledModularPipeline(blocks)
    other.update_components(**{name: x for name, x in pipe.components.items() if x is not None})
    text = {"prompt_ref_embeds": words.beside["prompt_ref_embeds"], **words.texts[PROMPT]}
    with guide(other, words.texts[NEGATIVE], **FIRM):
        got = calls_of(other, **{name: x for name, x in call.items() if "prompt" not in name}, **text)
    assert all(torch.equal(x[1], y[1]) for x, y in zip(got, wanted, strict=True))


@pytest.mark.parametrize(("window", "acts"), [({"start": 0.5}, [False, True]), ({"end": 0.5}, [True, False]),
                                              ({"nag_scale": [1.0, 8.0]}, [False, True])])  # fmt: skip
def test_a_window_holds_in_each_segment(window, acts):
    pipe, call, negative = modular("WanAnimate2DistilledModularPipeline")
    with guide(pipe, negative, **FIRM | window):
        guided = [x for x in calls_of(pipe, **call) if not reads(x)]
    found = [error(got, pipe.transformer(**arguments).sample[0]) > 1e-3 for arguments, got in guided]
    assert found == acts * SEGMENTS


@pytest.mark.slow
def test_compiled_blocks():
    """As the library advises for this model."""
    torch._dynamo.reset()
    pipe = filled(TINY[KIND])
    with guide(pipe, "negative", **FIRM):
        wanted = pipe(pipe.prompt)
    compiler = CompileCounterWithBackend("eager")
    pipe.transformer.compile_repeated_blocks(backend=compiler)
    counts = []
    for _ in range(2):
        with guide(pipe, "negative", **FIRM):
            assert error(pipe(pipe.prompt), wanted) < 1e-5
        counts.append(compiler.frame_count)
    assert 0 < counts[0] == counts[1]


def test_in_a_loop_of_ones_own_the_call_that_reads_is_plain():
    tiny = TINY[KIND]
    model, arguments = seeded(tiny.build), tiny.arguments(1, torch.float32)
    texts = [list(noise(1, n, 32, seed=n, dtype=torch.float32)) for n in (7, 5)]
    reading = arguments | {"kv_cache_mode": "extract", "offset_grid_sizes": torch.tensor([[2, 2, 4]])}
    first, second = (copy.deepcopy(arguments["kv_cache"]) for _ in range(2))
    plain = model(**reading | {"kv_cache": first}, encoder_hidden_states=texts[0]).sample[0]
    with guide(model, {"encoder_hidden_states": texts[1]}, **FIRM):
        got = model(**reading | {"kv_cache": second}, encoder_hidden_states=texts[0]).sample[0]
        guided = model(**arguments, encoder_hidden_states=texts[0]).sample[0]
    assert torch.equal(got, plain)
    for one, other in zip(first.layer_caches, second.layer_caches, strict=True):
        assert torch.equal(one.key, other.key)
    assert error(guided, model(**arguments, encoder_hidden_states=texts[0]).sample[0]) > 1e-3
