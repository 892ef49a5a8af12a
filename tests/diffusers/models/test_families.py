# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Every family beyond those of `test_guide.py`: `guide` on the model alone, against two runs of the untouched model."""

import dataclasses
import functools
import sys
import threading

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("diffusers")

import diffusers
from diffusers.models.transformers.transformer_ltx2 import LTX2Attention
from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock
from tiny_families import FIRST_COSMOS3, TINY, Pipeline, cosmos3, hunyuan_dit, krea2, mochi
from tiny_family import ROWS, two_runs_oracle
from tiny_image_families import controlnet_xs, kandinsky3, longcat_audio, lumina_next
from tiny_models import (
    TEXT,
    denoiser,
    draw,
    error,
    guided,
    noise,
    pipeline,
    seeded,
    texts,
)
from torch._dynamo.testing import CompileCounterWithBackend

from nag_kernels.diffusers import (
    NAGHunyuanVideoAttnProcessor2_0,
    NAGLTX2AudioVideoAttnProcessor,
    NAGLTX2PerturbedAttnProcessor,
    NAGZSingleStreamAttnProcessor,
    PackedText,
    enable_guidance,
    guide,
)
from nag_kernels.diffusers.attention import generic
from nag_kernels.diffusers.attention.dual_forward import DualForward
from nag_kernels.diffusers.attention.generic import Layout
from nag_kernels.diffusers.models.registry import file_of, guided_layers, spec_of

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

KINDS = pytest.mark.parametrize("kind", TINY)


def firm(kind):
    return {"nag_scale": 8.0, "nag_tau": TINY[kind].tau, "nag_alpha": 0.5}  # the clip fires on a part of the tokens


def filled(kind, dtype=torch.float32, masked=False, build=None):
    """A pipeline with a prompt "positive" and a negative "negative"."""
    tiny, pipe = TINY[kind], Pipeline(kind, dtype, build=build)
    masks = dict.fromkeys(("positive", "negative"))
    if masked:
        masks = {
            name: torch.arange(length) < torch.tensor(seen)[:, None]
            for name, length, seen in zip(masks, tiny.lengths, tiny.seen, strict=True)
        }
    both = texts(tiny.rows, *tiny.lengths, TEXT, dtype)
    pipe.texts = {name: tiny.text(x, masks[name]) for name, x in zip(masks, both, strict=True)}
    return pipe


CASES = [
    pytest.param(
        kind, dtype, masked, id=f"{kind} {'float32' if dtype == torch.float32 else 'float64'}{' masked' * masked}"
    )
    for kind, tiny in TINY.items()
    for dtype in [torch.float64] * tiny.double + [torch.float32]
    for masked in [False] + [True] * (tiny.seen is not None)
]


@pytest.mark.parametrize(("kind", "dtype", "masked"), CASES)
def test_guided_model_equals_two_runs(kind, dtype, masked):
    tiny = TINY[kind]
    pipe = filled(kind, dtype, masked)
    plain, model = pipe(pipe.prompt), pipe.transformer
    wanted, clipped = two_runs_oracle(tiny, model, guided_layers(model), pipe.arguments, pipe.texts["positive"],
                                      pipe.texts["negative"], *firm(kind).values())  # fmt: skip
    assert len(clipped) == len(guided_layers(model))
    assert any(0 < share < 1 for share in clipped), clipped
    with guide(pipe, "negative", **firm(kind)):
        got = pipe(pipe.prompt)
    assert error(got, wanted) < {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    assert error(wanted, plain) > 1e-3


@KINDS
def test_the_prompt_as_its_own_negative_changes_nothing(kind):
    pipe = filled(kind)
    plain = pipe(pipe.prompt)
    with guide(pipe, "positive", **firm(kind)):
        same = error(pipe(pipe.prompt), plain)
    with guide(pipe, "negative", **firm(kind)):
        other = error(pipe(pipe.prompt), plain)
    assert same < 1e-5
    assert other > 10 * same
    assert other > 1e-4


# Of which the oracle takes a part.
WHOLE_MODELS = {
    "LuminaNextDiT2DModel": lumina_next,
    "Kandinsky3UNet": kandinsky3,
    "UNetControlNetXSModel": controlnet_xs,
    "LongCatAudioDiTTransformer": longcat_audio,
    "LongCatAudioDiTTransformer local": functools.partial(longcat_audio, adaln_type="local", text_conv=False),
    "MochiTransformer3DModel": mochi,
    "Krea2Transformer2DModel": krea2,
    "HunyuanDiT2DModel": hunyuan_dit,
}


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@KINDS
def test_a_scale_of_one_leaves_no_trace_of_the_negative(kind, masked):
    masked = masked and TINY[kind].seen is not None
    pipe = filled(kind, masked=masked, build=WHOLE_MODELS.get(kind))
    plain = pipe(pipe.prompt)
    with guide(pipe, "negative", nag_scale=1.0):
        assert error(pipe(pipe.prompt), plain) < 1e-5
    with guide(pipe, "negative", nag_scale=8.0):
        assert error(pipe(pipe.prompt), plain) > 1e-4


def state(pipe):
    modules = list(pipe.transformer.modules())
    return [dict(x.__dict__) for x in modules], [type(x) for x in modules], type(pipe), dict(pipe.__dict__)


@KINDS
def test_everything_is_as_it_was(kind):
    pipe = filled(kind)
    plain, before = pipe(pipe.prompt), state(pipe)
    with guide(pipe, "negative", **firm(kind)):
        pipe(pipe.prompt)
    assert state(pipe) == before
    assert torch.equal(pipe(pipe.prompt), plain)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = guided_layers(pipe.transformer)[-1].register_forward_pre_hook(interrupt)
    before = state(pipe)
    with pytest.raises(KeyboardInterrupt), guide(pipe, "negative", **firm(kind)):
        pipe(pipe.prompt)
    assert state(pipe) == before
    hook.remove()
    assert torch.equal(pipe(pipe.prompt), plain)


@KINDS
def test_refusals(kind):
    pipe = filled(kind)
    sites, spec = guided_layers(pipe.transformer), spec_of(pipe.transformer)
    if spec.dual_forward is None:
        stock, known = sites[0].processor, " or ".join(spec.stock)
        sites[0].processor = type("Other", (type(stock),), {})()
        other = f"is Other, which is not known: guidance needs {known}"
        with pytest.raises(ValueError, match=other), guide(pipe, "negative"):
            pass
        sites[0].processor = stock
    sites[0].__class__ = torch.nn.Module  # no longer an attention layer
    del sites[0].processor
    fewer = f"{len(sites) - 1} attention layers that see text, expected {len(sites)}"
    with pytest.raises(ValueError, match=fewer), guide(pipe, "negative"):
        pass


COMPILED = ["ChromaTransformer2DModel", "HunyuanVideoTransformer3DModel", "CogView4Transformer2DModel",
            "AuraFlowTransformer2DModel", "Krea2Transformer2DModel", "PRXTransformer2DModel", "CosmosTransformer3DModel",
            "Kandinsky5Transformer3DModel", "HunyuanDiT2DModel", "LatteTransformer3DModel", "ErnieImageTransformer2DModel",
            "AudioLDM2UNet2DConditionModel", "LongCatAudioDiTTransformer", "UNetMotionModel",
            "MotifVideoTransformer3DModel"]  # fmt: skip


@pytest.mark.parametrize("kind", COMPILED)
def test_compiled_models(kind):
    """In one graph without guidance and one with it, whatever the settings; a new run compiles nothing."""
    torch._dynamo.reset()
    pipe = filled(kind)
    plain, wanted, model = pipe(pipe.prompt), [], pipe.transformer
    scales = (8.0, 3.0, 5.0)
    for scale in scales:
        with guide(pipe, "negative", nag_scale=scale):
            wanted.append(pipe(pipe.prompt))
    compiler = CompileCounterWithBackend("eager")
    pipe.transformer = torch.compile(model, backend=compiler, fullgraph=True)
    assert error(pipe(pipe.prompt), plain) < 1e-5
    for scale, eager in zip(scales, wanted, strict=True):
        with guide(pipe, "negative", nag_scale=scale):
            assert error(pipe(pipe.prompt), eager) < 1e-5
    assert error(pipe(pipe.prompt), plain) < 1e-5
    assert compiler.frame_count == 2


def test_gates_of_ltx2_open_after_guidance():
    """A layer of its own: in a model with gates the oracle, which sees what comes after them, cannot tell."""
    attn = seeded(lambda: LTX2Attention(32, heads=4, kv_heads=4, dim_head=8, cross_attention_dim=16, apply_gated_attention=True),
                  torch.float64)  # fmt: skip
    x, caught = noise(3, 9, 32, seed=7), []
    positive, negative = texts(3, 7, 5, 16, torch.float64)
    hook = attn.to_out[0].register_forward_pre_hook(lambda layer, inputs: caught.append(inputs[0]))
    for text in (positive, negative):
        attn(x, text)
    hook.remove()
    gates = 2 * attn.to_gate_logits(x).sigmoid().repeat_interleave(8, dim=-1)
    steered, share = guided(*(y / gates for y in caught), 8.0, 4.0, 0.5)
    assert 0 < share < 1, share
    for processor in (NAGLTX2AudioVideoAttnProcessor, NAGLTX2PerturbedAttnProcessor):
        attn.set_processor(processor(8.0, 4.0, 0.5, text=PackedText(7, 5)))
        got = attn(x, torch.cat([positive, negative], dim=1))
        assert error(got, attn.to_out[0](gates * steered)) < 1e-12
    with pytest.raises(ValueError, match="perturbation_mask must be None"):
        attn(x, torch.cat([positive, negative], dim=1), perturbation_mask=torch.zeros(3, 1, 1))
    with pytest.raises(ValueError, match="rotary positions must be None"):
        attn(x, torch.cat([positive, negative], dim=1), query_rotary_emb=(x, x))


@pytest.mark.parametrize("kind", [kind for kind in TINY if "Chroma" in kind or "ZImage" in kind or "LTX2" in kind
                                  or "HunyuanVideoT" in kind or "SkyReels" in kind or "ChronoEdit" in kind
                                  or "WanAnimate" in kind])  # fmt: skip
def test_drop_in_processors_without_a_negative_are_the_stock_ones(kind):
    pipe = filled(kind, masked=TINY[kind].seen is not None)
    plain = pipe(pipe.prompt)
    ours = spec_of(pipe.transformer).processors
    replaced = [x for x in pipe.transformer.modules() if type(getattr(x, "processor", None)) in ours]
    assert len(replaced) >= len(guided_layers(pipe.transformer))  # and those between video and sound, and so on
    for layer in replaced:
        layer.processor = ours[type(layer.processor)](nag_scale=5.0)
    assert torch.equal(pipe(pipe.prompt), plain)


def test_what_drop_in_processors_refuse():
    attn = seeded(lambda: ZImageTransformerBlock(0, 32, 2, 2, 1e-5, True).attention, torch.float64)
    x, text = noise(2, 20, 32, seed=7), PackedText(7, 5)
    attn.set_processor(NAGZSingleStreamAttnProcessor(text=text))
    with pytest.raises(ValueError, match="the masks of both texts must be given in PackedText"):
        attn(x, attention_mask=torch.ones(2, 20, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"7 \+ 5 tokens .*got 9"):
        attn(x[:, :9])
    pipe = filled("HunyuanVideoTransformer3DModel")
    layer = pipe.transformer.transformer_blocks[0].attn
    layer.set_processor(NAGHunyuanVideoAttnProcessor2_0(text=text))
    x = noise(2, 9, 24, seed=7, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"7 \+ 5 tokens .*got 8"):
        layer(x, x[:, :8])
    with pytest.raises(ValueError, match=r"batch 2 .*got 4: pack"):
        layer(x, torch.cat([x, x]))
    with pytest.raises(ValueError, match="the masks of both texts"):
        layer(x, torch.cat([x, x], dim=1)[:, :12], torch.ones(2, 1, 1, 21, dtype=torch.bool))


def test_texts_and_masks_that_do_not_fit():
    pipe = filled("LTX2VideoTransformer3DModel", masked=True)
    pipe.texts["positive"]["audio_encoder_attention_mask"] = torch.ones(ROWS, 7)
    with (
        pytest.raises(ValueError, match="must be the very mask that encoder_attention_mask is"),
        guide(pipe, "negative"),
    ):
        pipe(pipe.prompt)
    pipe = filled("ZImageTransformer2DModel")
    with pytest.raises(ValueError, match="pad is not possible for this model"), guide(pipe, "negative", pad=True):
        pipe(pipe.prompt)
    pipe.texts["negative"]["cap_feats"] = pipe.texts["negative"]["cap_feats"][:2]
    with (
        pytest.raises(ValueError, match="cap_feats must have 3 texts for the negative, got 2"),
        guide(pipe, "negative"),
    ):
        pipe(pipe.prompt)
    pipe.texts["positive"]["cap_feats"] = [torch.zeros(3)]
    with pytest.raises(ValueError, match=r"must be a list of tensors \[T, C\]"), guide(pipe, "negative"):
        pipe(pipe.prompt)
    pipe = filled("HunyuanVideo15Transformer3DModel from an image")
    with (
        pytest.raises(ValueError, match="image_embeds puts an image among them, from which it would turn away"),
        guide(pipe, "negative", rule="vsf", nag_scale=2.0),
    ):
        pipe(pipe.prompt)
    pipe = filled("HunyuanDiT2DModel")
    for name in ("encoder_hidden_states", "text_embedding_mask"):
        pipe.texts["negative"][name] = pipe.texts["negative"][name][:, :5]
    with pytest.raises(ValueError, match=r"must have 7 tokens for the negative .*got 5"), guide(pipe, "negative"):
        pipe(pipe.prompt)
    pipe = filled("BriaFiboTransformer2DModel")
    for options, message in (
        ({"pad": True}, "a text for each layer"),
        ({}, "must have 2 texts for the negative, got 1"),
    ):
        pipe.texts["negative"]["text_encoder_layers"] = pipe.texts["negative"]["text_encoder_layers"][
            : 2 - (not options)
        ]
        with pytest.raises(ValueError, match=message), guide(pipe, "negative", **options):
            pipe(pipe.prompt)
    pipe = filled("HunyuanImageTransformer2DModel of two texts")
    with pytest.raises(ValueError, match="puts several texts one after another"), guide(pipe, "negative", pad=True):
        pipe(pipe.prompt)
    pipe.texts["positive"] = pipe.texts["positive"] | dict.fromkeys(
        ("encoder_hidden_states_2", "encoder_attention_mask_2")
    )
    with (
        pytest.raises(ValueError, match="encoder_hidden_states_2 for the negative and none for"),
        guide(pipe, "negative"),
    ):
        pipe(pipe.prompt)


@pytest.mark.skipif("JoyImageEditPlusTransformer3DModel" not in TINY, reason="this diffusers has no JoyImage-Edit-Plus")
def test_images_that_are_filled_up():
    pipe = filled("JoyImageEditPlusTransformer3DModel", masked=True)
    pipe.arguments["shape_list"] = [[(1, 4, 4)], *pipe.arguments["shape_list"][1:]]
    with pytest.raises(ValueError, match=r"must fill 22 tokens .*got \[16, 22\]"), guide(pipe, "negative"):
        pipe(pipe.prompt)


# --- both routes ------------------------------------------------------------------------------------------------------

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
        pipe = filled(kind, masked=TINY[kind].seen is not None)
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


# --- the dual forward -------------------------------------------------------------------------------------------------

SLOW = "OmniGenTransformer2DModel"


@pytest.mark.parametrize("rule", ["nag", "nasa"])
@pytest.mark.parametrize(("kind", "image"), [
    ("CogView4Transformer2DModel", lambda model, arguments, length: slice(length - 16, None)),
    ("CosmosTransformer3DModel", lambda model, arguments, length: slice(0, length)),
])  # fmt: skip
def test_the_dual_forward_equals_packed_prompts(kind, image, rule, monkeypatch):
    pipe = filled(kind)
    with guide(pipe, "negative", nag_scale=3.0, rule=rule):
        wanted = pipe(pipe.prompt)
    models, twice = file_of(kind).MODELS, DualForward(("encoder_hidden_states",), image)
    monkeypatch.setitem(models, kind, dataclasses.replace(models[kind], dual_forward=twice))
    with guide(pipe, "negative", nag_scale=3.0, rule=rule):
        assert error(pipe(pipe.prompt), wanted) < 1e-5


def test_two_runs_have_the_modes_of_the_one():
    pipe, seen, threads = filled(SLOW), [], threading.active_count()
    layer = guided_layers(pipe.transformer)[0].to_q
    layer.register_forward_pre_hook(lambda *_: seen.append(
        (torch.is_inference_mode_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"))
    ))  # fmt: skip
    with guide(pipe, "negative"), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        pipe(pipe.prompt)
    assert seen == [(True, False, True)] * 2
    assert threading.active_count() == threads


@pytest.mark.parametrize("where", ["prompt", "negative", "layer"])
def test_an_error_in_either_run_ends_both(where):
    pipe, calls, threads = filled(SLOW), [], threading.active_count()
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
    pipe = filled(SLOW)
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


# --- what the generic route refuses -----------------------------------------------------------------------------------


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
    pipe = filled("CosmosTransformer3DModel")
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
    pipe = filled("CosmosTransformer3DModel")
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
    pipe = filled("CosmosTransformer3DModel")
    site = guided_layers(pipe.transformer)[0]
    plain = site.forward
    site.forward = lambda *call, **options: plain(*call, **options) + plain(*call, **options)
    with pytest.raises(RuntimeError, match="1 saw it more often"), guide(pipe, "negative"):
        pipe(pipe.prompt)


@pytest.mark.parametrize(("kind", "name"), [
    ("CogView4Transformer2DModel", "attention_mask"),
    ("AnyFlowTransformer3DModel", "encoder_hidden_states_image"),
])  # fmt: skip
def test_arguments_that_must_be_none(kind, name):
    if kind not in TINY:
        pytest.skip(f"this diffusers has no {kind}")
    pipe = filled(kind)
    pipe.arguments[name] = torch.ones(ROWS, 7)
    with (
        pytest.raises(ValueError, match=f"{name} must be None in the denoiser's calls"),
        guide(pipe, "negative"),
    ):
        pipe(pipe.prompt)


@pytest.mark.skipif(not FIRST_COSMOS3, reason="this diffusers has a newer form of Cosmos 3, or none")
def test_the_first_form_of_cosmos3_is_refused():
    with pytest.raises(ValueError, match="take a newer diffusers"):
        enable_guidance(Pipeline("CosmosTransformer3DModel", build=cosmos3), "negative")


def test_a_video_without_sound():
    """Whose layers then have nothing to do."""
    kind = "Kandinsky6Transformer3DModel"
    if kind not in TINY:
        pytest.skip("this diffusers has no Kandinsky 6")
    pipe = filled(kind, masked=True)
    pipe.arguments["audio_hidden_states"] = None
    model = pipe.transformer
    wanted, clipped = two_runs_oracle(TINY[kind], model, guided_layers(model), pipe.arguments, pipe.texts["positive"],
                                      pipe.texts["negative"], *firm(kind).values())  # fmt: skip
    assert len(clipped) == len(guided_layers(model)) / 2
    with guide(pipe, "negative", **firm(kind)):
        assert error(pipe(pipe.prompt), wanted) < 1e-5
    model.visual_transformer_blocks[1].video_dec_block.cross_attention.forward = lambda x, **_: x
    with (
        pytest.raises(RuntimeError, match=r"1 did not see it .*_blocks.1.video_dec_block.cross_attention"),
        guide(pipe, "negative"),
    ):
        pipe(pipe.prompt)


def test_keys_of_another_image():
    if not hasattr(diffusers, "GlmImageTransformer2DModel"):
        pytest.skip("this diffusers has no GLM-Image")
    from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache

    pipe = filled("GlmImageTransformer2DModel")
    caches = pipe.arguments["kv_caches"] = GlmImageKVCache(2)
    caches.set_mode("write")
    plain = pipe(pipe.prompt)
    caches.set_mode("skip")
    with guide(pipe, "negative"):
        assert error(pipe(pipe.prompt), plain) > 1e-4
    caches.set_mode("read")
    with pytest.raises(ValueError, match="as many keys as queries, 28, got 51"), guide(pipe, "negative"):
        pipe(pipe.prompt)


def test_calls_that_cannot_be_told_apart():
    """A pipeline that changes its sample in place and converts its text anew in each step."""
    pipe = filled("Kandinsky5Transformer3DModel")
    once = type(pipe).__call__

    def three_steps(self, prompt):
        for _ in range(3):
            text = self.texts[prompt[0]]
            self.texts[prompt[0]] = text | {"encoder_hidden_states": text["encoder_hidden_states"].clone()}
            out = once(self, prompt)
        return out

    pipe.__class__ = type("InPlace", (type(pipe),), {"__call__": three_steps})
    with guide(pipe, "negative"), pytest.raises(RuntimeError, match="could not be told from those for the prompt"):
        pipe(pipe.prompt)
