# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`guide` on real pipelines: how prompt and negative are encoded, ready-made and padded, and how long they are kept."""

import pytest
import torch

pytest.importorskip("diffusers")

from drawing import denoiser_texts, draw, draw_with_oracle, negative_of
from every_model import pipeline, ready_made_pipeline
from pipeline_parts import NEGATIVE
from tiny import error

from nag_kernels.diffusers import guide
from nag_kernels.diffusers import run as guided_run
from nag_kernels.diffusers.models.registry import find_denoisers, guided_layers

pytestmark = pytest.mark.usefixtures("one_thread")

FIRM = {"nag_scale": 8.0, "nag_tau": 3.0, "nag_alpha": 0.5}  # the clip fires on a part of the tokens
STEERING = {"scale": 8.0, "tau": 3.0, "alpha": 0.5}


@pytest.mark.parametrize(("kind", "options", "own"), [
    ("sdxl", {"clip_skip": 1, "prompt_2": "a green hat"}, {"clip_skip": 1}),
    ("sd3", {"clip_skip": 1, "prompt_2": "a hat", "prompt_3": "green"}, {"clip_skip": 1}),
    ("pixart", {"max_sequence_length": 5}, {"max_sequence_length": 5}),
])  # fmt: skip
def test_the_negative_is_encoded_with_the_arguments_of_the_call(kind, options, own):
    pipe = pipeline(kind)
    wanted, _ = draw_with_oracle(pipe, 1, negative_of(pipe, **own), **STEERING, **options)
    other, _ = draw_with_oracle(pipe, 1, negative_of(pipe), **STEERING, **options)
    with guide(pipe, NEGATIVE, **FIRM):
        got = draw(pipe, **options)
    assert error(got, wanted) < 2e-5
    assert error(got, other) > 1e-4


def test_a_prompt_that_is_masked_altogether():
    pipe = pipeline("pixart")
    texts = denoiser_texts(pipe)
    options = {"prompt": None, "prompt_embeds": texts["encoder_hidden_states"]}
    options["prompt_attention_mask"] = torch.zeros_like(texts["encoder_attention_mask"])
    plain = draw(pipe, **options)
    with guide(pipe, NEGATIVE, nag_scale=1 + 1e-6):
        assert error(draw(pipe, **options), plain) < 1e-4  # float32 beside a bias of -10000


@pytest.mark.parametrize("length", [5, 29])
def test_texts_of_unequal_length(length):
    pipe = pipeline("sd15")
    embeds = torch.randn(1, length, 32, generator=torch.Generator().manual_seed(1))
    options = {"prompt": None, "prompt_embeds": embeds}
    recorded = negative_of(pipe)
    assert recorded["encoder_hidden_states"].shape[1] == 16
    wanted, clipped = draw_with_oracle(pipe, 1, recorded, 8.0, 8.0, 0.5, **options)
    assert any(0 < share < 1 for share in clipped), clipped
    with guide(pipe, NEGATIVE, nag_scale=8, nag_tau=8, nag_alpha=0.5):
        assert error(draw(pipe, **options), wanted) < 2e-5


@pytest.mark.parametrize("kind", ["flux", "wan", "ltx", "sana"])
def test_ready_made_text_for_several_images(kind):
    pipe = pipeline(kind)
    recorded = negative_of(pipe, num_images_per_prompt=2)
    with guide(pipe, NEGATIVE, **FIRM):
        wanted = draw(pipe, num_images_per_prompt=2)
    ready = {"prompt_embeds": recorded["encoder_hidden_states"][:1]}
    if kind == "flux":
        ready["pooled_prompt_embeds"] = recorded["pooled_projections"][:1]
    if "encoder_attention_mask" in recorded:
        ready["prompt_attention_mask"] = recorded["encoder_attention_mask"][:1]
    with guide(pipe, ready, **FIRM):
        assert error(draw(pipe, num_images_per_prompt=2), wanted) < 1e-5


@pytest.mark.parametrize("with_cfg", [False, True], ids=["alone", "with cfg"])
@pytest.mark.parametrize("kind", ["flux2", "qwen"])
def test_pipelines_whose_text_encoders_are_too_large_here(kind, with_cfg):
    pipe, call = ready_made_pipeline(kind)
    rows = torch.randn(3, 2, 9, 32, generator=torch.Generator().manual_seed(0))
    lengths = (9, 6, 4)
    prompt, negative, unconditional = ({"prompt_embeds": x[:, :n]} for x, n in zip(rows, lengths, strict=True))
    if kind == "qwen":  # which drops a mask of ones: here the negative alone has one
        prompt["prompt_embeds_mask"] = torch.ones(2, 9, dtype=torch.long)
        negative["prompt_embeds_mask"] = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    if with_cfg:
        call |= {"guidance_scale" if kind == "flux2" else "true_cfg_scale": 3.0}
        call |= {f"negative_{name}": x for name, x in unconditional.items()}
        if kind == "qwen":
            call["negative_prompt_embeds_mask"] = torch.ones(2, 4, dtype=torch.long)

    def draw_it(text=prompt):
        return pipe(**call, **text, generator=torch.Generator().manual_seed(1)).images

    plain = draw_it()
    with guide(pipe, prompt, nag_scale=8.0, nag_tau=1.0, nag_alpha=1.0):
        assert error(draw_it(), plain) < 2e-5
    with guide(pipe, negative, **FIRM):
        guided = draw_it()
        assert error(guided, plain) > 1e-3
    if kind == "qwen":  # what the mask hides must not matter
        changed = negative["prompt_embeds"].clone()
        changed[1, 3:] = 7.0
        with guide(pipe, negative | {"prompt_embeds": changed}, **FIRM):
            assert torch.equal(draw_it(), guided)
    assert torch.equal(draw_it(), plain)


@pytest.mark.parametrize("kind", ["sdxl", "pixart", "sd3"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
def test_ready_made_text(kind, guidance_scale):
    pipe = pipeline(kind)
    with guide(pipe, NEGATIVE, **FIRM):
        wanted = draw(pipe, guidance_scale=guidance_scale)
    recorded = negative_of(pipe)
    ready = {"prompt_embeds": recorded["encoder_hidden_states"]}
    if kind == "pixart":
        ready["prompt_attention_mask"] = recorded["encoder_attention_mask"]
    elif kind == "sdxl":
        ready["pooled_prompt_embeds"] = recorded["added_cond_kwargs"]["text_embeds"]
    else:
        ready["pooled_prompt_embeds"] = recorded["pooled_projections"]
    with guide(pipe, ready, **FIRM):
        assert error(draw(pipe, guidance_scale=guidance_scale), wanted) < 1e-6


@pytest.mark.parametrize("negative_prompt", ["", "a b"])
def test_a_ready_made_prompt_and_a_text_for_a_negative(negative_prompt):
    pipe = pipeline("pixart")
    options = {"guidance_scale": 3.0, "prompt": ["a cat", "two birds"]}
    with guide(pipe, NEGATIVE, **FIRM):
        wanted = draw(pipe, negative_prompt=negative_prompt, **options)
    texts = denoiser_texts(pipe, **options | {"negative_prompt": negative_prompt})
    embeds, masks = texts["encoder_hidden_states"].chunk(2), texts["encoder_attention_mask"].chunk(2)
    options |= {"prompt": None, "prompt_embeds": embeds[1], "prompt_attention_mask": masks[1]}
    with guide(pipe, NEGATIVE, **FIRM):
        assert error(draw(pipe, negative_prompt=negative_prompt, **options), wanted) < 1e-6
        ready = {"negative_prompt_embeds": embeds[0], "negative_prompt_attention_mask": masks[0]}
        assert error(draw(pipe, negative_prompt=None, **options, **ready), wanted) < 1e-6


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("negative", ["blue", "a b c d e f g"], ids=["shorter", "longer"])
def test_pad_brings_the_shorter_text_to_the_length_of_the_longer(negative, guidance_scale):
    pipe = pipeline("pixart")
    options = {"guidance_scale": guidance_scale}
    recorded = negative_of(pipe, negative, **options)
    lengths = [
        denoiser_texts(pipe, **options)["encoder_attention_mask"][-1].sum(),
        recorded["encoder_attention_mask"][-1].sum(),
    ]
    longer = max(int(x) for x in lengths)
    recorded["encoder_attention_mask"] = (torch.arange(12) < longer).long().expand(2, -1)
    if negative != "blue":  # the oracle's prompt must be lengthened by hand as well
        embeds = denoiser_texts(pipe, **options)["encoder_hidden_states"]
        mask = (torch.arange(12) < longer).long()[None]
        wanted_options = {"prompt": None, "prompt_embeds": embeds[-1:], "prompt_attention_mask": mask}
        if guidance_scale > 1:
            wanted_options |= {"negative_prompt": ""}
    else:
        wanted_options = {}
    wanted, _ = draw_with_oracle(pipe, 1, recorded, **STEERING, **options | wanted_options)
    with guide(pipe, negative, pad=True, **FIRM):
        got = draw(pipe, **options)
    assert error(got, wanted) < 2e-5
    with guide(pipe, negative, **FIRM):
        assert error(draw(pipe, **options), got) > 1e-4


def test_pad_without_masks_adds_zeros():
    pipe = pipeline("sd15")
    embeds = torch.randn(1, 29, 32, generator=torch.Generator().manual_seed(1))
    ready = {"prompt_embeds": torch.nn.functional.pad(negative_of(pipe)["encoder_hidden_states"], (0, 0, 0, 13))}
    with guide(pipe, ready, **FIRM):
        wanted = draw(pipe, prompt=None, prompt_embeds=embeds)
    with guide(pipe, NEGATIVE, pad=True, **FIRM):
        assert torch.equal(draw(pipe, prompt=None, prompt_embeds=embeds), wanted)


def test_pad_leaves_the_unconditional_text_alone():
    pipe = pipeline("sd15")
    short = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    options = {"prompt": None, "guidance_scale": 3.0}
    with guide(pipe, NEGATIVE, pad=True, nag_scale=8, nag_alpha=0):  # so all that is left is the longer prompt
        got = draw(pipe, prompt_embeds=short[:1], negative_prompt_embeds=short[1:], **options)
    longer = torch.nn.functional.pad(short, (0, 0, 0, 11))
    mask, forward = torch.arange(16) < torch.tensor([[5], [16]]), pipe.unet.forward
    pipe.unet.forward = lambda *args, **kwargs: forward(*args, **kwargs, encoder_attention_mask=mask)
    wanted = draw(pipe, prompt_embeds=longer[:1], negative_prompt_embeds=longer[1:], **options)
    assert error(got, wanted) < 2e-5


def calls_of_to_k(pipe):
    """How often the first guided layer projects the texts, counted from now on. By a class, as a hook might change what comes
    out, and then nothing is kept."""
    layer, calls = guided_layers(find_denoisers(pipe)[0])[0], []

    class Linear(type(layer.to_k)):
        def forward(self, text):
            calls.append(text.shape[1])
            return super().forward(text)

    Linear.__module__ = torch.nn.Linear.__module__
    layer.to_k.__class__ = Linear
    return calls


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("kind", ["sd15", "sdxl", "pixart", "sana", "sana sprint"])
def test_texts_are_projected_once_a_run(kind, guidance_scale, monkeypatch):
    pipe = pipeline(kind)
    with monkeypatch.context() as patch:
        patch.setattr(guided_run.GuidedRun, "_keep_texts", lambda self, *texts: None)
        with guide(pipe, NEGATIVE, **FIRM):
            calls = calls_of_to_k(pipe)
            wanted = draw(pipe, guidance_scale=guidance_scale)
            assert len(calls) > 1
    with guide(pipe, NEGATIVE, **FIRM):
        calls.clear()
        assert torch.equal(draw(pipe, guidance_scale=guidance_scale), wanted)
        assert len(calls) == 1
        calls.clear()
        assert not torch.equal(draw(pipe, "a dog", guidance_scale=guidance_scale), wanted)
        assert len(calls) == 1


def test_a_text_that_changes_within_a_run_is_projected_again(monkeypatch):
    """As where a pipeline ends classifier-free guidance on the way, or blends prompts."""
    pipe = pipeline("pixart")
    arguments_of, others = guided_run.denoiser_arguments, []

    def with_another_text(*call):
        arguments = arguments_of(*call)
        others.append(
            others[-1] if len(others) % 2 else 2.0 * arguments["encoder_hidden_states"]
        )  # anew in steps 1 and 3
        return arguments | {"encoder_hidden_states": others[-1]}

    monkeypatch.setattr(guided_run, "denoiser_arguments", with_another_text)
    calls = calls_of_to_k(pipe)
    with guide(pipe, NEGATIVE, **FIRM):
        draw(pipe, num_inference_steps=4)
    assert len(calls) == 2


def test_what_a_callback_changes_is_seen_by_the_next_step():
    """A change of weights, as of a LoRA's share, and of the text in place."""
    pipe = pipeline("pixart")
    layer = guided_layers(pipe.transformer)[0]
    kept = layer.to_k.weight.detach().clone()

    def change(step, timestep, latents):
        with torch.no_grad():
            layer.to_k.weight.mul_(-1.0)

    calls = calls_of_to_k(pipe)
    with guide(pipe, NEGATIVE, **FIRM):
        plain = draw(pipe)
        calls.clear()
        changed = draw(pipe, callback=change)
        assert len(calls) == 4
        assert torch.equal(layer.to_k.weight, kept)
    assert error(changed, plain) > 1e-4


def test_nothing_is_kept_where_gradients_are_taken():
    pipe = pipeline("sd15")
    calls = calls_of_to_k(pipe)
    call = type(pipe).__call__.__wrapped__  # without no_grad

    class Trained(type(pipe)):
        __call__ = call

    pipe.__class__ = Trained
    with guide(pipe, NEGATIVE, **FIRM):
        draw(pipe)
    assert len(calls) == 4


@pytest.mark.parametrize("settings", [{}, {"end": 0.5}, {"nag_scale": 1.0}])
def test_an_encoder_that_ignores_its_text(settings):
    pipe = pipeline("sd15")
    texts = pipe.encode_prompt("a house", "cpu", 1, False)
    pipe.encode_prompt = lambda *args, **options: texts
    message = (
        "called its denoiser with a text that does not change with the prompt: .* Look whether its encode_prompt uses"
    )
    with pytest.raises(RuntimeError, match=message), guide(pipe, NEGATIVE, **settings):
        draw(pipe)
