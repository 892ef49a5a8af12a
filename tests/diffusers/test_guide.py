# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`guide` on real pipelines with tiny random weights, against the same pipelines with a doubled batch and hooks."""

import contextlib
import threading

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback
from diffusers.models.attention_processor import AttnProcessor2_0
from drawing import ENCODED_AS_NEGATIVES, draw, draw_with_oracle, few_steps, negative_of
from every_model import FULL_PIPELINES, pipeline
from pipeline_parts import NEGATIVE
from tiny import error
from torch._dynamo.testing import CompileCounterWithBackend

from nag_kernels.diffusers import NAGFluxAttnProcessor2_0, guide
from nag_kernels.diffusers import run as guided_run
from nag_kernels.diffusers.models.registry import guided_layers

pytestmark = pytest.mark.usefixtures("one_thread")

FIRM = {"nag_scale": 8.0, "nag_tau": 3.0, "nag_alpha": 0.5}  # the clip fires on a part of the tokens
STEERING = {"scale": 8.0, "tau": 3.0, "alpha": 0.5}
KINDS = pytest.mark.parametrize("kind", FULL_PIPELINES)


# --- what it computes -------------------------------------------------------------------------------------------------

EACH = ["dogs", "a b c"]
BATCHES = {
    "one": ({}, NEGATIVE, NEGATIVE, 1),
    "three images": ({"num_images_per_prompt": 3}, NEGATIVE, NEGATIVE, 3),
    "two prompts": ({"prompt": ["a cat", "two red birds in a tree"]}, NEGATIVE, [NEGATIVE] * 2, 2),
    "two of each": ({"prompt": ["a cat", "two red birds"], "num_images_per_prompt": 2}, EACH, EACH, 4),
}  # fmt: skip


def in_turn(kind, batch):
    """Alone or with classifier-free guidance, so that each kind and each batch meets both."""
    turn = list(FULL_PIPELINES).index(kind) + list(BATCHES).index(batch)
    return {"guidance_scale": [1.0, 3.0][turn % 2], "num_inference_steps": few_steps(kind)}


@pytest.mark.parametrize("batch", BATCHES)
@KINDS
def test_guided_pipeline_equals_the_doubled_batch(kind, batch):
    pipe = pipeline(kind)
    options, negative, negative_prompts, images = BATCHES[batch]
    options = options | in_turn(kind, batch)
    plain = draw(pipe, **options)
    recorded = negative_of(pipe, negative_prompts, **options)
    tau = 6.0 if kind.startswith("sana") else 3.0  # SANA's features of the two texts lie further apart here
    wanted, clipped = draw_with_oracle(pipe, images, recorded, **STEERING | {"tau": tau},
                                       **options)  # fmt: skip
    assert any(0 < share < 1 for share in clipped), clipped
    with guide(pipe, negative, **FIRM | {"nag_tau": tau}):
        got = draw(pipe, **options)
    assert error(got, wanted) < 2e-5
    assert error(got, plain) > 1e-3


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
@KINDS
def test_the_prompt_as_its_own_negative_changes_nothing(kind, guidance_scale):
    pipe = pipeline(kind)
    options = {"guidance_scale": guidance_scale} | ENCODED_AS_NEGATIVES.get(type(pipe).__name__, {})
    plain = draw(pipe, **options)
    for scale, tau, alpha in ((8.0, 1.0, 1.0), (3.0, 2.5, 0.5)):
        with guide(pipe, "a small red cat", nag_scale=scale, nag_tau=tau, nag_alpha=alpha):
            assert error(draw(pipe, **options), plain) < 2e-5


@KINDS
def test_nasa(kind):
    pipe = pipeline(kind)
    recorded = negative_of(pipe, guidance_scale=3.0)
    wanted, _ = draw_with_oracle(pipe, 1, recorded, 0.25, None, None, rule="nasa",
                                 guidance_scale=3.0)  # fmt: skip
    with guide(pipe, NEGATIVE, nag_scale=0.25, rule="nasa"):
        assert error(draw(pipe, guidance_scale=3.0), wanted) < 2e-5


@pytest.mark.parametrize("batch", ["one", "two of each"])
@KINDS
def test_vsf(kind, batch):
    """Against the stock model on packed text with an attention of the test's own; unconditional rows stay plain."""
    pipe = pipeline(kind)
    options, negative, negative_prompts, images = BATCHES[batch]
    options = options | in_turn(kind, batch)
    plain, recorded = draw(pipe, **options), negative_of(pipe, negative_prompts, **options)
    wanted, _ = draw_with_oracle(pipe, images, recorded, 1.5, -0.4, None, rule="vsf", **options)
    with guide(pipe, negative, nag_scale=1.5, negative_logit_bias=-0.4, rule="vsf"):
        got = draw(pipe, **options)
    assert error(got, wanted) < 2e-5
    assert error(got, plain) > 1e-3


@pytest.mark.parametrize(("kind", "expected"), [("sd15", (3.0, 2.5, 0.375)), ("sdxl", (3.0, 2.5, 0.5)),
                                                ("pixart", (5.0, 2.5, 0.375)), ("sd3", (5.0, 2.5, 0.125)),
                                                ("sana", (5.0, 2.5, 0.375)), ("flux", (5.0, 2.5, 0.25)),
                                                ("wan", (5.0, 2.5, 0.25)), ("ltx", (5.0, 2.5, 0.25))])  # fmt: skip
def test_defaults_are_the_papers(kind, expected):
    pipe = pipeline(kind)
    with guide(pipe, NEGATIVE):
        got = draw(pipe)
    with guide(pipe, NEGATIVE, **dict(zip(FIRM, expected, strict=True))):
        assert torch.equal(draw(pipe), got)
    if kind in ("sd15", "pixart"):
        with guide(pipe, NEGATIVE, rule="nasa"):
            got = draw(pipe)
        with guide(pipe, NEGATIVE, nag_scale=0.5 if kind == "pixart" else 0.1, rule="nasa"):
            assert torch.equal(draw(pipe), got)


# --- steps ------------------------------------------------------------------------------------------------------------

WINDOWS = {(0.0, 0.5): [0, 1], (0.5, 1.0): [2, 3], (0.25, 0.75): [1, 2], (0.0, 0.01): [0], (0.0, 0.26): [0, 1]}


@pytest.mark.parametrize(("start", "end"), WINDOWS)
@pytest.mark.parametrize("kind", ["pixart", "sd3", "flux", "wan", "sana sprint"])
def test_start_and_end(kind, start, end):
    pipe = pipeline(kind)
    recorded = negative_of(pipe, guidance_scale=3.0)
    wanted, _ = draw_with_oracle(pipe, 1, recorded, **STEERING, guidance_scale=3.0,
                                 steps=WINDOWS[start, end])  # fmt: skip
    with guide(pipe, NEGATIVE, start=start, end=end, **FIRM):
        got = draw(pipe, guidance_scale=3.0)
    assert error(got, wanted) < 2e-5


def test_steps_outside_are_the_stock_model():
    pipe = pipeline("sd3")
    processors = []
    pipe.transformer.register_forward_hook(
        lambda model, args, output: processors.append(type(model.transformer_blocks[0].attn.processor).__name__)
    )
    steps = {}

    def keep(name):
        return lambda pipe, i, t, values: steps.setdefault(name, []).append(values["latents"].clone()) or values

    draw(pipe, callback_on_step_end=keep("plain"))
    with guide(pipe, NEGATIVE, start=0.5, **FIRM):
        draw(pipe, callback_on_step_end=keep("guided"))
    same = [torch.equal(a, b) for a, b in zip(*steps.values(), strict=True)]
    assert same == [True, True, False, False]
    stock, ours = "JointAttnProcessor2_0", "NAGJointAttnProcessor2_0"
    assert processors == [stock] * 4 + [stock] * 2 + [ours] * 2


def test_fractions_that_rounding_puts_beside_a_step():
    pipe, guided = pipeline("pixart"), []
    pipe.transformer.register_forward_hook(
        lambda model, args, output: guided.append("NAG" in type(model.transformer_blocks[0].attn2.processor).__name__)
    )
    assert 0.28 * 25 > 7
    assert 0.58 * 50 < 29
    for steps, start, end, wanted in (
        (25, 0.28, 1.0, range(7, 25)),
        (25, 0.0, 0.28, range(7)),
        (50, 0.58, 1.0, range(29, 50)),
    ):
        with guide(pipe, NEGATIVE, start=start, end=end):
            draw(pipe, num_inference_steps=steps)
        assert [i for i, x in enumerate(guided) if x] == list(wanted)
        guided.clear()


@pytest.mark.parametrize(("start", "end", "wanted"), [(0.0, 0.25, range(7)), (0.75, 1.0, range(21, 28))])
def test_timesteps_that_half_precision_makes_equal(start, end, wanted):
    """FLUX.1 hands on its timesteps rounded to the latents' type: between 512 and 1024 bfloat16 knows every fourth."""
    pipe = pipeline("flux").to(torch.bfloat16)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=25)
    guided, attn = [], pipe.transformer.transformer_blocks[0].attn
    attn.register_forward_hook(lambda layer, *_: guided.append(isinstance(layer.processor, NAGFluxAttnProcessor2_0)))
    with guide(pipe, NEGATIVE, start=start, end=end):
        draw(pipe, num_inference_steps=28)
    assert [step for step, yes in enumerate(guided) if yes] == list(wanted)


def test_a_pipeline_that_visits_more_often_than_it_has_timesteps():
    pipe = pipeline("sd3")
    pipe.__class__ = type("Twice", (type(pipe),), {"num_timesteps": 2})
    with (
        guide(pipe, NEGATIVE, end=0.5),
        pytest.raises(RuntimeError, match=r"more often than its scheduler has .*\(2\)"),
    ):
        draw(pipe)


@pytest.mark.parametrize("context", [True, False], ids=["by its context", "by its sample"])
def test_the_second_call_of_a_step_is_told_apart(context, monkeypatch):
    pipe = pipeline("flux")
    embeds = dict(zip(("prompt_embeds", "pooled_prompt_embeds"), pipe.encode_prompt("a cat", None), strict=False))
    if context:  # nothing but the context tells that the second call has no prompt
        unconditional = {f"negative_{name}": x for name, x in embeds.items()}
    else:
        unconditional = {f"negative_{name}": x.clone() for name, x in embeds.items()}
        monkeypatch.setattr(guided_run, "contexts_noticed", lambda *_: contextlib.nullcontext())
    texts = []
    pipe.transformer.register_forward_pre_hook(
        lambda model, args, kwargs: texts.append(kwargs["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    with guide(pipe, NEGATIVE):
        draw(pipe, prompt=None, guidance_scale=3.0, negative_prompt=None, **embeds, **unconditional)
    short = embeds["prompt_embeds"].shape[1]
    assert texts[0] > short
    assert texts == [texts[0], short] * 4


def test_schedulers_of_second_order_visit_timesteps_twice():
    pipe = pipeline("sd15")
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    recorded = negative_of(pipe)
    for steps, end in (([0, 1], 0.5), ([0, 1, 2], 0.75)):
        wanted, clipped = draw_with_oracle(pipe, 1, recorded, **STEERING, steps=steps)
        with guide(pipe, NEGATIVE, end=end, **FIRM):
            assert error(draw(pipe), wanted) < 2e-5
        assert len(clipped) == (2 * len(steps) - 1) * len(guided_layers(pipe.unet))


def test_classifier_free_guidance_may_end_on_the_way():
    pipe = pipeline("sd15")
    options = {"guidance_scale": 3.0, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}

    def cut():
        return options | {"callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)}

    recorded = negative_of(pipe)
    wanted, _ = draw_with_oracle(pipe, 1, recorded, **STEERING, **cut())
    with guide(pipe, NEGATIVE, **FIRM):
        assert error(draw(pipe, **cut()), wanted) < 2e-5


# --- types and modes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["sdxl", "pixart", "sd35", "sana", "flux", "wan"])
def test_half_precision(kind, dtype):
    pipe = pipeline(kind)
    with guide(pipe, NEGATIVE, **FIRM):
        wanted = draw(pipe, guidance_scale=3.0)
    pipe.to(dtype)
    plain = draw(pipe, guidance_scale=3.0)
    with guide(pipe, NEGATIVE, **FIRM):
        got = draw(pipe, guidance_scale=3.0)
    assert got.dtype == plain.dtype  # SANA keeps its latents in float32
    assert error(got, wanted) < 0.5 * error(plain, wanted)


@pytest.mark.parametrize("kind", ["sdxl", "pixart", "sd35", "sana", "flux", "wan"])
def test_inference_mode_and_autocast(kind):
    pipe = pipeline(kind)
    with guide(pipe, NEGATIVE, **FIRM):
        wanted = draw(pipe, guidance_scale=3.0)
        with torch.inference_mode():
            assert torch.equal(draw(pipe, guidance_scale=3.0), wanted)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert 0 < error(draw(pipe, guidance_scale=3.0), wanted) < 0.05


# --- what is not guided -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), [("pixart", "callback"), ("sd3", "callback_on_step_end")])
def test_what_a_callback_does_with_the_denoiser_is_not_guided(kind, name):
    """Another pipeline over the same denoiser, called between two steps, draws its own picture, and the steps go on."""
    pipe = pipeline(kind)
    other = type(pipe)(**{**pipe.components, "scheduler": type(pipe.scheduler).from_config(pipe.scheduler.config)})
    other.set_progress_bar_config(disable=True)
    plain, inside = draw(other), []

    def draw_other(*arguments):
        inside.append(draw(other))
        return arguments[-1]

    with guide(pipe, NEGATIVE, end=0.5):
        wanted = draw(pipe)
        assert torch.equal(draw(pipe, **{name: draw_other}), wanted)
    assert all(torch.equal(x, plain) for x in inside)
    assert len(inside) == 4


class DrawsOther(PipelineCallback):
    tensor_inputs = ["latents"]

    def callback_fn(self, pipe, step, timestep, tensors):
        self.inside.append(draw(self.other))
        return tensors


@pytest.mark.parametrize("several", [False, True])
def test_what_a_callback_of_diffusers_classes_does_with_the_denoiser_is_not_guided(several):
    pipe = pipeline("sd15")
    callback = DrawsOther()
    callback.other = type(pipe).from_pipe(pipe, scheduler=type(pipe.scheduler).from_config(pipe.scheduler.config))
    callback.other.set_progress_bar_config(disable=True)
    callback.inside = []
    given = MultiPipelineCallbacks([callback, callback]) if several else callback
    plain = draw(callback.other)
    with guide(pipe, NEGATIVE, end=0.5):
        wanted = draw(pipe)
        assert torch.equal(draw(pipe, callback_on_step_end=given), wanted)
    assert all(torch.equal(x, plain) for x in callback.inside)
    assert len(callback.inside) == (8 if several else 4)


def test_what_another_thread_does_with_the_denoiser_is_not_guided(monkeypatch):
    """In the dry run and in the call itself, which wait for it here."""
    pipe = pipeline("pixart")
    other = type(pipe)(**{**pipe.components, "scheduler": type(pipe.scheduler).from_config(pipe.scheduler.config)})
    other.set_progress_bar_config(disable=True)
    plain = draw(other)
    with guide(pipe, NEGATIVE):
        wanted = draw(pipe)
    drawn, prepare = [], pipe.prepare_latents

    def prepare_meanwhile(*args, **kwargs):  # between the encoding and the first call of the denoiser
        thread = threading.Thread(target=lambda: drawn.append(draw(other)))
        thread.start()
        thread.join()
        return prepare(*args, **kwargs)

    monkeypatch.setattr(pipe, "prepare_latents", prepare_meanwhile)
    with guide(pipe, NEGATIVE):
        assert torch.equal(draw(pipe), wanted)
    assert len(drawn) == 2
    assert all(torch.equal(x, plain) for x in drawn)


def test_the_dry_run_leaves_processors_as_they_were(monkeypatch):
    """Some pipelines set processors before the first step and put the earlier ones back after the last."""
    pipe = pipeline("pixart")
    layer, prepare, found = pipe.transformer.transformer_blocks[0].attn1, pipe.prepare_latents, []

    def prepare_and_set(*args, **kwargs):
        found.append(layer.processor)
        layer.set_processor(AttnProcessor2_0())
        return prepare(*args, **kwargs)

    monkeypatch.setattr(pipe, "prepare_latents", prepare_and_set)
    with guide(pipe, NEGATIVE):
        draw(pipe)
    assert len(found) == 2
    assert found[0] is found[1]


def test_a_call_inside_a_call_is_refused():
    pipe = pipeline("sd3")
    with guide(pipe, NEGATIVE), pytest.raises(RuntimeError, match="another guided call is running on this denoiser"):
        draw(pipe, callback_on_step_end=lambda pipe, i, t, values: draw(pipe))
    with guide(pipe, NEGATIVE):
        draw(pipe)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["torch.compile", "Module.compile", "blocks"])
def test_compiled_denoisers(how):
    pipe = pipeline("pixart")
    model, compiler = pipe.transformer, CompileCounterWithBackend("eager")
    scales = (8.0, 3.0, 5.0)
    plain, wanted = draw(pipe), []
    for scale in scales:
        with guide(pipe, NEGATIVE, nag_scale=scale):
            wanted.append(draw(pipe))
    if how == "torch.compile":
        pipe.transformer = torch.compile(model, backend=compiler, fullgraph=True)
    for module in {"Module.compile": [model], "blocks": model.transformer_blocks}.get(how, ()):
        module.compile(backend=compiler, fullgraph=True)
    assert error(draw(pipe), plain) < 1e-5
    graphs = compiler.frame_count
    for scale, eager in zip(scales, wanted, strict=True):
        with guide(pipe, NEGATIVE, nag_scale=scale):
            assert error(draw(pipe), eager) < 1e-5
        assert compiler.frame_count == 2 * graphs  # once for guidance, whatever the settings
    assert error(draw(pipe), plain) < 1e-5
    assert compiler.frame_count == 2 * graphs
    if how != "torch.compile":  # what a compiled model calls is seen as well
        site = model.transformer_blocks[0].attn2
        site.forward = lambda *args, **kwargs: args[0]
        with pytest.raises(RuntimeError, match="did not see it"), guide(pipe, NEGATIVE):
            draw(pipe)
