# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What others change while a guided call draws: the next step sees weights and texts; another denoiser is refused."""

import pytest
import torch

pytest.importorskip("diffusers")

from drawing import denoiser, draw
from every_model import pipeline
from pipeline_parts import NEGATIVE, embeds
from test_guide_texts import calls_of_to_k
from tiny import error

from nag_kernels.diffusers import guide, guided
from nag_kernels.diffusers import run as guided_run
from nag_kernels.diffusers.attention.kept import KeptTensor
from nag_kernels.diffusers.models.registry import guided_layers

pytestmark = pytest.mark.usefixtures("one_thread")

FIRM = {"nag_scale": 8.0, "nag_tau": 3.0, "nag_alpha": 0.5}


def drawn(pipe, keeps=True, **call):
    """Guided; keeps: False projects the texts anew in every step, which is what must come out."""
    with pytest.MonkeyPatch.context() as patch:
        if not keeps:
            patch.setattr(guided_run.GuidedRun, "_keep_texts", lambda self, *texts: self.shared.change(kept=None))
        with guide(pipe, NEGATIVE, **FIRM):
            return draw(pipe, **call)


def with_lora(kind):
    pipe = pipeline(kind)
    torch.manual_seed(0)
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["to_k", "to_v"], init_lora_weights=False)
    denoiser(pipe).add_adapter(config, "a")
    return pipe


def changes(pipe, change):
    """Calls change(step) at the end of each step, and no callback of the pipeline knows: from its scheduler."""
    plain, steps = pipe.scheduler.step, []

    def step(*call, **more):
        steps.append(None)
        change((len(steps) - 1) % 4)
        return plain(*call, **more)

    pipe.scheduler.step = step


def negate(layer, step):
    with torch.no_grad():
        layer.to_k.weight.mul_(-1.0)


def negate_data(layer, step):
    layer.to_v.weight.data = -layer.to_v.weight.data


def another_weight(layer, step):
    layer.to_k.weight = torch.nn.Parameter(-layer.to_k.weight)


def another_weight_in_the_place_of_the_freed_one(layer, step):
    new, negated = torch.empty(0), -layer.to_v.weight.detach()
    layer.to_v.weight = None
    layer.to_v.weight = torch.nn.Parameter(new.resize_(negated.shape).copy_(negated))


@pytest.mark.parametrize("change", [negate, negate_data, another_weight, another_weight_in_the_place_of_the_freed_one])
@pytest.mark.parametrize("kind", ["sd15", "pixart", "sana"])
def test_weights(kind, change):
    pipe = pipeline(kind)
    unchanged = drawn(pipe)
    layer = guided_layers(denoiser(pipe))[0]
    changes(pipe, lambda step: change(layer, step))
    got = drawn(pipe)
    assert torch.equal(got, drawn(pipe, keeps=False))
    assert error(got, unchanged) > 1e-4


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sana"])
def test_the_share_of_a_lora(kind):
    pipe = with_lora(kind)
    model = denoiser(pipe)
    changes(pipe, lambda step: model.set_adapters(["a"], [1.0 if step == 3 else 0.7 - 0.3 * step]))
    got = drawn(pipe)
    assert torch.equal(got, drawn(pipe, keeps=False))
    pipe.scheduler.step = type(pipe.scheduler).step.__get__(pipe.scheduler)
    model.set_adapters(["a"], [1.0])
    assert error(got, drawn(pipe)) > 1e-4
    changes(pipe, lambda step: model.disable_adapters() if step < 3 else model.enable_adapters())
    assert torch.equal(drawn(pipe), drawn(pipe, keeps=False))


def test_a_hook_that_depends_on_the_step():
    pipe, steps = pipeline("pixart"), []
    changes(pipe, steps.append)
    layer = guided_layers(denoiser(pipe))[0]
    layer.to_k.register_forward_hook(lambda module, args, output: output * (1 + len(steps) % 4))
    assert torch.equal(drawn(pipe), drawn(pipe, keeps=False))


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Texts are on the meta device, as far as `kept` can see: their numbers are not looked at."""
    plain = KeptTensor.__init__

    def without_values(self, given):
        plain(self, given)
        self.values = None

    monkeypatch.setattr(KeptTensor, "__init__", without_values)


def anneal(pipe, where):
    """Weakens and turns the text in every step, before the denoiser or within it. Returns what begins a run anew."""
    model, steps = denoiser(pipe), []

    def weaker(module, args, kwargs):
        steps.append(None)
        return args, kwargs | {"encoder_hidden_states": kwargs["encoder_hidden_states"] * (1 - 0.7 * len(steps))}

    if where == "denoiser":
        model.register_forward_pre_hook(weaker, with_kwargs=True)
    elif where == "up block":
        model.up_blocks[0].register_forward_pre_hook(weaker, with_kwargs=True)
    else:
        model.caption_projection.register_forward_hook(
            lambda module, args, output: output * (1 - 0.7 * (steps.append(None) or len(steps)))
        )
    return steps.clear


@pytest.mark.parametrize(("kind", "where"), [
    ("sd15", "denoiser"), ("sdxl", "up block"), ("pixart", "denoiser"), ("pixart", "projection"), ("sana", "projection"),
])  # fmt: skip
@pytest.mark.parametrize("on_gpu", [False, True], ids=["cpu", "as on a gpu"])
def test_a_text_that_a_hook_changes_on_its_way_to_the_layers(kind, where, on_gpu, request):
    if on_gpu:
        request.getfixturevalue("as_on_a_gpu")
    pipe = pipeline(kind)
    unchanged = drawn(pipe)
    begin = anneal(pipe, where)
    got = drawn(pipe)
    begin()
    assert torch.equal(got, drawn(pipe, keeps=False))
    assert error(got, unchanged) > 1e-4


@pytest.mark.parametrize("kind", ["pixart", "sana"])
def test_weights_of_the_projection_before_the_layers(kind):
    pipe = pipeline(kind)
    unchanged = drawn(pipe)
    weight = denoiser(pipe).caption_projection.linear_2.weight

    def change(step):
        with torch.no_grad():
            weight.mul_(-1.0)

    changes(pipe, change)
    got = drawn(pipe)
    assert torch.equal(got, drawn(pipe, keeps=False))
    assert error(got, unchanged) > 1e-4


def test_a_hook_that_writes_into_the_packed_text():
    pipe, steps = pipeline("sd15"), []

    def halve(module, args, kwargs):
        steps.append(kwargs["encoder_hidden_states"].mul_(0.5).clone())

    denoiser(pipe).register_forward_pre_hook(halve, with_kwargs=True)
    got = drawn(pipe)
    assert torch.equal(got, drawn(pipe, keeps=False))
    assert not torch.equal(got, drawn(pipeline("sd15")))


def test_a_hook_on_all_modules():
    pipe, steps = pipeline("sd15"), []
    changes(pipe, steps.append)
    layer = guided_layers(denoiser(pipe))[0]

    def stronger(module, args, output):
        return output * (1 + len(steps) % 4) if module is layer.to_k else None

    with torch.nn.modules.module.register_module_forward_hook(stronger):
        assert torch.equal(drawn(pipe), drawn(pipe, keeps=False))


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_text_that_stays_is_projected_once_where_its_numbers_are_not_looked_at(kind, as_on_a_gpu):
    pipe = pipeline(kind)
    calls = calls_of_to_k(pipe)
    drawn(pipe)
    assert len(calls) == 1


def test_with_a_lora_that_stays_the_texts_are_projected_once():
    pipe = with_lora("sd15")
    calls = calls_of_to_k(pipe)
    type(guided_layers(denoiser(pipe))[0].to_k).__module__ = "peft.tuners.lora.layer"
    with guide(pipe, NEGATIVE, **FIRM):
        draw(pipe)
    assert len(calls) == 1


@pytest.mark.parametrize("how", ["in place", "data", "numpy", "inference mode"])
def test_a_text_in_place(how):
    """As a pipeline of one's own may do."""
    pipe = pipeline("pixart")
    unchanged = drawn(pipe)
    plain, texts = guided_run.GuidedRun._call, []

    def noticed(self, *call):
        texts[:] = [call[-1]["encoder_hidden_states"]]
        return plain(self, *call)

    def change(step):
        if how == "numpy":
            texts[0].numpy()[:] *= -0.5
        elif how == "data":
            texts[0].data.mul_(-0.5)
        else:
            texts[0].mul_(-0.5)

    changes(pipe, change)
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode(how == "inference mode"):
        patch.setattr(guided_run.GuidedRun, "_call", noticed)
        got = drawn(pipe)
        assert torch.equal(got, drawn(pipe, keeps=False))
    assert error(got, unchanged) > 1e-4


@pytest.mark.parametrize("kind", ["sd15", "flux", "sd3", "wan"])
@pytest.mark.parametrize("how", ["another", "compiled", "torch.compile"])
def test_another_denoiser_during_the_call(kind, how):
    pipe, other = pipeline(kind), denoiser(pipeline(kind))
    name = "transformer" if hasattr(pipe, "transformer") else "unet"
    before = draw(pipe)

    def change(pipe, step, timestep, tensors):
        model = getattr(pipe, name)
        if how == "compiled":
            model.compile(backend="eager")
        elif how == "another":
            setattr(pipe, name, other)
        else:
            setattr(pipe, name, torch.compile(model, backend="eager"))
        return {}

    model = denoiser(pipe)
    steered = guided(pipe, NEGATIVE, **FIRM)
    what = "compiled, or wrapped, its" if how == "compiled" else "got another"
    with pytest.raises(RuntimeError, match=rf"{what} {type(model).__name__} during a guided call"):
        draw(pipe, by=steered, callback_on_step_end=change)
    setattr(pipe, name, model)
    model._compiled_call_impl = None
    assert torch.equal(draw(pipe), before)
    assert error(draw(pipe, by=steered), before) > 1e-4


def test_another_denoiser_by_no_callback():
    pipe, other = pipeline("sd15"), denoiser(pipeline("sd15"))
    changes(pipe, lambda step: setattr(pipe, "unet", other))
    with guide(pipe, NEGATIVE, **FIRM), pytest.raises(RuntimeError, match="got another UNet2DConditionModel during"):
        draw(pipe)


def test_a_denoiser_that_is_dropped_after_its_last_step():
    pipe = pipeline("sd15")
    wanted = drawn(pipe)

    def drop(pipe, step, timestep, tensors):
        if step == 3:
            pipe.unet = None
        return {}

    with guide(pipe, NEGATIVE, **FIRM):
        assert torch.equal(draw(pipe, callback_on_step_end=drop), wanted)


def test_a_text_that_numpy_writes_into():
    """Which changes no version of the tensor."""
    unet = pipeline("sd15").unet
    prompt, empty, negative = (embeds(seed, 1, 7, 32) for seed in (1, 2, 3))
    sample, buffer = embeds(4, 1, 4, 8, 8), torch.zeros(1, 7, 32)
    outputs = []
    for text in (buffer, None):
        with guide(unet, {"encoder_hidden_states": negative}, unconditional={"encoder_hidden_states": empty}, **FIRM):
            for one in (prompt, empty, prompt):
                if text is not None:
                    buffer.numpy()[...] = one.numpy()
                outputs.append(unet(sample, 500, one if text is None else buffer).sample)
    for got, wanted in zip(outputs[:3], outputs[3:], strict=True):
        assert torch.equal(got, wanted)
    assert torch.equal(outputs[1], unet(sample, 500, empty).sample)
