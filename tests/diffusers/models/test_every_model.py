# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Every model: `guide` on it alone, against two runs of the untouched model, and on its pipelines, where the conditional rows
change and no others.

The cases come from the models' own test files (every_model.py).
"""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

pytest.importorskip("diffusers")

import diffusers
from drawing import denoiser
from every_model import MODELS, PIPELINES, TINY
from oracles import two_runs_oracle
from stand_in import filled, firm, state
from test_cosmos import FIRST_COSMOS3
from tiny import error

from nag_kernels.diffusers import guide
from nag_kernels.diffusers.models.registry import all_models, guided_layers, spec_of

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

KINDS = pytest.mark.parametrize("kind", TINY)


def test_every_class_of_the_registry_has_a_tiny_model():
    tested = {kind.split()[0] for kind in TINY} | {type(build()).__name__ for build in MODELS.values()}
    missing = {kind for kind in all_models() if hasattr(diffusers, kind)} - tested
    assert missing == ({"Cosmos3OmniTransformer"} if FIRST_COSMOS3 else set())


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
    pipe = filled(TINY[kind], dtype, masked)
    plain, model = pipe(pipe.prompt), pipe.transformer
    wanted, clipped = two_runs_oracle(tiny, model, guided_layers(model), pipe.arguments, pipe.texts["positive"],
                                      pipe.texts["negative"], *firm(TINY[kind]).values())  # fmt: skip
    assert len(clipped) == len(guided_layers(model))
    assert any(0 < share < 1 for share in clipped), clipped
    with guide(pipe, "negative", **firm(TINY[kind])):
        got = pipe(pipe.prompt)
    assert error(got, wanted) < {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    assert error(wanted, plain) > 1e-3


@KINDS
def test_the_prompt_as_its_own_negative_changes_nothing(kind):
    pipe = filled(TINY[kind])
    plain = pipe(pipe.prompt)
    with guide(pipe, "positive", **firm(TINY[kind])):
        same = error(pipe(pipe.prompt), plain)
    with guide(pipe, "negative", **firm(TINY[kind])):
        other = error(pipe(pipe.prompt), plain)
    assert same < 1e-5
    assert other > 10 * same
    assert other > 1e-4


@pytest.mark.parametrize(("kind", "masked"), [
    pytest.param(kind, masked, id=f"{kind}{' masked' * masked}")
    for kind, tiny in TINY.items() for masked in [False] + [True] * (tiny.seen is not None)
])  # fmt: skip
def test_a_scale_of_one_leaves_no_trace_of_the_negative(kind, masked):
    pipe = filled(TINY[kind], masked=masked, build=TINY[kind].whole)
    plain = pipe(pipe.prompt)
    with guide(pipe, "negative", nag_scale=1 + 1e-6):
        assert error(pipe(pipe.prompt), plain) < 1e-5
    with guide(pipe, "negative", nag_scale=8.0):
        assert error(pipe(pipe.prompt), plain) > 1e-4


@KINDS
def test_everything_is_as_it_was(kind):
    pipe = filled(TINY[kind])
    plain, before = pipe(pipe.prompt), state(pipe)
    with guide(pipe, "negative", **firm(TINY[kind])):
        pipe(pipe.prompt)
    assert state(pipe) == before
    assert torch.equal(pipe(pipe.prompt), plain)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = guided_layers(pipe.transformer)[-1].register_forward_pre_hook(interrupt)
    before = state(pipe)
    with pytest.raises(KeyboardInterrupt), guide(pipe, "negative", **firm(TINY[kind])):
        pipe(pipe.prompt)
    assert state(pipe) == before
    hook.remove()
    assert torch.equal(pipe(pipe.prompt), plain)


@KINDS
def test_refusals(kind):
    pipe = filled(TINY[kind])
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in COMPILED if kind in TINY])
def test_compiled_models(kind):
    """In one graph without guidance and one with it, whatever the settings; a new run compiles nothing."""
    torch._dynamo.reset()
    pipe = filled(TINY[kind])
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


@pytest.mark.parametrize("kind", [kind for kind in TINY if "Chroma" in kind or "ZImage" in kind or "LTX2" in kind
                                  or "HunyuanVideoT" in kind or "SkyReels" in kind or "ChronoEdit" in kind
                                  or "WanAnimateT" in kind])  # fmt: skip
def test_drop_in_processors_without_a_negative_are_the_stock_ones(kind):
    pipe = filled(TINY[kind], masked=TINY[kind].seen is not None)
    plain = pipe(pipe.prompt)
    ours = spec_of(pipe.transformer).processors
    replaced = [x for x in pipe.transformer.modules() if type(getattr(x, "processor", None)) in ours]
    assert len(replaced) >= len(guided_layers(pipe.transformer))  # and those between video and sound, and so on
    for layer in replaced:
        layer.processor = ours[type(layer.processor)](nag_scale=5.0)
    assert torch.equal(pipe(pipe.prompt), plain)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("kind", PIPELINES)
def test_pipeline(kind, guidance_scale):
    tiny = PIPELINES[kind]
    pipe, call, prompt, negative = tiny()
    pipe.set_progress_bar_config(disable=True)
    # A pyramid has steps of its own, and a video of a certain strength leaves the first one out.
    steps = 3 if kind in ("helios in a pyramid", "wan from a video") else 2
    call |= {
        tiny.scale: tiny.scales[guidance_scale > 1],
        "num_inference_steps": steps,
        "output_type": "latent",
    }
    if "pyramid_num_inference_steps_list" in call:
        del call["num_inference_steps"]
    if hasattr(pipe, "guider"):
        del call["guidance_scale"]
        pipe.guider.enable() if guidance_scale > 1 else pipe.guider.disable()
    if guidance_scale == 1:
        call = {name: x for name, x in call.items() if name == "negative_prompt" or not name.startswith("negative_")}
    outputs = []

    def note(model, inputs, output):
        sample = output if isinstance(output, torch.Tensor) else output[0]
        if sample is not None:  # else it only keeps keys and values
            outputs[-1].append(torch.stack(sample) if isinstance(sample, list) else sample)

    def draw():
        outputs.append([])
        torch.manual_seed(7)  # some encode an image without their generator
        latents = pipe(**call, **prompt, generator=torch.Generator().manual_seed(7), return_dict=False)[0]
        return latents[-1] if isinstance(latents, list) else latents  # of all parts

    denoiser(pipe).register_forward_hook(note)
    plain = draw()
    own = prompt.get("prompt", prompt)
    # Classifier-free guidance draws s conditional - (s - 1) unconditional, and the rounding of both with them.
    rounding = 2e-5 * (2 * guidance_scale - 1)
    with guide(pipe, own, nag_scale=8.0, nag_tau=2.0, nag_alpha=0.5):
        assert error(draw(), plain) < rounding
    with guide(pipe, negative, nag_scale=8.0, nag_tau=2.0, nag_alpha=0.5):
        assert error(draw(), plain) > 1e-3
    assert torch.equal(draw(), plain)

    # What the first step gave: its conditional rows differ, its unconditional ones do not.
    stock, _, guided, _ = outputs
    assert len({len(x) for x in outputs}) == 1
    two_calls = len(stock) > steps * tiny.runs
    assert two_calls == (guidance_scale > 1 and tiny.two_calls)
    if two_calls:
        assert error(guided[0][0], stock[0][0]) > 1e-3
        assert error(guided[1], stock[1]) < 1e-5
    elif guidance_scale > 1 and tiny.cfg_rows:
        guided, stock = (x[0].chunk(tiny.cfg_rows) for x in (guided, stock))
        conditional = 0 if tiny.prompt_first else tiny.cfg_rows - 1
        for i in range(tiny.cfg_rows):
            assert error(guided[i], stock[i]) > 1e-3 if i == conditional else error(guided[i], stock[i]) < 1e-5
