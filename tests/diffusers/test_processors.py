# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The drop-in processors, in single layers and in whole models, against the untouched library."""

import math

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers.models.attention_processor import (
    Attention,
    FusedAttnProcessor2_0,
)
from every_model import MODELS, model_arguments, text_width
from oracles import doubled_batch_oracle, run, twice, vsf_oracle
from single_layers import ALPHA, LAYER_TAU, PARTS, SCALE, TAU, published_batch, two_pass_oracle
from tiny import error, noise, seeded, texts
from torch._dynamo.testing import CompileCounterWithBackend

import nag_kernels.diffusers
from nag_kernels.diffusers import (
    NAGAttnProcessor2_0,
    PackedText,
)
from nag_kernels.diffusers.attention.base import SharedText
from nag_kernels.diffusers.models.registry import guided_layers, spec_of

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def settings(rule="nag", **values):
    names = {"nag_scale": SCALE, "nag_tau": TAU, "nag_alpha": ALPHA} | values
    return {k: torch.tensor(v, dtype=torch.float32) for k, v in names.items()} | {"rule": rule}


def install(model, **values):
    """Our processors at every guided layer of a model, sharing one packed text."""
    shared = SharedText(PackedText(**values))
    ours = spec_of(model).processors
    processors = [ours[type(site.processor)](text=shared) for site in guided_layers(model)]
    for site, processor in zip(guided_layers(model), processors, strict=True):
        site.processor = processor
    return shared, processors


# --- whole models -----------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("rule", ["nag", "nasa"])
@pytest.mark.parametrize("kind", MODELS)
def test_packed_text_equals_the_doubled_batch(kind, rule, dtype):
    model, arguments = seeded(MODELS[kind], dtype), model_arguments(kind, 3, dtype)
    positive, negative = texts(3, 7, 7, text_width(kind), dtype)
    scale = SCALE if rule == "nag" else 0.5
    plain = run(model, arguments, positive)
    sites = guided_layers(model)
    with doubled_batch_oracle(sites, 7, scale, TAU, ALPHA, rule) as clipped:
        wanted = run(model, twice(arguments), torch.cat([positive, negative]))[:3]
    assert len(clipped) == len(sites)
    assert rule == "nasa" or all(0 < share < 1 for share in clipped), clipped

    _, processors = install(model, length_positive=7, length_negative=7, **settings(rule=rule, nag_scale=scale))
    for processor in processors:
        processor.text_calls = 0
    got = run(model, arguments, torch.cat([positive, negative], dim=1))
    assert error(got, wanted) < TOLERANCE[dtype]
    assert error(wanted, plain) > 1e-2
    assert [p.text_calls for p in processors] == [1] * len(sites)


@DTYPES
@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "qwen"])  # which numbers packed texts as one
def test_vsf_equals_packed_text_in_the_stock_model(kind, dtype):
    """Texts of unequal length; a bias; and one row that does not see its negative."""
    model, arguments = seeded(MODELS[kind], dtype), model_arguments(kind, 3, dtype)
    positive, negative = texts(3, 7, 5, text_width(kind), dtype)
    both = torch.cat([positive, negative], dim=1)
    plain, sites = run(model, arguments, positive), guided_layers(model)
    with vsf_oracle(sites, 7, 5, 2.0, bias=0.3, text_first=kind.startswith("flux")) as taken:
        wanted = run(model, arguments, both)
    assert len(taken) == len(sites)

    shared, _ = install(model, length_positive=7, length_negative=5, negative_logit_bias=0.3,
                        **settings(rule="vsf", nag_scale=2.0))  # fmt: skip
    got = run(model, arguments, both)
    assert error(got, wanted) < TOLERANCE[dtype]
    assert error(wanted, plain) > 1e-2
    shared.change(steered=torch.tensor([True, False, True]))
    got = run(model, arguments, both)
    assert error(got[1], plain[1]) < TOLERANCE[dtype]
    assert error(got[::2], wanted[::2]) < TOLERANCE[dtype]


@DTYPES
@pytest.mark.parametrize("kind", ["sd15", "sdxl", "pixart", "sana", "sana sprint", "ltx", "qwen"])
def test_masks_and_unequal_lengths(kind, dtype):
    model, arguments = seeded(MODELS[kind], dtype), model_arguments(kind, 3, dtype)
    positive, negative = texts(3, 7, 5, text_width(kind), dtype)
    mask_positive = torch.arange(7) < torch.tensor([[7], [3], [5]])
    mask_negative = torch.arange(5) < torch.tensor([[5], [4], [1]])
    padded = torch.cat([negative, torch.full_like(negative[:, :2], 50.0)], dim=1)
    masks = torch.cat([mask_positive, torch.nn.functional.pad(mask_negative, (0, 2))])
    (name,) = spec_of(model).masks
    with doubled_batch_oracle(guided_layers(model), 7, SCALE, TAU, ALPHA) as clipped:
        wanted = run(model, twice(arguments), torch.cat([positive, padded]), **{name: masks})[:3]
    assert any(0 < share < 1 for share in clipped), clipped

    both, mask = torch.cat([positive, negative], dim=1), torch.cat([mask_positive, mask_negative], dim=1)
    shared, _ = install(model, length_positive=7, length_negative=5, **settings())
    if kind == "qwen":
        with pytest.raises(ValueError, match="the masks of both texts must be given in PackedText"):
            run(model, arguments, both, **{name: mask})
    else:
        assert error(run(model, arguments, both, **{name: mask}), wanted) < TOLERANCE[dtype]  # the model's own bias
    shared.change(mask_positive=mask_positive, mask_negative=mask_negative)
    assert error(run(model, arguments, both), wanted) < TOLERANCE[dtype]  # or masks beside it


@pytest.mark.parametrize("kind", MODELS)
def test_each_row_has_its_own_settings(kind):
    model, arguments = seeded(MODELS[kind], torch.float64), model_arguments(kind, 3, torch.float64)
    positive, negative = texts(3, 7, 7, text_width(kind), torch.float64)
    plain = run(model, arguments, positive)
    with doubled_batch_oracle(guided_layers(model), 7, SCALE, TAU, ALPHA):
        steered = run(model, twice(arguments), torch.cat([positive, negative]))[:3]
    rows = {"nag_scale": [1.0, SCALE, 1.0], "nag_tau": [math.inf, TAU, math.inf], "nag_alpha": [1.0, ALPHA, ALPHA]}
    install(model, length_positive=7, length_negative=7, **settings(**rows))
    got = run(model, arguments, torch.cat([positive, negative], dim=1))
    assert error(got[[0, 2]], plain[[0, 2]]) < 1e-12
    assert error(got[1], steered[1]) < 1e-12


@DTYPES
@pytest.mark.parametrize("kind", ["sd15", "sdxl", "wan"])
def test_the_published_doubled_batch(kind, dtype):
    model, arguments = seeded(MODELS[kind], dtype), model_arguments(kind, 3, dtype)
    positive, negative = texts(3, 7, 7, text_width(kind), dtype)
    with doubled_batch_oracle(guided_layers(model), 7, SCALE, TAU, ALPHA):
        wanted = run(model, twice(arguments), torch.cat([positive, negative]))[:3]
    stock, ours = next(iter(spec_of(model).processors.items()))
    model.set_attn_processor(ours(SCALE, TAU, ALPHA))  # self-attention too: there it is plain
    got = model(**arguments, encoder_hidden_states=torch.cat([positive, negative])).sample
    assert error(got, wanted) < TOLERANCE[dtype]

    unconditional = noise(3, 7, text_width(kind), seed=9, dtype=dtype)
    both = torch.cat([unconditional, positive, negative])
    got = model(**twice(arguments), encoder_hidden_states=both).sample
    model.set_attn_processor(stock())
    plain = model(**arguments, encoder_hidden_states=unconditional).sample
    assert error(got[:3], plain) < TOLERANCE[dtype]
    assert error(got[3:], wanted) < TOLERANCE[dtype]
    model.set_attn_processor(ours(SCALE, 0.5, ALPHA))  # a clip that would shrink any text
    got = model(**twice(arguments), encoder_hidden_states=both).sample
    assert error(got[:3], plain) < TOLERANCE[dtype]


# --- single layers ----------------------------------------------------------------------------------------------------


FEATURES = {
    "plain": {},
    "bias": {"bias": True},
    "residual": {"residual_connection": True, "rescale_output_factor": 1.5},
    "group_norm": {"norm_num_groups": 4},
    "spatial_norm": {"spatial_norm_dim": 6},
    "norm_cross": {"cross_attention_norm": "layer_norm"},
    "norm_cross_group": {"cross_attention_norm": "group_norm", "cross_attention_norm_num_groups": 4},
    "qk_rms": {"qk_norm": "rms_norm"},
    "qk_layer": {"qk_norm": "layer_norm"},
}


def cross_layer(feature, dtype=torch.float64):
    options = FEATURES[feature]
    return seeded(lambda: Attention(query_dim=32, cross_attention_dim=16, heads=4, dim_head=8, **options), dtype)


def image(feature, rows, four_dimensional):
    x = noise(rows, 32, 4, 5, seed=7)
    if four_dimensional or feature == "spatial_norm":
        return x, {"temb": noise(rows, 6, 4, 5, seed=8)} if feature == "spatial_norm" else {}
    return x.flatten(2).transpose(1, 2), {}


@pytest.mark.parametrize("four_dimensional", [False, True], ids=["3d", "4d"])
@pytest.mark.parametrize("feature", FEATURES)
def test_cross_attention_layer(feature, four_dimensional):
    attn = cross_layer(feature)
    x, extra = image(feature, 3, four_dimensional)
    positive, negative = texts(3, 7, 5, 16, torch.float64)
    wanted, plain, _ = two_pass_oracle(attn, x, positive, negative, **extra)
    attn.set_processor(NAGAttnProcessor2_0(SCALE, LAYER_TAU, ALPHA, text=PackedText(7, 5)))
    got = attn(x, torch.cat([positive, negative], dim=1), **extra)
    assert got.shape == plain.shape
    assert error(got, wanted) < 1e-12
    assert error(got, plain) > 1e-3


@pytest.mark.parametrize("feature", FEATURES)
def test_without_a_negative_it_is_the_stock_processor(feature):
    attn = cross_layer(feature)
    x, extra = image(feature, 3, False)
    positive, negative = texts(3, 7, 7, 16, torch.float64)
    stock = attn(x, positive, **extra)
    attn.set_processor(NAGAttnProcessor2_0(SCALE, LAYER_TAU, ALPHA))
    assert torch.equal(attn(x, positive, **extra), stock)
    attn.processor.nag_scale = 1.0
    assert error(attn(x, torch.cat([positive, negative]), **extra), stock) < 1e-12


def test_fused_projections():
    attn = cross_layer("bias")
    x, _ = image("bias", 3, False)
    positive, negative = texts(3, 7, 5, 16, torch.float64)
    attn.fuse_projections()
    attn.set_processor(FusedAttnProcessor2_0())
    wanted, plain, _ = two_pass_oracle(attn, x, positive, negative)
    attn.set_processor(NAGAttnProcessor2_0(SCALE, LAYER_TAU, ALPHA))
    assert torch.equal(attn(x, positive), plain)
    attn.set_processor(NAGAttnProcessor2_0(SCALE, LAYER_TAU, ALPHA, text=PackedText(7, 5)))
    attn.to_k = attn.to_v = None  # they must not be used
    assert error(attn(x, torch.cat([positive, negative], dim=1)), wanted) < 1e-12


@PARTS
def test_cross_attention_layer_takes_the_published_batch(parts):
    each = 2
    attn = seeded(lambda: Attention(query_dim=32, cross_attention_dim=32, heads=4, dim_head=8), torch.float64)
    texts_, x = published_batch(parts)
    at = 0 if parts == 2 else each
    wanted = attn(x, torch.cat(texts_[:-1]))
    wanted[at : at + each] = two_pass_oracle(attn, x[at : at + each], texts_[at // each], texts_[-1])[0]
    attn.set_processor(NAGAttnProcessor2_0(SCALE, LAYER_TAU, ALPHA))
    assert error(attn(x, torch.cat(texts_)), wanted) < 1e-12


# --- masks and refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["bias", "lowest", "infinite", "bool", "2d"])
def test_plain_masks_in_every_form(form):
    attn, (x, _) = cross_layer("plain"), image("plain", 3, False)
    positive, negative = texts(3, 7, 5, 16, torch.float64)
    text = torch.cat([positive, negative], dim=1)
    seen = torch.arange(12) % 4 != torch.tensor([[1], [2], [3]])
    low = {"bias": -10000.0, "lowest": torch.finfo(torch.float64).min, "infinite": -math.inf}.get(form)
    mask = seen if low is None else torch.zeros(seen.shape).double().masked_fill(~seen, low)
    attn.set_processor(NAGAttnProcessor2_0(SCALE, TAU, ALPHA, text=PackedText(7, 5, seen[:, :7], seen[:, 7:])))
    wanted = attn(x, text)
    attn.set_processor(NAGAttnProcessor2_0(SCALE, TAU, ALPHA, text=PackedText(7, 5)))
    got = attn(x, text, attention_mask=mask if form == "2d" else mask[:, None])
    assert torch.equal(got, wanted)
    assert error(got, attn(x, text)) > 1e-3


def test_a_text_that_is_masked_altogether_is_seen_as_in_the_stock_layer():
    attn, (x, _) = cross_layer("plain"), image("plain", 3, False)
    positive, negative = texts(3, 7, 5, 16, torch.float64)
    bias = torch.zeros(3, 1, 12).double()
    bias[1, :, :7], bias[2, :, 7:] = -10000.0, -10000.0
    plain = attn(x, positive, attention_mask=bias[..., :7])
    attn.set_processor(NAGAttnProcessor2_0(1.0, text=PackedText(7, 5)))
    assert error(attn(x, torch.cat([positive, negative], dim=1), attention_mask=bias), plain) < 1e-10


def test_a_mask_that_weighs_tokens_is_refused():
    attn, (x, _) = cross_layer("plain"), image("plain", 3, False)
    text, mask = torch.cat(texts(3, 7, 5, 16, torch.float64), dim=1), torch.zeros(3, 1, 12).double()
    attn.set_processor(NAGAttnProcessor2_0(SCALE, text=PackedText(7, 5)))
    compiled = torch.compile(attn, backend="eager", fullgraph=True)
    compiled(x, text, attention_mask=mask)
    mask[1, 0, 3] = -2.0
    with pytest.raises(ValueError, match="plain yes or no"):
        attn(x, text, attention_mask=mask)
    with pytest.raises(RuntimeError, match="plain yes or no"):
        compiled(x, text, attention_mask=mask)


def test_misfits_are_refused():
    attn, (x, _) = cross_layer("plain"), image("plain", 2, False)
    attn.set_processor(NAGAttnProcessor2_0(SCALE))
    with pytest.raises(ValueError, match=r"batch 2 .*4 .*3 .*got 5"):
        attn(x, noise(5, 7, 16, seed=1))
    attn.set_processor(NAGAttnProcessor2_0(SCALE, text=PackedText(7, 5)))
    with pytest.raises(ValueError, match=r"7 \+ 5 tokens .*got 14"):
        attn(x, noise(2, 14, 16, seed=1))
    with pytest.raises(ValueError, match=r"\[2, 1, 12\] .*got \(2, 1, 7\)"):
        attn(x, noise(2, 12, 16, seed=1), attention_mask=torch.zeros(2, 1, 7).double())
    with pytest.raises(ValueError, match="one for all queries"):
        attn(x, noise(2, 12, 16, seed=1), attention_mask=torch.zeros(2, 20, 12).double())


@pytest.mark.parametrize(("name", "alpha"), [
    ("NAGAttnProcessor2_0", 0.5), ("NAGJointAttnProcessor2_0", 0.125), ("NAGSanaAttnProcessor2_0", 0.375),
    ("NAGFluxAttnProcessor2_0", 0.25), ("NAGWanAttnProcessor2_0", 0.25), ("NAGFlux2AttnProcessor", 0.25),
    ("NAGChromaAttnProcessor2_0", 0.25), ("NAGHunyuanVideoAttnProcessor2_0", 0.25), ("NAGZSingleStreamAttnProcessor", 0.25),
    ("NAGLTX2AudioVideoAttnProcessor", 0.25), ("NAGLTX2PerturbedAttnProcessor", 0.25),
    ("NAGFlux2ParallelSelfAttnProcessor", 0.25), ("NAGQwenDoubleStreamAttnProcessor2_0", 0.25),
    ("NAGLTXVideoAttnProcessor", 0.25),
])  # fmt: skip
def test_settings(name, alpha):
    cls = getattr(nag_kernels.diffusers, name)
    processor = cls()
    assert (processor.nag_scale, processor.nag_tau, processor.nag_alpha) == (1.0, 2.5, alpha)
    processor.nag_scale, processor.nag_tau, processor.nag_alpha = 4.0, math.inf, 0.25
    assert processor._settings.tolist() == [4.0, math.inf, 0.25]
    for bad in ({"nag_scale": math.nan}, {"nag_tau": 0.0}, {"nag_tau": math.nan}, {"nag_alpha": 1.5}):
        with pytest.raises(ValueError, match=f"{cls.__name__}: {next(iter(bad))} must be"):
            cls(**bad)
    with pytest.raises(TypeError, match="nag_scale must be a number, got str"):
        processor.nag_scale = "5"
    assert processor.nag_scale == 4.0


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd15", "pixart", "sd35", "sana", "flux", "flux2", "qwen", "ltx", "wan", "sd35 vsf"])
def test_compiled_models_follow_the_settings(kind):
    torch._dynamo.reset()
    kind, *vsf = kind.split()
    model, arguments = seeded(MODELS[kind]), model_arguments(kind, 2, torch.float32)
    text = torch.cat(texts(2, 7, 7, text_width(kind), torch.float32), dim=1)
    state, processors = install(model, length_positive=7, length_negative=7, **settings())
    if vsf:
        state.change(rule="vsf", negative_logit_bias=-0.2, steered=torch.tensor([False, True]))
    compiler = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    seen = []
    for scale in (8.0, 1.0, 3.0, 5.0):
        state.change(nag_scale=torch.tensor(scale))
        for processor in processors:
            processor.text_calls = 0
        seen.append(run(compiled, arguments, text))
        assert error(seen[-1], run(model, arguments, text)) < 1e-6
        assert [p.text_calls for p in processors] == [2] * len(processors)  # compiled, and plain for comparison
    assert compiler.frame_count == 1
    assert error(seen[0], seen[1]) > 1e-3
    if vsf:  # a number, which is compiled for each of its first values
        state.change(negative_logit_bias=0.3)
        assert error(run(compiled, arguments, text), run(model, arguments, text)) < 1e-6


def test_a_compiled_processor_follows_its_attributes():
    attn, (x, _) = cross_layer("plain"), image("plain", 3, False)
    text = torch.cat(texts(3, 7, 7, 16, torch.float64))
    attn.set_processor(NAGAttnProcessor2_0(SCALE, TAU, ALPHA))
    compiler = CompileCounterWithBackend("eager")
    compiled = torch.compile(attn, backend=compiler, fullgraph=True)
    for scale in (8.0, 1.0, 3.0, 5.0):
        attn.processor.nag_scale = scale
        assert error(compiled(x, text), attn(x, text)) < 1e-12
    assert compiler.frame_count == 1
