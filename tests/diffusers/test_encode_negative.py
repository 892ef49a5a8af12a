# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`encode_negative`: a negative's ready-made text draws what the text draws, to the bit, in any pipeline that takes such text."""

import pytest
import torch

pytest.importorskip("diffusers")

from drawing import call_of, draw
from every_model import EXAMPLES, FULL_PIPELINES, pipeline
from pipeline_parts import NEGATIVE

from nag_kernels.diffusers import disable_guidance, enable_guidance, encode_negative, guide, guided
from nag_kernels.shapes.loading import load_model

pytestmark = pytest.mark.usefixtures("one_thread")

# Of the tiny pipelines of `EXAMPLES` that are given their prompt as text: under which names the ready-made negative comes, and a
# part of the message where there is none.
READY_MADE = {
    "animatediff": {"prompt_embeds"},
    "animatediff xl": {"prompt_embeds", "pooled_prompt_embeds"},
    "flux fill": {"prompt_embeds", "pooled_prompt_embeds"},
    "chroma": {"prompt_embeds", "prompt_attention_mask"},
    "framepack": {"prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask"},
    "ltx from an image": {"prompt_embeds", "prompt_attention_mask"},
    "stable audio": {"prompt_embeds"},
    "modelscope": {"prompt_embeds"},
    "i2vgen-xl": {"prompt_embeds"},
    "kandinsky 3": {"prompt_embeds", "attention_mask"},
    "controlnet xs": {"prompt_embeds"},
    "sana wm": "does not call its SanaWMTransformer3DModel with the same text",
    "ltx of several prompts": "no ready-made text can be read from a call of LTXI2VLongMultiPromptPipeline",
    "joy image edit plus": "does not call its JoyImageEditPlusTransformer3DModel with the same text",
    "amused": "does not call its UVit2DModel with the same text",
    "cosmos 3": "takes no ready-made text",
    "ace step": "takes no ready-made text",
    "dreamlite": "takes no ready-made text",
}


def encoded(pipe, negative=NEGATIVE, **options):
    """With the arguments with which `draw` calls the pipeline."""
    call = call_of(pipe, **options)
    return encode_negative(
        pipe, negative, **{name: x for name, x in call.items() if name not in ("prompt", "generator")}
    )


@pytest.mark.parametrize("kind", READY_MADE)
def test_pipelines_that_take_ready_made_text(kind):
    pipe, call, prompt, negative = EXAMPLES[kind]()
    call = {name: x for name, x in (call | prompt).items() if name not in ("prompt", "generator")}
    wanted = READY_MADE[kind]
    if isinstance(wanted, str):
        with pytest.raises(ValueError, match=wanted):
            encode_negative(pipe, negative, **call)
    else:
        assert set(encode_negative(pipe, negative, **call)) == wanted


def test_the_shipped_model_takes_none():
    with pytest.raises(ValueError, match="no ready-made text can be read from a call of ShapesPipeline, so a negative"):
        encode_negative(load_model("shapes", "cpu"), "red")


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
@pytest.mark.parametrize("kind", FULL_PIPELINES)
def test_it_draws_what_the_text_draws(kind, guidance_scale):
    if kind == "sana sprint" and guidance_scale > 1:
        pytest.skip("has no classifier-free guidance")
    pipe, call = pipeline(kind), {"guidance_scale": guidance_scale}
    before = draw(pipe, **call)
    with guide(pipe, NEGATIVE, nag_scale=4.0):
        wanted = draw(pipe, **call)
    ready_made = encoded(pipe, **call)
    with guide(pipe, ready_made, nag_scale=4.0):
        assert torch.equal(draw(pipe, **call), wanted)
    assert not torch.equal(before, wanted)
    assert torch.equal(draw(pipe, **call), before)


def test_a_guided_call_encodes_it_no_more():
    pipe = pipeline("sdxl")
    encoded = []
    hook = pipe.text_encoder.register_forward_pre_hook(lambda *call: encoded.append(call))
    ready_made = encode_negative(pipe, NEGATIVE)
    encoded.clear()
    draw(pipe)
    plain = len(encoded)
    for _ in range(2):
        encoded.clear()
        guided(pipe, ready_made, nag_scale=4.0)(**call_of(pipe))
        assert len(encoded) == plain
    hook.remove()


def test_the_text_encoders_may_go():
    pipe = pipeline("sd3")
    prompt, negative = encoded(pipe, "a small red cat"), encoded(pipe)
    with guide(pipe, NEGATIVE, nag_scale=4.0):
        wanted = draw(pipe, None, **prompt)
    pipe.text_encoder = pipe.text_encoder_2 = pipe.text_encoder_3 = None
    with guide(pipe, negative, nag_scale=4.0):
        assert torch.equal(draw(pipe, None, **prompt), wanted)


def test_arguments_on_which_the_encoding_depends():
    pipe = pipeline("sdxl")
    skipped, whole = encode_negative(pipe, NEGATIVE, clip_skip=1), encode_negative(pipe, NEGATIVE)
    assert not torch.equal(skipped["prompt_embeds"], whole["prompt_embeds"])
    with guide(pipe, NEGATIVE, nag_scale=4.0):
        wanted = draw(pipe, clip_skip=1)
    with guide(pipe, skipped, nag_scale=4.0):
        assert torch.equal(draw(pipe, clip_skip=1), wanted)


def test_a_negative_for_each_prompt():
    pipe, prompts = pipeline("flux"), ["a small red cat", "a green hat"]
    negatives = [NEGATIVE, "a house"]
    ready_made = encoded(pipe, negatives)
    assert len(ready_made["prompt_embeds"]) == 2
    with guide(pipe, negatives, nag_scale=4.0):
        wanted = draw(pipe, prompts, num_images_per_prompt=2)
    with guide(pipe, ready_made, nag_scale=4.0):
        assert torch.equal(draw(pipe, prompts, num_images_per_prompt=2), wanted)


def test_it_leaves_the_pipeline_as_it_is_guided_or_not():
    pipe = pipeline("sdxl")
    wanted = encode_negative(pipe, NEGATIVE)
    before, state = dict(vars(pipe)), torch.random.get_rng_state()
    enable_guidance(pipe, "a house", nag_scale=4.0)
    try:
        for got in (encode_negative(pipe, NEGATIVE), encode_negative(pipe, NEGATIVE, negative_prompt="a hat")):
            assert got.keys() == wanted.keys()
            assert all(torch.equal(x, wanted[name]) for name, x in got.items())
    finally:
        with pytest.warns(UserWarning, match="was not called"):
            disable_guidance(pipe)
    assert vars(pipe) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert "_compiled_call_impl" not in vars(pipe.unet)


@pytest.mark.parametrize(("negative", "kind", "words"), [
    ({"prompt_embeds": torch.zeros(1, 2, 3)}, TypeError, "must be a text or a list of texts, got a mapping"),
    (None, ValueError, "no negative text"),
    ([], ValueError, "no negative text"),
    (3, TypeError, "must be a text, a list of texts"),
])  # fmt: skip
def test_what_is_no_text(negative, kind, words):
    with pytest.raises(kind, match=words):
        encode_negative(pipeline("sd15"), negative)


def test_what_is_no_pipeline():
    pipe = pipeline("sd15")
    with pytest.raises(TypeError, match="must be a loaded diffusers pipeline"):
        encode_negative(type(pipe), NEGATIVE)
    with pytest.raises(TypeError, match="must be a loaded diffusers pipeline"):
        encode_negative(pipe.unet, NEGATIVE)


def test_another_text_of_the_prompt_is_refused():
    with pytest.raises(
        TypeError, match="prompt_2 is a text of the prompt, and the negative is encoded from negative_prompt"
    ):
        encode_negative(pipeline("sdxl"), NEGATIVE, prompt_2="a house")


def test_settings_whose_names_begin_like_a_text_are_taken():
    pipe = pipeline("sdxl")

    class Mine(type(pipe)):
        def __call__(self, *args, prompt_enhancement_seed=10, **options):
            return super().__call__(*args, **options)

    mine = Mine(**pipe.components, add_watermarker=False)
    with pytest.raises(ValueError, match="no ready-made text can be read from a call of Mine"):  # it hands all on
        encode_negative(mine, NEGATIVE, prompt_enhancement_seed=3)
