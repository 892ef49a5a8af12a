# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`layers`: guidance in some of a model's layers, against two runs and a doubled batch of the untouched model."""

import pytest
import torch

pytest.importorskip("diffusers")

from drawing import compile_transformer, denoiser, draw, draw_with_oracle, negative_of
from every_model import MODELS, TINY, model_arguments, pipeline, text_width
from oracles import doubled_batch_oracle, output, run, twice, two_runs_oracle
from pipeline_parts import NEGATIVE
from stand_in import filled, firm
from tiny import error, seeded, texts
from torch._dynamo.testing import CompileCounterWithBackend

from nag_kernels.diffusers import diagnose, disable_guidance, enable_guidance, guide, guided
from nag_kernels.diffusers.denoiser_calls import named_modules
from nag_kernels.diffusers.models.registry import find_layers, guided_layers, spec_of
from nag_kernels.layer_choice import chosen_layers

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

FIRM = {"nag_scale": 8.0, "nag_tau": 1.25, "nag_alpha": 0.5}
PIPELINE_FIRM = {"nag_scale": 8.0, "nag_tau": 3.0, "nag_alpha": 0.5}
# One model for each way to guide a layer; the others are slow tests.
FAST = (
    "CogView4Transformer2DModel",  # text first
    "CosmosTransformer3DModel",  # cross-attention
    "MochiTransformer3DModel",  # text last, row by row
    "HunyuanVideoTransformer3DModel",  # text last, drop-in
    "StableAudio3DiTModel",  # the difference of two attentions
    "LatteTransformer3DModel",  # frame by frame
    "ChromaTransformer2DModel numbers",  # masks that are added
    "AuraFlowTransformer2DModel",  # tokens of the model's own before the text
    "MotifVideoTransformer3DModel",  # joint and cross-attention
    "OmniGenTransformer2DModel",  # two runs
    "UNet3DConditionModel",  # whose middle is no last part
)
KINDS = pytest.mark.parametrize("kind", [
    kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for kind in TINY
])  # fmt: skip
EACH = pytest.mark.parametrize("chosen", ["first", "last"])


def one_layer(model, chosen):
    """The argument for one layer of a model, and the layers that are left out."""
    layers = dict(spec_of(model).layers(named_modules(model)))
    one = list(layers)[{"first": 0, "last": -1}[chosen]]
    return [one], {site for name, site in layers.items() if name != one}


@KINDS
def test_one_layer_equals_two_runs(kind):
    """After the first layer the image is plain; before the last the negative's text goes through layers that are plain. They
    take turns over the models."""
    tiny, chosen = TINY[kind], ("first", "last")[list(TINY).index(kind) % 2]
    pipe = filled(tiny, masked=tiny.seen is not None)
    model, settings = pipe.transformer, firm(tiny)
    layers, others = one_layer(model, chosen)
    assert others
    calls = pipe.arguments, pipe.texts["positive"], pipe.texts["negative"]
    wanted, _ = two_runs_oracle(tiny, model, guided_layers(model), *calls, *settings.values(), unsteered=others)
    with guide(pipe, "negative", layers=layers, **settings):
        got = pipe(pipe.prompt)
    assert error(got, wanted) < 1e-5
    with guide(model, pipe.texts["negative"], layers=layers, **settings):
        assert torch.equal(output(model, pipe.arguments | pipe.texts["positive"]), got)
    with guide(pipe, "negative", **settings):
        everything = pipe(pipe.prompt)
    assert error(everything, got) > 1e-4 or kind.endswith("cache")  # which the last layer has no part in


@EACH
@pytest.mark.parametrize("rule", ["nag", "nasa"])
@pytest.mark.parametrize("kind", MODELS)
def test_one_layer_equals_the_doubled_batch(kind, rule, chosen):
    model, arguments = seeded(MODELS[kind]), model_arguments(kind, 3, torch.float32)
    positive, negative = texts(3, 7, 7, text_width(kind), torch.float32)
    layers, others = one_layer(model, chosen)
    settings = FIRM if rule == "nag" else {"nag_scale": 0.5, "nag_tau": 1.0, "nag_alpha": 1.0}
    with doubled_batch_oracle(guided_layers(model), 7, *settings.values(), rule, others):
        wanted = run(model, twice(arguments), torch.cat([positive, negative]))[:3]
    ids = arguments.get("img_ids")
    ids = {} if ids is None else {"txt_ids": ids.new_zeros(*ids.shape[:-2], 7, ids.shape[-1])}
    with guide(model, {"encoder_hidden_states": negative} | ids, layers=layers, rule=rule, **settings):
        assert error(run(model, arguments, positive), wanted) < 1e-5


@pytest.mark.parametrize("rule", ["nag", "vsf"])
@pytest.mark.parametrize("kind", ["sd15", "pixart", "sd3", "flux", "wan"])
def test_pipelines_beside_classifier_free_guidance(kind, rule):
    pipe = pipeline(kind)
    layers, others = one_layer(denoiser(pipe), "last")
    recorded = negative_of(pipe, guidance_scale=3.0)
    given = PIPELINE_FIRM if rule == "nag" else {"nag_scale": 1.5, "negative_logit_bias": -0.4}
    settings = dict(zip(("scale", "tau", "alpha"), (*given.values(), None), strict=False))
    wanted, _ = draw_with_oracle(pipe, 1, recorded, **settings, rule=rule, unsteered=others, guidance_scale=3.0)
    with guide(pipe, NEGATIVE, layers=layers, rule=rule, **given):
        got = draw(pipe, guidance_scale=3.0)
    assert error(got, wanted) < 2e-5
    with guide(pipe, NEGATIVE, rule=rule, **given):
        assert error(draw(pipe, guidance_scale=3.0), got) > 1e-4


def test_every_way_to_guide_takes_layers():
    pipe = pipeline("sd3")
    with guide(pipe, NEGATIVE, layers="1-2"):
        wanted = draw(pipe)
    enable_guidance(pipe, NEGATIVE, layers=range(1, 3))
    assert torch.equal(draw(pipe), wanted)
    disable_guidance(pipe)
    assert torch.equal(draw(guided(pipe, NEGATIVE, layers=(0.3, 1.0))), wanted)
    assert torch.equal(draw(guided(pipe, NEGATIVE, layers=["transformer_blocks.1", "2"])), wanted)
    with guide(pipe, NEGATIVE):
        everything = draw(pipe)
    assert error(everything, wanted) > 1e-4
    for all_of_them in ("all", "0-2", "transformer_blocks", (0.0, 1.0), [2, 0, 1]):
        assert torch.equal(draw(guided(pipe, NEGATIVE, layers=all_of_them)), everything)


@KINDS
def test_layers_are_numbered_as_they_run(kind):
    pipe, met = filled(TINY[kind]), []
    for name, layer in spec_of(pipe.transformer).layers(named_modules(pipe.transformer)):
        layer.register_forward_pre_hook(lambda *_, name=name: met.append(name))
    pipe(pipe.prompt)
    names = dict(spec_of(pipe.transformer).layers(named_modules(pipe.transformer)))
    in_order = list(dict.fromkeys(met))
    assert len(in_order) == len(names)
    for i, name in enumerate(in_order):
        assert names[name] not in find_layers(pipe.transformer, [i]).unsteered


@pytest.mark.parametrize("kind", MODELS)
def test_layers_of_drop_in_models_are_numbered_as_they_run(kind):
    model, met = seeded(MODELS[kind]), []
    names = dict(spec_of(model).layers(named_modules(model)))
    for name, layer in names.items():
        layer.register_forward_pre_hook(lambda *_, name=name: met.append(name))
    run(model, model_arguments(kind, 3, torch.float32), texts(3, 7, 7, text_width(kind), torch.float32)[0])
    if kind == "wan vace":  # whose own blocks are numbered first
        met.sort(key=lambda name: name.startswith("vace"))
    for i, name in enumerate(met):
        assert names[name] not in find_layers(model, [i]).unsteered


NAMES = ["down_blocks.1.attn2", "down_blocks.10.attn2", "mid_block.attn2", "up_blocks.0.attn2", "up_blocks.1.attn2"]


@pytest.mark.parametrize(("layers", "wanted"), [
    (None, None),
    (" All ", None),
    ("0-2, 4", {0, 1, 2, 4}),
    ("3", {3}),
    (" 1 - 2 ,2", {1, 2}),
    (range(1, 5, 2), {1, 3}),
    ({4, 0}, {0, 4}),
    ((0, 1), {0, 1}),  # whole numbers are numbers of layers
    ([2, "down_blocks.1", "3-4"], {0, 2, 3, 4}),
    ("down_blocks", {0, 1}),
    ("down_blocks.1", {0}),  # and not the tenth
    ("mid_block, up_blocks.1.attn2", {2, 4}),
    ((0.0, 0.4), {0, 1}),
    ([0, 0.5], {0, 1, 2}),
    ((0.6, 1), {3, 4}),
    ((0.1, 0.3), {1}),
])  # fmt: skip
def test_how_layers_are_chosen(layers, wanted):
    assert chosen_layers("guide", layers, NAMES) == wanted


def test_shares_that_rounding_puts_beside_a_layer():
    assert 0.28 * 25 > 7
    assert chosen_layers("guide", (0.28, 1.0), [str(i) for i in range(25)]) == set(range(7, 25))
    assert chosen_layers("guide", (0.0, 0.28), [str(i) for i in range(25)]) == set(range(7))


THERE_ARE = (
    r"this model has 5 layers that can be guided, from number 0 on: down_blocks\.1\.attn2, .*, \.\.\., up_blocks"
)


@pytest.mark.parametrize(("layers", "message"), [
    ("0-5", rf"numbers and ranges from 0 to 4 such as 0-4, or names, got '0-5'; {THERE_ARE}"),
    ([5], f"got '5'; {THERE_ARE}"),
    ([-1], "got '-1'"),
    ("3-1", "got '3-1'"),
    ("1,,2", "got ''"),
    ([True], "got 'True'"),
    ([None], "got 'None'"),
    ("down", f"got 'down'; {THERE_ARE}"),
    (["up_blocks", "attn2"], "got 'attn2'"),
    ([], rf"picks no layer, got \[\]; {THERE_ARE}"),
    ((0.05, 0.15), rf"picks no layer, got \(0.05, 0.15\); {THERE_ARE}"),
    ((0.5, 0.5), r"0 <= start < end <= 1, got \(0.5, 0.5\); layers by number are whole numbers"),
    ((0.0, 2.0), r"got \(0, 2\)"),
    ((float("nan"), 1.0), r"got \(nan, 1\)"),
    ([0.5], r"must be two floats for a share of the depth, \(0.0, 0.5\) say, or whole numbers, got \[0.5\]"),
    ((0.1, "up_blocks"), "must be two floats"),
])  # fmt: skip
def test_layers_that_are_not_there(layers, message):
    with pytest.raises(ValueError, match=f"guide: layers .*?{message}"):
        chosen_layers("guide", layers, NAMES)


def test_layers_of_other_types():
    for layers in (3, 0.5, {"up_blocks": 1}, torch.tensor([1])):
        with pytest.raises(TypeError, match=r"layers must be None, a string .* for one layer write"):
            chosen_layers("guide", layers, NAMES)


def test_layers_are_refused_when_guidance_is_enabled():
    pipe, model = pipeline("flux"), seeded(MODELS["sd15"])
    message = r"names, got 'mid_block'; this model has \d layers .*: transformer_blocks\.0\.attn"
    for start in (guide(pipe, NEGATIVE, layers="mid_block").__enter__,
                  lambda: guided(pipe, NEGATIVE, layers="mid_block"),
                  lambda: enable_guidance(pipe, NEGATIVE, layers="mid_block")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            start()
    assert type(pipe).__name__ == "FluxPipeline"
    text = {"encoder_hidden_states": torch.zeros(1, 7, text_width("sd15"))}
    with pytest.raises(ValueError, match=r"from 0 to 3 .* got '4'"), guide(model, text, layers=[4]):
        pass


@pytest.mark.parametrize("how", ["torch.compile", "blocks"])
def test_compiled_denoisers(how):
    pipe = pipeline("pixart")
    compiler = CompileCounterWithBackend("eager")
    with guide(pipe, NEGATIVE, layers="1"):
        wanted = draw(pipe)
    compile_transformer(pipe, how, compiler)
    for scale in (None, 3.0, 4.0):
        with guide(pipe, NEGATIVE, layers="1", nag_scale=scale):
            got = draw(pipe)
        assert scale is not None or error(got, wanted) < 1e-5
        assert compiler.frame_count == {"torch.compile": 1, "blocks": 2}[how]


def test_diagnose_measures_the_chosen_layers():
    pipe = pipeline("sd3")
    with guide(pipe, NEGATIVE, layers="1-2"):
        wanted = draw(pipe)
    with diagnose(pipe, NEGATIVE, layers="1-2") as found:
        assert torch.equal(draw(pipe), wanted)
    assert found.layers == ["transformer_blocks.1.attn", "transformer_blocks.2.attn"]
    pipe = filled(TINY["OmniGenTransformer2DModel"])
    with diagnose(pipe, "negative", layers="1") as found:
        pipe(pipe.prompt)
    assert len(found.layers) == 1
