# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The dual forward: models whose prompts cannot be packed run twice, in lockstep."""

import contextvars
import dataclasses
import threading

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("diffusers")

import diffusers
from every_model import TINY
from stand_in import filled, state
from tiny import TEXT, error, noise, seeded, texts

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


def ideogram():
    """A model of the dual forward, run(what, x), which calls it guided with x in the place of one of three tensors, and these."""
    if not hasattr(diffusers, "Ideogram4Transformer2DModel"):
        pytest.skip("this version of diffusers does not have the model")
    tiny = TINY["Ideogram4Transformer2DModel"]
    model, (positive, negative) = seeded(tiny.build).double(), texts(1, *tiny.lengths, TEXT, torch.float64)
    call, own = tiny.arguments(1, torch.float64) | tiny.text(positive, None), tiny.text(negative, None)
    given = {
        "image": call["hidden_states"],
        "prompt": call["encoder_hidden_states"],
        "negative": own["encoder_hidden_states"],
    }

    def run(what, x, guided=True):
        changed = given | {what: x}
        arguments = call | {"hidden_states": changed["image"], "encoder_hidden_states": changed["prompt"]}
        if not guided:
            return model(**arguments, return_dict=False)[0]
        with guide(model, own | {"encoder_hidden_states": changed["negative"]}, nag_scale=6.0):
            return model(**arguments, return_dict=False)[0]

    return model, run, given


def test_two_runs_have_what_the_caller_set_up_for_its_thread():
    model, run, given = ideogram()
    variable, seen, kept, device = contextvars.ContextVar("variable", default=0), [], set(), torch.device("cpu", 0)
    layer = guided_layers(model)[0].to_q
    layer.register_forward_pre_hook(lambda *_: seen.append((variable.get(), torch.get_default_device())))
    variable.set(1)

    def keep(x):
        kept.add(threading.get_ident())
        return x

    with device, torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        run("image", given["image"])
    assert seen == [(1, device)] * 2
    assert len(kept) == 2


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("what", ["image", "prompt", "negative"])
def test_transforms_of_torch_func_reach_both_runs(what):
    _, run, given = ideogram()
    several = torch.stack([given[what], given[what].flip(-1), given[what] / 2])
    wanted = torch.stack([run(what, x) for x in several])
    assert error(torch.func.vmap(lambda x: run(what, x))(several), wanted) < 1e-12
    gradients = []
    for x in several:
        x = x.clone().requires_grad_()
        with torch.enable_grad():
            gradients += torch.autograd.grad(run(what, x).square().sum(), x)

    def gradient(x):
        return torch.func.grad(lambda x: run(what, x).square().sum())(x)

    with torch.enable_grad():
        assert error(gradient(given[what]), gradients[0]) < 1e-12
        assert error(torch.func.vmap(gradient)(several), torch.stack(gradients)) < 1e-12
        jacobian = torch.func.jacrev(lambda x: run(what, x).square().sum((0, 1))[:2])(given[what])
        weight = torch.tensor([1.0, -2.0], dtype=torch.float64)
        _, backward = torch.func.vjp(lambda x: run(what, x).square().sum((0, 1))[:2], given[what])
    assert error(torch.einsum("c,c...->...", weight, jacobian), backward(weight)[0]) < 1e-6  # some of it is in float32


@pytest.mark.parametrize("what", ["image", "prompt", "negative"])
def test_forward_derivatives_reach_both_runs(what):
    _, run, given = ideogram()
    x, along = given[what], noise(*given[what].shape, seed=9, dtype=torch.float64)

    def few(x):
        return run(what, x).square().sum((0, 1))[:2]

    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        value, pushed = torch.func.jvp(few, (x,), (along,))
        jacobian = torch.func.jacrev(few)(x)
        assert error(torch.func.jacfwd(few)(x), jacobian) < 1e-6  # some of it is in float32
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(few(forward_ad.make_dual(x, along)))
    assert error(value, few(x)) < 1e-12
    for tangent in (pushed, dual.tangent):
        assert error(tangent, torch.einsum("c...,...->c", jacobian, along)) < 1e-6
        assert tangent.norm() > 0


def test_modes_see_the_operations_of_both_runs():
    _, run, given = ideogram()
    counts = []
    for guided in (False, True):
        with FlopCounterMode(display=False) as count:
            run("image", given["image"], guided)
        counts.append(count.get_total_flops())
    assert (
        1.5 * counts[0] < counts[1] < 2 * counts[0]
    )  # the second run ends with the last layer that the first needs it for

    class Weaker(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            out = function(*args, **kwargs or {})
            return out * 0.9 if function is torch.nn.functional.linear else out

    with Weaker():
        got = run("image", given["image"])
    with torch.nn.modules.module.register_module_forward_hook(
        lambda module, args, out: out * 0.9 if isinstance(module, torch.nn.Linear) else None
    ):
        wanted = run("image", given["image"])
    assert error(got, wanted) < 1e-12
    assert error(got, run("image", given["image"])) > 1e-3


@pytest.mark.parametrize(("module", "name"), [
    (torch._C._functorch, "peek_interpreter_stack"), (torch.overrides, "_push_mode"),
])  # fmt: skip
def test_a_torch_that_does_not_tell_what_the_second_run_needs(module, name, monkeypatch):
    _, run, given = ideogram()
    monkeypatch.delattr(module, name)
    with pytest.raises(RuntimeError, match=f"does not tell which modes .*{name}.*: take an earlier torch"):
        run("image", given["image"])


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
