# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What `guide` refuses: whatever it cannot do."""

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import DDPMPipeline, DDPMScheduler, PixArtAlphaPipeline, UNet2DModel
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor,
    XFormersAttnProcessor,
)
from drawing import denoiser, draw
from every_model import FULL_PIPELINES, pipeline, ready_made_pipeline
from pipeline_parts import NEGATIVE
from test_guide_afterwards import state

from nag_kernels.diffusers import disable_guidance, enable_guidance, guide, run, supported
from nag_kernels.diffusers.models import registry

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = pytest.mark.parametrize("kind", FULL_PIPELINES)


# --- refusals when guidance is enabled --------------------------------------------------------------------------------


@pytest.mark.parametrize(("negative", "error_type", "message"), [
    (None, ValueError, "no negative text to steer away from: negative_prompt is None"),
    ([], ValueError, r"no negative text to steer away from: negative_prompt is \[\]"),
    ({}, ValueError, "no negative text"),
    (3, TypeError, "must be a text, a list of texts or a mapping of ready-made text, got int"),
    (["a", None], TypeError, "got list"),
])  # fmt: skip
def test_no_negative_text(negative, error_type, message):
    with pytest.raises(error_type, match=message), guide(pipeline("pixart"), negative):
        pass


@pytest.mark.parametrize(("settings", "message"), [
    ({"nag_scale": float("inf")}, "nag_scale must be finite, got inf"),
    ({"nag_tau": 0.0}, r"nag_tau must be above 0 \(inf is no clip\), got 0"),
    ({"nag_alpha": -0.5}, "nag_alpha must be between 0 and 1, got -0.5"),
    ({"rule": "cfg"}, "rule must be 'nag', 'nasa' or 'vsf', got 'cfg'"),
    ({"rule": "vsf"}, "nag_scale must be given for rule 'vsf': the published ones differ by prompt"),
    ({"negative_logit_bias": -0.2}, "negative_logit_bias must be finite, and 0 but for rule 'vsf', got -0.2"),
    ({"rule": "vsf", "nag_scale": 2.0, "negative_logit_bias": float("nan")}, "0 but for rule 'vsf', got nan"),
    ({"rule": "nasa"}, "nag_scale must be given for rule 'nasa': none is published for this SD3Transformer2DModel"),
    ({"start": 0.5, "end": 0.5}, "0 <= start < end <= 1, got 0.5 and 0.5"),
    ({"end": 1.5}, "got 0 and 1.5"),
    ({"start": -0.1}, "got -0.1 and 1"),
])  # fmt: skip
def test_settings_out_of_range(settings, message):
    pipe = pipeline("sd3")
    with pytest.raises(ValueError, match=message), guide(pipe, NEGATIVE, **settings):
        pass
    assert type(pipe).__name__ == "StableDiffusion3Pipeline"


@pytest.mark.parametrize("processor", [
    AttnProcessor, XFormersAttnProcessor, lambda: IPAdapterAttnProcessor(16, 32),
    type("SubclassOfTheStock", (AttnProcessor2_0,), {}),
])  # fmt: skip
def test_unknown_processors(processor):
    pipe = pipeline("sd15")
    site = pipe.unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2
    site.set_processor(processor())
    name = type(site.processor).__name__
    message = (
        rf"at UNet2DConditionModel.up_blocks.1.attentions.0.*attn2 is {name}, which is not known: guidance needs Attn"
    )
    with pytest.raises(ValueError, match=message):
        enable_guidance(pipe, NEGATIVE)


def test_attention_slicing_also_when_it_comes_later():
    pipe = pipeline("sd15")
    pipe.enable_attention_slicing()
    with pytest.raises(ValueError, match=r"SlicedAttnProcessor, which is not known.*Disable attention slicing"):
        enable_guidance(pipe, NEGATIVE)
    pipe.disable_attention_slicing()
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    with guide(pipe, NEGATIVE):
        draw(pipe)
        pipe.enable_attention_slicing()
        with pytest.raises(ValueError, match="SlicedAttnProcessor"):
            draw(pipe)


def test_the_table_and_the_docs_know_every_family():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()  # tests/docs/test_site.py compares all of it
    for name, spec in registry.all_models().items():
        assert any(line.startswith(name + " ") for line in supported().splitlines()), name
        assert f"| `{name}` | {spec.route} |" in page, name


@pytest.mark.slow
def test_versions_of_diffusers_that_are_too_old():
    code = "import diffusers; diffusers.__version__ = '0.36.1'; import nag_kernels.diffusers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError: nag_kernels.diffusers needs diffusers 0.37 or newer, found 0.36.1" in done.stderr
    pyproject, makefile = ((Path(__file__).parents[2] / name).read_text() for name in ("pyproject.toml", "Makefile"))
    assert "diffusers>=0.37" in pyproject
    assert "diffusers==0.37." in makefile


def test_the_version_in_the_table_is_the_pinned_one():
    pins = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    assert f"diffusers=={registry.TESTED_WITH}" in pins
    assert all(line.endswith(registry.TESTED_WITH) for line in supported().splitlines()[1:])


def test_unsupported_denoisers():
    unet = UNet2DModel(sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1,
                       down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))  # fmt: skip
    with pytest.raises(
        ValueError,
        match="UNet2DModel is not supported; supported denoisers: UNet2DConditionModel, UNetMotionModel, PixArt",
    ):
        enable_guidance(DDPMPipeline(unet=unet, scheduler=DDPMScheduler()), NEGATIVE)
    with pytest.raises(ValueError, match="has no denoiser"):
        enable_guidance(lambda: None, NEGATIVE)
    with pytest.raises(TypeError, match="must be a diffusers pipeline, got int"):
        enable_guidance(3, NEGATIVE)
    pipe = pipeline("sd15")
    pipe.unet.register_to_config(addition_embed_type="text")
    with pytest.raises(ValueError, match="addition_embed_type 'text' reads the text outside attention"):
        enable_guidance(pipe, NEGATIVE)
    pipe.unet.register_to_config(addition_embed_type=None, encoder_hid_dim_type="image_proj")
    with pytest.raises(ValueError, match="encoder_hid_dim_type 'image_proj' changes the text"):
        enable_guidance(pipe, NEGATIVE)


def test_pipelines_of_perturbed_attention():
    pipe = pipeline("sd15")
    pipe.__class__ = type("Perturbed", (type(pipe),), {"do_perturbed_attention_guidance": True})
    with pytest.raises(ValueError, match="Perturbed is not supported: perturbed attention has a batch of its own"):
        enable_guidance(pipe, NEGATIVE)


@KINDS
def test_another_number_of_sites(kind):
    pipe = pipeline(kind)
    expected = registry.spec_of(denoiser(pipe)).layer_count(denoiser(pipe))
    site = registry.guided_layers(denoiser(pipe))[0]
    site.__class__ = torch.nn.Module  # no longer an attention layer
    with pytest.raises(ValueError, match=f"has {expected - 1} attention layers that see text, expected {expected}"):
        enable_guidance(pipe, NEGATIVE)


def test_a_cache_of_steps():
    pipe = pipeline("wan")
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match=r"its cache \(FirstBlockCacheConfig\) would carry steps .*disable_cache"):
        enable_guidance(pipe, NEGATIVE)
    pipe.transformer.disable_cache()
    with guide(pipe, NEGATIVE):
        draw(pipe)


def test_a_modular_pipeline_without_a_denoiser():
    with pytest.raises(
        ValueError, match=r"ModularPipeline has no denoiser .*a modular pipeline has it after load_components"
    ):
        enable_guidance(diffusers.ModularPipeline(blocks=diffusers.ModularPipelineBlocks()), NEGATIVE)


def test_a_context_that_is_not_known():
    pipe = pipeline("wan")
    step = pipe.scheduler.step

    def step_in_context(*args, **kwargs):
        with pipe.transformer.cache_context("pred_cond_skip"):
            return step(*args, **kwargs)

    pipe.scheduler.step = step_in_context
    with guide(pipe, NEGATIVE), pytest.raises(RuntimeError, match="calls its denoiser for 'pred_cond_skip'"):
        draw(pipe)


def test_an_argument_that_would_change_attention(monkeypatch):
    plain = run.denoiser_arguments
    monkeypatch.setattr(run, "denoiser_arguments", lambda *call: plain(*call) | {"kv_cache_mode": "extract"})
    pipe, call = ready_made_pipeline("flux2")
    text = {"prompt_embeds": torch.randn(1, 9, 32)}
    with guide(pipe, text), pytest.raises(ValueError, match=r"kv_cache_mode must be None .*'extract'"):
        pipe(**call, **text)


def test_two_denoisers_of_different_kinds():
    pipe = pipeline("wan")
    pipe.register_modules(transformer_2=pipeline("flux").transformer)
    with pytest.raises(ValueError, match="of one kind, got WanTransformer3DModel and FluxTransformer2DModel"):
        enable_guidance(pipe, NEGATIVE)


def test_nesting():
    pipe = pipeline("pixart")
    enable_guidance(pipe, NEGATIVE)
    with pytest.raises(RuntimeError, match="enabled already on this PixArtAlphaPipeline"):
        enable_guidance(pipe, "x")
    with pytest.raises(RuntimeError, match="enabled already"), guide(pipe, "x"):
        pass
    draw(pipe)
    disable_guidance(pipe)
    with pytest.raises(RuntimeError, match="not enabled on this PixArtAlphaPipeline"):
        disable_guidance(pipe)


@pytest.mark.parametrize("name", ["start", "end", "sigma_end"])
def test_a_window_that_is_text(name):
    with pytest.raises(TypeError, match=rf"{name} must be a number, got '0.5' \(str\); write {name}=0.5"):
        enable_guidance(pipeline("pixart"), NEGATIVE, **{name: "0.5"})


def test_a_pipeline_twice_in_a_list():
    pipe = pipeline("pixart")
    with pytest.raises(ValueError, match="a list of pipelines must have each of them once"):
        guide([pipe, pipe], NEGATIVE)


@pytest.mark.parametrize("scale", [0, 0.99, -3.0])
def test_a_scale_that_would_draw_the_negative(scale):
    with pytest.raises(ValueError, match=r"nag_scale must be at least 1 for rule 'nag', got .* less would draw it"):
        enable_guidance(pipeline("pixart"), NEGATIVE, nag_scale=scale)
    with guide(pipeline("pixart"), NEGATIVE, nag_scale=0.25, rule="nasa") as pipe:
        draw(pipe)


def test_what_is_no_pipeline():
    with pytest.raises(TypeError, match="got the class PixArtAlphaPipeline; give the loaded pipeline itself"):
        enable_guidance(PixArtAlphaPipeline, NEGATIVE)
    with pytest.raises(TypeError, match="got a model, PixArtTransformer2DModel; for that write"):
        enable_guidance(pipeline("pixart").transformer, NEGATIVE)


# --- refusals when the pipeline is called -----------------------------------------------------------------------------


def refused(pipe, error_type, message, negative=NEGATIVE, settings=None, **options):
    before = state(pipe)
    with pytest.raises(error_type, match=message), guide(pipe, negative, **(settings or {})):
        draw(pipe, **options)
    assert {**state(pipe), "pipeline": None, "random": None} == {**before, "pipeline": None, "random": None}


def test_texts_that_do_not_fit():
    pipe = pipeline("pixart")
    refused(pipe, ValueError, "must be one text or 1 like prompt, got 2", negative=["a", "b"])
    refused(pipe, ValueError, "needs prompt or prompt_embeds, got neither", prompt=None)
    embeds = torch.randn(1, 12, 32)
    refused(pipe, ValueError, "takes no ready-made text named text", negative={"text": embeds})
    refused(pipe, ValueError, "takes no ready-made text named height", negative={"height": embeds})
    refused(pipe, TypeError, "'prompt_embeds'.* must be a tensor, got str", negative={"prompt_embeds": "x"})
    refused(pipe, ValueError, "must have batch 1 or 1, got 3", negative={"prompt_embeds": torch.randn(3, 12, 32)})
    pipe = pipeline("sd15")
    refused(
        pipe,
        ValueError,
        r"of the negative must be \(1, 9, 32\) .*got \(1, 9, 8\)",
        negative={"prompt_embeds": torch.randn(1, 9, 8)},
    )


def test_masks_that_weigh_tokens():
    ready = {"prompt": None, "prompt_embeds": torch.randn(1, 12, 32), "prompt_attention_mask": torch.full((1, 12), 0.5)}
    refused(pipeline("pixart"), ValueError, "encoder_attention_mask must be plain yes or no", **ready)
    gap = torch.tensor([[1.0] * 3 + [0.0] + [1.0] * 8])
    refused(pipeline("pixart"), ValueError, "padding at the end", settings={"pad": True},
            **ready | {"prompt_attention_mask": gap})  # fmt: skip


def test_guidance_that_did_not_act():
    pipe = pipeline("pixart")

    class Cached(type(pipe)):
        drawn = ()

        def __call__(self, prompt=None, **kwargs):
            return self.drawn if prompt in self.words else super().__call__(prompt=prompt, **kwargs)

    pipe.__class__, Cached.drawn = Cached, types.SimpleNamespace(images=None)
    Cached.words = (NEGATIVE,)
    refused(pipe, RuntimeError, "finished without calling its PixArtTransformer2DModel: guidance cannot act")
    Cached.words = ("a small red cat",)
    refused(pipe, RuntimeError, "Cached never called its PixArtTransformer2DModel: guidance did not act")
    Cached.words = ()
    refused(pipe, RuntimeError, "no step fell between start 0.6 and end 0.7: .* the call had 4 steps",
            settings={"start": 0.6, "end": 0.7})  # fmt: skip


def test_layers_that_do_not_see_the_text_once():
    pipe = pipeline("pixart")
    blocks = pipe.transformer.transformer_blocks
    second = blocks[1].forward
    blocks[1].forward = lambda hidden_states, **kwargs: hidden_states
    refused(
        pipe,
        RuntimeError,
        r"each of 2 attention layers .* 1 did not see it and 0 saw it more.*_blocks\.1\.attn2 \(0\)$",
    )
    blocks[1].forward = lambda hidden_states, **kwargs: second(second(hidden_states, **kwargs), **kwargs)
    refused(pipe, RuntimeError, r"0 did not see it and 1 saw it more often.* transformer_blocks\.1\.attn2 \(2\)$")


def test_batches_that_are_not_known():
    pipe = pipeline("sd3")
    refused(pipe, ValueError, "called with 2 and then 1 texts in one step", guidance_scale=3.0,
            skip_guidance_layers=[1], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0)  # fmt: skip
    pipe = pipeline("sd15")
    encode = pipe.encode_prompt
    pipe.encode_prompt = lambda *a, **k: tuple(None if x is None else x.repeat(3, 1, 1) for x in encode(*a, **k))
    refused(pipe, ValueError, "batch of 3 texts for 1 images; guidance knows 1, and 2 for classifier-free guidance")
    pipe.encode_prompt = lambda *a, **k: tuple(None if x is None else x.repeat(2, 1, 1) for x in encode(*a, **k))
    refused(pipe, ValueError, "batch of 2 texts for 1 images; .* guidance_scale turns off", guidance_scale=1.0)


def test_pad_where_the_unconditional_text_cannot_be_kept():
    pipe, short = pipeline("sd3"), torch.randn(1, 5, 64)
    pooled = {"pooled_prompt_embeds": torch.randn(1, 48), "negative_pooled_prompt_embeds": torch.randn(1, 48)}
    refused(pipe, ValueError, "pad cannot lengthen the prompt's 5 tokens to the negative's 28", settings={"pad": True},
            guidance_scale=3.0, prompt=None, prompt_embeds=short, negative_prompt_embeds=short, **pooled)  # fmt: skip


def test_ready_made_text_under_the_name_of_the_unconditional_one():
    refused(pipeline("pixart"), ValueError, r"has the key negative_prompt_embeds; .*write \{'prompt_embeds': ...\}",
            negative={"negative_prompt_embeds": torch.randn(1, 12, 32)})  # fmt: skip


def test_text_without_text_encoders():
    pipe = pipeline("flux")
    ready = dict(zip(("prompt_embeds", "pooled_prompt_embeds"), pipe.encode_prompt("a cat", None), strict=False))
    pipe.text_encoder = pipe.text_encoder_2 = pipe.tokenizer = pipe.tokenizer_2 = None
    call = {"prompt": None, "negative_prompt": None, **ready}
    message = r"has no text encoder \(text_encoder, text_encoder_2: None\): give ready-made text"
    refused(pipe, ValueError, message, **call)
    with guide(pipe, ready):
        draw(pipe, **call)


def test_a_cancelled_call_ends_quietly():
    pipe = pipeline("sd3")

    def cancel(pipe, step, timestep, values):
        pipe._interrupt = True
        return values

    plain = draw(pipe, callback_on_step_end=cancel)
    with guide(pipe, NEGATIVE, start=0.5):
        assert torch.equal(draw(pipe, callback_on_step_end=cancel), plain)


@pytest.mark.parametrize("of", ["the negative", "the prompt"])
def test_a_call_that_is_cancelled_while_texts_are_encoded_ends_quietly(of):
    """After one step at most; it is plain where the negative was not known yet."""
    pipe, calls = pipeline("sd3"), []
    encode = pipe.encode_prompt

    def cancelling(prompt, *args, **options):
        if (prompt in (NEGATIVE, [NEGATIVE])) == (of == "the negative"):
            pipe._interrupt = True
        return encode(prompt, *args, **options)

    pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    pipe.encode_prompt = cancelling
    with guide(pipe, NEGATIVE):
        draw(pipe)
    assert len(calls) <= 1
    pipe.encode_prompt = encode
    with guide(pipe, NEGATIVE):
        draw(pipe)
    assert len(calls) > 3
