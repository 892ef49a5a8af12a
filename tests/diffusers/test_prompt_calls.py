# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Own loops: a step calls the denoiser for the prompt, for a second prompt and for the unconditional branch in any order. The
prompts are guided, against two runs of the untouched model, and the unconditional branch is left as it is; or the first step
raises."""

import contextlib
import itertools

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("diffusers")

from diffusers import HeunDiscreteScheduler
from drawing import draw
from every_model import TINY, pipeline
from oracles import output, two_runs_oracle
from stand_in import Pipeline, filled, firm
from tiny import TEXT, error, texts
from torch.utils._python_dispatch import TorchDispatchMode

from nag_kernels.diffusers import guide
from nag_kernels.diffusers.models.registry import guided_layers, spec_of
from nag_kernels.diffusers.prompt_calls import PromptCalls

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

PROMPT, SECOND, UNCONDITIONAL = "prompt", "second prompt", "unconditional"
ORDERS = list(itertools.permutations([PROMPT, SECOND, UNCONDITIONAL]))
# The second prompt is not given with the negative, so there the first call is the unconditional one.
REFUSED = (SECOND, UNCONDITIONAL, PROMPT)
SAMPLE = ["UNetMotionModel", "ChromaTransformer2DModel", "MochiTransformer3DModel", "WanTransformer3DModel from an image",
          "OmniGenTransformer2DModel"]  # fmt: skip


def mapped(function, x):
    """The function of all tensors in a text or in arguments."""
    if isinstance(x, dict):
        return {name: mapped(function, y) for name, y in x.items()}
    return function(x) if isinstance(x, torch.Tensor) else x


class OwnLoop(Pipeline):
    """Two steps; gives what each call has given."""

    order = (PROMPT,)
    label = staticmethod(lambda model, name: contextlib.nullcontext())

    def __call__(self, prompt, prompt_2=None, unconditional="unconditional"):
        of = {PROMPT: prompt[0], SECOND: prompt_2, UNCONDITIONAL: unconditional}
        outputs = []
        for arguments in self.steps:
            for name in self.order:
                if of[name] is not None:
                    with self.label(self.transformer, name):
                        outputs.append(output(self.transformer, arguments | self.text_of(of[name])))
        return outputs


def own_loop(kind, order):
    tiny = TINY[kind]
    pipe = filled(tiny)
    pipe.__class__, pipe.order = OwnLoop, order
    for name, seed in (("second", 1), ("unconditional", 2)):
        torch.manual_seed(seed)
        pipe.texts[name] = tiny.text(
            torch.randn_like(texts(tiny.rows, *tiny.lengths, TEXT, torch.float32)[seed - 1]), None
        )
    timestep = spec_of(pipe.transformer).timestep
    later = {timestep: pipe.arguments[timestep] * 0.5} if timestep in pipe.arguments else {}
    pipe.steps = [pipe.arguments, pipe.arguments | later] if later else [pipe.arguments]
    return pipe


def wanted_of(pipe, kind):
    tiny, model, found = TINY[kind], pipe.transformer, []
    for arguments in pipe.steps:
        for name in pipe.order:
            if name == UNCONDITIONAL:
                found.append(output(model, arguments | pipe.texts[name]))
            else:
                text = pipe.texts["second" if name == SECOND else "positive"]
                two = (text, pipe.texts["negative"], *firm(tiny).values())
                found.append(two_runs_oracle(tiny, model, guided_layers(model), arguments, *two)[0])
    return found


def check(pipe, kind):
    wanted, plain = wanted_of(pipe, kind), pipe(pipe.prompt, "second")
    with guide(pipe, "negative", **firm(TINY[kind])):
        got = pipe(pipe.prompt, "second")
    names = list(pipe.order) * len(pipe.steps)
    for name, *outs in zip(names, got, wanted, plain, strict=True):
        assert error(*outs[:2]) < 1e-5, name
        assert torch.equal(outs[0], outs[2]) if name == UNCONDITIONAL else error(outs[0], outs[2]) > 1e-3, name
    assert all(torch.equal(*pair) for pair in zip(pipe(pipe.prompt, "second"), plain, strict=True))


@pytest.mark.parametrize("kind", TINY)
def test_classifier_free_guidance_in_calls_of_its_own(kind):
    """In both orders, which take turns over the models."""
    order = [(UNCONDITIONAL, PROMPT), (PROMPT, UNCONDITIONAL)][list(TINY).index(kind) % 2]
    check(own_loop(kind, order), kind)


@pytest.mark.parametrize("order", ORDERS, ids=", ".join)
@pytest.mark.parametrize("kind", SAMPLE)
def test_a_second_prompt(kind, order):
    pipe = own_loop(kind, order)
    if order == REFUSED:
        with pytest.raises(RuntimeError, match="cannot be told; give the calls a context"), guide(pipe, "negative"):
            pipe(pipe.prompt, "second")
    else:
        check(pipe, kind)


@pytest.mark.parametrize("rule", ["nag", "nasa"])
@pytest.mark.parametrize("order", [(UNCONDITIONAL, PROMPT), (PROMPT, UNCONDITIONAL), (PROMPT,)], ids=", ".join)
def test_the_prompt_as_its_own_negative(order, rule):
    kind = "ChromaTransformer2DModel"
    pipe = own_loop(kind, order)
    pipe.texts["negative"], pipe.texts["not negative"] = pipe.texts["positive"], pipe.texts["second"]
    plain = pipe(pipe.prompt)
    with guide(pipe, "negative", rule=rule, nag_scale=0.5 if rule == "nasa" else 8.0):
        got = pipe(pipe.prompt)
    for name, one, two in zip(list(order) * 2, got, plain, strict=True):
        same = 0 if name == UNCONDITIONAL else 2e-5
        assert error(one, two) <= same if rule == "nag" or name == UNCONDITIONAL else error(one, two) > 1e-3


def test_an_unconditional_text_with_the_values_of_the_prompt():
    pipe = own_loop("ChromaTransformer2DModel", (UNCONDITIONAL, PROMPT))
    pipe.texts["unconditional"] = mapped(torch.clone, pipe.texts["positive"])
    check(pipe, "ChromaTransformer2DModel")


def test_a_pipeline_says_which_call_is_which():
    """Also where their texts would not tell."""
    kind = "WanTransformer3DModel from an image"
    pipe = own_loop(kind, REFUSED)
    names = {PROMPT: "cond", SECOND: "cond", UNCONDITIONAL: "uncond"}
    pipe.label = lambda model, name: model.cache_context(names[name])
    if hasattr(pipe.transformer, "cache_context"):
        with pytest.raises(RuntimeError, match="there is no such call"), guide(pipe, "negative"):
            pipe(pipe.prompt, "second")
        pipe.order = (UNCONDITIONAL, SECOND, PROMPT)
        check(pipe, kind)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("kind", ["sd15", "sd3", "flux", "wan"])
def test_telling_calls_apart_waits_for_no_device_after_the_first_step(kind, guidance_scale, monkeypatch):
    """No value of a tensor is read."""
    waits, plain = [], PromptCalls.kind

    class Waits(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default):
                waits[-1] += 1
            return function(*args, **kwargs or {})

    def kind_of(self, *call):
        waits.append(0)
        with Waits():
            return plain(self, *call)

    monkeypatch.setattr(PromptCalls, "kind", kind_of)
    pipe = pipeline(kind)
    with guide(pipe, "a house"):
        draw(pipe, guidance_scale=guidance_scale)
    steps = len(waits) // 4
    assert len(waits) == 4 * steps
    assert sum(waits[2 * steps :]) == 0
    assert sum(waits[: 2 * steps]) > 0  # in the first, and to notice its end


class LateOne(OwnLoop):
    """Classifier-free guidance begins in the second step."""

    def __call__(self, prompt, prompt_2=None):
        outputs = [output(self.transformer, self.steps[0] | self.text_of(prompt[0]))]
        for name in self.order:
            text = prompt[0] if name == PROMPT else "unconditional"
            outputs.append(output(self.transformer, self.steps[1] | self.text_of(text)))
        return outputs


@pytest.mark.parametrize("order", [(UNCONDITIONAL, PROMPT), (PROMPT, UNCONDITIONAL)], ids=", ".join)
def test_classifier_free_guidance_that_begins_later_raises(order):
    pipe = own_loop("ChromaTransformer2DModel", order)
    pipe.__class__ = LateOne
    with pytest.raises(RuntimeError, match="cannot be told"), guide(pipe, "negative"):
        pipe(pipe.prompt)


class Padded(OwnLoop):
    """The unconditional text is another one beside each prompt."""

    def __call__(self, prompt, prompt_2=None):
        self.texts["unconditional"] = mapped(lambda x: 2 * x, self.text_of(prompt[0]))
        return super().__call__(prompt)


@pytest.mark.parametrize("order", [(UNCONDITIONAL, PROMPT), (PROMPT, UNCONDITIONAL)], ids=", ".join)
def test_an_unconditional_text_that_changes_with_the_prompt_raises(order):
    pipe = own_loop("ChromaTransformer2DModel", order)
    pipe.__class__ = Padded
    with pytest.raises(RuntimeError, match="cannot be told"), guide(pipe, "negative"):
        pipe(pipe.prompt)


@pytest.mark.parametrize("order", [(UNCONDITIONAL, PROMPT), (PROMPT, UNCONDITIONAL)], ids=", ".join)
@pytest.mark.parametrize("kind", ["UNet2DConditionModel of Kolors", "MochiTransformer3DModel"])
def test_classifier_free_guidance_in_one_batch_in_any_order(kind, order):
    pipe, rows = own_loop(kind, (PROMPT,)), TINY[kind].rows
    longest = max(TINY[kind].lengths)
    for name, text in pipe.texts.items():  # to one length
        pipe.texts[name] = mapped(lambda x: F.pad(x, (0, 0) * (x.ndim - 2) + (0, longest - x.shape[1])), text)
    wanted = wanted_of(pipe, kind)[0]
    plain = output(pipe.transformer, pipe.arguments | pipe.texts["unconditional"])
    doubled = mapped(lambda x: torch.cat([x, x]) if x.ndim and len(x) == rows else x, pipe.arguments)

    def batch(text):
        halves = [{PROMPT: pipe.text_of(text), UNCONDITIONAL: pipe.texts["unconditional"]}[half] for half in order]
        return {name: torch.cat([half[name] for half in halves]) if isinstance(x, torch.Tensor) else x
                for name, x in halves[0].items()}  # fmt: skip

    class Batch(Pipeline):
        def __call__(self, prompt):
            return output(self.transformer, doubled | batch(prompt[0]))

    pipe.__class__ = Batch
    with guide(pipe, "negative", **firm(TINY[kind])):
        halves = dict(zip(order, pipe(pipe.prompt).chunk(2), strict=True))
    assert error(halves[PROMPT], wanted) < 1e-5
    assert error(halves[UNCONDITIONAL], plain) < 1e-5


@pytest.mark.parametrize("kind", ["ChromaTransformer2DModel", "MochiTransformer3DModel"])
def test_the_unconditional_text_as_the_negative(kind):
    """In calls of their own, the prompt first and without contexts."""
    pipe = own_loop(kind, (PROMPT, UNCONDITIONAL))
    pipe.texts["negative"] = pipe.texts["unconditional"]
    pipe.texts["not negative"] = pipe.texts["second"]
    check(pipe, kind)


def test_a_text_that_a_callback_changes_where_timesteps_repeat():
    pipe = pipeline("sd15")
    pipe.scheduler = HeunDiscreteScheduler()

    def change(pipe, step, timestep, tensors):
        tensors["prompt_embeds"] = tensors["prompt_embeds"] * 1.01
        return tensors

    how = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    for scale in (1.0, 3.0):
        plain = draw(pipe, guidance_scale=scale, **how)
        with guide(pipe, "a house", nag_scale=1 + 1e-6, nag_alpha=1.0, nag_tau=100.0):
            assert error(draw(pipe, guidance_scale=scale, **how), plain) < 5e-5
        with guide(pipe, "a house"):
            assert error(draw(pipe, guidance_scale=scale, **how), plain) > 1e-3


@pytest.mark.parametrize("order", [(UNCONDITIONAL, PROMPT), (PROMPT, UNCONDITIONAL)], ids=", ".join)
def test_the_halves_of_a_batch_where_texts_have_lengths_of_their_own(order):
    """The recording cannot be compared, so a second one shows which half changes with the prompt."""
    kind = "UNet2DConditionModel of Kolors"
    pipe, rows = own_loop(kind, (PROMPT,)), TINY[kind].rows
    doubled = mapped(lambda x: torch.cat([x, x]) if x.ndim and len(x) == rows else x, pipe.arguments)

    def batch(text):
        halves = [{PROMPT: pipe.text_of(text), UNCONDITIONAL: pipe.texts["unconditional"]}[half] for half in order]
        longest = max(half["encoder_hidden_states"].shape[1] for half in halves)
        whole = [
            F.pad(x["encoder_hidden_states"], (0, 0, 0, longest - x["encoder_hidden_states"].shape[1])) for x in halves
        ]
        return halves[0] | {"encoder_hidden_states": torch.cat(whole)}

    class Batch(Pipeline):
        def __call__(self, prompt):
            return output(self.transformer, doubled | batch(prompt[0]))

    pipe.__class__ = Batch
    pipe.texts["unconditional"] = mapped(lambda x: x[:, :3] if x.ndim > 2 else x, pipe.texts["unconditional"])
    pipe.texts["not negative"] = mapped(lambda x: x * 2, pipe.texts["negative"])
    plain = dict(zip(order, pipe(pipe.prompt).chunk(2), strict=True))
    with guide(pipe, "negative", **firm(TINY[kind])):
        halves = dict(zip(order, pipe(pipe.prompt).chunk(2), strict=True))
    assert error(halves[UNCONDITIONAL], plain[UNCONDITIONAL]) < 1e-5
    assert error(halves[PROMPT], plain[PROMPT]) > 1e-3
