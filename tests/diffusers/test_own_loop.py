# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`guide` on a bare denoiser that a loop of one's own calls, and on several pipelines over one denoiser."""

import sys
import threading

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from drawing import draw
from every_model import MODELS, TINY, model_arguments, pipeline, text_width
from oracles import doubled_batch_oracle, output, run, twice
from stand_in import filled, firm, state
from tiny import error, seeded, texts

from nag_kernels.diffusers import disable_guidance, enable_guidance, guide, guided
from nag_kernels.diffusers import run as guided_run
from nag_kernels.diffusers.models.registry import guided_layers
from nag_kernels.diffusers.own_loop import DenoiserBlock
from nag_kernels.diffusers.owners import Block, OneCall

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

FIRM = {"nag_scale": 8.0, "nag_tau": 1.25, "nag_alpha": 0.5}
NEGATIVE = "a large blue dog on grass"


@pytest.mark.parametrize("kind", TINY)
def test_a_bare_denoiser_is_guided_as_in_its_pipeline(kind):
    pipe = filled(TINY[kind])
    model, call = pipe.transformer, pipe.arguments | pipe.texts["positive"]
    pipe(pipe.prompt)
    before = state(pipe)
    with guide(pipe, "negative", **firm(TINY[kind])):
        wanted = pipe(pipe.prompt)
    with guide(model, pipe.texts["negative"], **firm(TINY[kind])) as inside:
        assert inside is model
        got = [output(model, call) for _ in range(2)]
    assert all(torch.equal(x, wanted) for x in got)
    assert state(pipe) == before


@pytest.mark.parametrize("kind", MODELS)
def test_a_bare_denoiser_with_drop_in_processors(kind):
    model, arguments = seeded(MODELS[kind]), model_arguments(kind, 3, torch.float32)
    positive, negative = texts(3, 7, 7, text_width(kind), torch.float32)
    with doubled_batch_oracle(guided_layers(model), 7, *FIRM.values()):
        wanted = run(model, twice(arguments), torch.cat([positive, negative]))[:3]
    ids = arguments.get("img_ids")
    ids = {} if ids is None else {"txt_ids": ids.new_zeros(*ids.shape[:-2], 7, ids.shape[-1])}
    with guide(model, {"encoder_hidden_states": negative} | ids, **FIRM):
        assert error(run(model, arguments, positive), wanted) < 1e-5


def test_under_vmap_texts_are_not_compared():
    model, arguments = seeded(MODELS["sd15"]), model_arguments("sd15", 1, torch.float32)
    rows, negative = texts(2, 7, 7, text_width("sd15"), torch.float32)
    unconditional = {"encoder_hidden_states": rows[1:]}
    with (
        pytest.raises(RuntimeError, match=r"under torch\.func\.vmap .* leave `unconditional` out"),
        guide(model, {"encoder_hidden_states": negative[:1]}, unconditional=unconditional, **FIRM),
    ):
        torch.func.vmap(lambda text: run(model, arguments, text))(rows[:, None])


@pytest.mark.parametrize("first", ["unconditional", "conditional"])
@pytest.mark.parametrize("separate", [True, False], ids=["two calls", "one batch"])
@pytest.mark.parametrize("kind", ["sd15", "sd3", "ltx"])
def test_classifier_free_guidance_in_an_own_loop(kind, separate, first):
    if kind not in MODELS:
        kind = next(name for name in MODELS if name.startswith(kind))
    model, arguments = seeded(MODELS[kind]), model_arguments(kind, 2, torch.float32)
    (positive, negative), unconditional = (
        texts(2, 7, 7, text_width(kind), torch.float32),
        torch.randn(1, 7, text_width(kind)).expand(2, -1, -1),
    )
    plain = run(model, arguments, unconditional)
    with guide(model, {"encoder_hidden_states": negative[:1]}, **FIRM):
        wanted = run(model, arguments, positive)
    halves = [unconditional, positive] if first == "unconditional" else [positive, unconditional]
    given = {"encoder_hidden_states": unconditional[:1]}
    with guide(model, {"encoder_hidden_states": negative[:1]}, unconditional=given, **FIRM):
        for text in (halves, halves):  # and as often as one likes
            if separate:
                outs = [run(model, arguments, x) for x in text]
            else:
                outs = run(model, twice(arguments), torch.cat(text)).chunk(2)
        alone = run(model, arguments, positive)  # without it, in a later step
    outs = outs if first == "unconditional" else outs[::-1]
    assert error(outs[0], plain) < 1e-5
    assert error(outs[1], wanted) < 1e-5
    assert error(alone, wanted) < 1e-5
    assert error(wanted, run(model, arguments, positive)) > 1e-3


def unet_and_texts():
    model = seeded(MODELS["sd15"])
    return model, model_arguments("sd15", 2, torch.float32), texts(2, 7, 7, text_width("sd15"), torch.float32)


def test_what_a_bare_denoiser_is_given():
    model, _, (_, negative) = unet_and_texts()
    with (
        pytest.raises(TypeError, match="must be ready-made text under the names of its forward"),
        guide(model, "blurry"),
    ):
        pass
    with pytest.raises(
        ValueError, match=r"has the key prompt_embeds, which UNet2DConditionModel.forward does not take"
    ):
        guide(model, {"prompt_embeds": negative}).__enter__()
    with pytest.raises(ValueError, match="must have encoder_hidden_states"):
        guide(model, {"timestep": negative}).__enter__()
    with pytest.raises(ValueError, match="start, end and sigma_end need a pipeline"):
        guide(model, {"encoder_hidden_states": negative}, end=0.5).__enter__()
    with pytest.raises(TypeError, match="unconditional is for a bare denoiser alone"):
        guide(pipeline("sd15"), NEGATIVE, unconditional={"encoder_hidden_states": negative})
    for function in (guided, enable_guidance):
        with pytest.raises(TypeError, match="got a model, UNet2DConditionModel; for that write `with guide"):
            function(model, {"encoder_hidden_states": negative})


def test_a_block_in_which_the_denoiser_is_not_called_raises():
    model, arguments, (positive, negative) = unet_and_texts()
    text = {"encoder_hidden_states": negative}
    with pytest.raises(RuntimeError, match="was never called in the block"), guide(model, text):
        pass
    with (
        pytest.raises(RuntimeError, match="was never called with a prompt"),
        guide(model, text, unconditional={"encoder_hidden_states": positive}),
    ):
        run(model, arguments, positive)
    with pytest.warns(UserWarning, match="was never entered"):
        guide(model, text)


@pytest.mark.parametrize("inference", [False, True])
def test_a_text_buffer_that_is_written_anew(inference):
    with torch.inference_mode(inference):
        model, arguments, (positive, negative) = unet_and_texts()
        unconditional = torch.randn_like(positive)
        plain, buffer = run(model, arguments, unconditional), torch.empty_like(positive)
        given = {"encoder_hidden_states": unconditional}
        with guide(model, {"encoder_hidden_states": negative}, unconditional=given, **FIRM):
            run(model, arguments, buffer.copy_(positive))
            assert torch.equal(run(model, arguments, buffer.copy_(unconditional)), plain)


def test_unconditional_rows_that_are_not_known():
    model, _, (positive, negative) = unet_and_texts()
    empty, text = torch.randn(1, 7, positive.shape[-1]), {"encoder_hidden_states": negative[:1]}
    unconditional = {"encoder_hidden_states": empty}
    arguments = model_arguments("sd15", 3, torch.float32)
    with pytest.raises(ValueError, match=r"rows \[0\] of 3"), guide(model, text, unconditional=unconditional):
        run(model, arguments, torch.cat([empty, positive]))
    with (
        pytest.raises(RuntimeError, match="no call had that text to the bit"),
        guide(model, text, unconditional=unconditional),
    ):
        run(model, arguments, torch.cat([empty + 1e-6, positive]))


def test_a_pipeline_in_the_block_of_its_bare_denoiser_raises():
    pipe = pipeline("sd15")
    negative = {"encoder_hidden_states": torch.randn(1, 77, pipe.unet.config.cross_attention_dim)}
    plain = draw(pipe)
    with pytest.raises(RuntimeError, match="guide the pipeline instead"), guide(pipe.unet, negative):
        draw(pipe)
    with pytest.raises(RuntimeError, match="guided call is running on this denoiser"), guide(pipe.unet, negative):
        guided(pipe, NEGATIVE)("a cat")
    with pytest.raises(RuntimeError, match="enabled already on a pipeline with this denoiser"), guide(pipe, NEGATIVE):
        guide(pipe.unet, negative).__enter__()
    assert torch.equal(draw(pipe), plain)


def test_calls_of_other_threads_are_plain():
    model, arguments, (positive, negative) = unet_and_texts()
    plain, found = run(model, arguments, positive), []

    def other():
        with torch.no_grad():
            found.append(run(model, arguments, positive))

    with guide(model, {"encoder_hidden_states": negative}, **FIRM):
        assert error(run(model, arguments, positive), plain) > 1e-3
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert torch.equal(found[0], plain)


# --- several pipelines over one denoiser ------------------------------------------------------------------------------


def two_stages():
    """A hires fix: the second pipeline draws on what the first one drew, with the same parts."""
    first = pipeline("sd15")
    second = StableDiffusionImg2ImgPipeline.from_pipe(first)
    second.set_progress_bar_config(disable=True)
    return first, second


def draw_second(pipe, seed=1, **options):
    torch.manual_seed(seed)
    image = torch.linspace(0, 1, 192).view(1, 3, 8, 8)
    return pipe(
        "a small red cat", image=image, num_inference_steps=4, strength=1.0, output_type="latent", **options
    ).images


def test_a_second_stage_that_is_not_guided_raises():
    first, second = two_stages()
    plain = draw_second(second)
    with guide(first, NEGATIVE):
        draw(first)
        with pytest.raises(RuntimeError, match=r"write `with guide\(\[pipe, other\], ...\):`"):
            draw_second(second)
    assert torch.equal(draw_second(second), plain)


def test_a_plain_call_that_began_before_goes_on():
    """Guidance for everybody comes on in its midst."""
    pipe = pipeline("sd15")
    plain = draw(pipe)

    def enable(pipe, step, timestep, tensors):
        if step == 1:
            enable_guidance(pipe, NEGATIVE)
        return tensors

    assert torch.equal(draw(pipe, callback_on_step_end=enable), plain)
    assert error(draw(pipe), plain) > 1e-3
    disable_guidance(pipe)
    assert torch.equal(draw(pipe), plain)


def test_settings_that_change_within_a_call():
    """Of the next call: the running one goes on as it began."""
    pipe = pipeline("sd15")
    plain, before = draw(pipe), dict(pipe.unet.__dict__)
    with guide(pipe, NEGATIVE):
        wanted = draw(pipe)

    def change(pipe, step, timestep, tensors):
        if step == 1:
            disable_guidance(pipe)
            enable_guidance(pipe, NEGATIVE, nag_scale=2.0)
        return tensors

    enable_guidance(pipe, NEGATIVE)
    assert error(draw(pipe, callback_on_step_end=change), wanted) < 2e-5
    disable_guidance(pipe)
    assert pipe.unet.__dict__ == before
    assert torch.equal(draw(pipe), plain)


@pytest.mark.parametrize("first", ["block", "everybody"])
def test_blocks_of_pipeline_and_denoiser_that_end_in_any_order(first):
    pipe = pipeline("sd15")
    plain, before = draw(pipe), dict(pipe.unet.__dict__)
    block = guide(pipe.unet, {"encoder_hidden_states": torch.randn(1, 77, pipe.unet.config.cross_attention_dim)})
    block.__enter__()
    enable_guidance(pipe, NEGATIVE)
    ends = [lambda: block.__exit__(KeyError, KeyError(), None), lambda: disable_guidance(pipe)]
    for end in ends if first == "block" else ends[::-1]:
        end()
    assert pipe.unet.__dict__ == before
    assert torch.equal(draw(pipe), plain)


def test_a_pipeline_of_somebody_elses_guidance_over_a_guided_denoiser_raises():
    first, second = two_stages()

    def other():
        with guide(second, NEGATIVE):
            waiting.set()
            done.wait(60)

    waiting, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    waiting.wait(60)
    enable_guidance(first, NEGATIVE)
    try:
        with pytest.raises(RuntimeError, match=r"write `with guide\(\[pipe, other\], ...\):`"):
            draw_second(second)
    finally:
        done.set()
        thread.join()
        disable_guidance(first)


def test_both_stages_are_guided():
    first, second = two_stages()
    plain = draw(first), draw_second(second)
    with guide(first, NEGATIVE):
        wanted = draw(first)
    with guide(second, NEGATIVE):
        wanted = wanted, draw_second(second)
    assert all(error(x, y) > 1e-3 for x, y in zip(wanted, plain, strict=True))
    with guide([first, second], NEGATIVE) as (one, two):
        assert (one, two) == (first, second)
        assert torch.equal(draw(one), wanted[0])
        assert torch.equal(draw_second(two), wanted[1])
    assert (torch.equal(draw(first), plain[0]), torch.equal(draw_second(second), plain[1])) == (True, True)
    enable_guidance([first, second], NEGATIVE)
    assert torch.equal(draw_second(second), wanted[1])
    disable_guidance([first, second])
    assert torch.equal(draw(first), plain[0])
    assert type(first) is StableDiffusionPipeline
    assert "_compiled_call_impl" not in first.unet.__dict__


def test_lists_of_pipelines():
    first, second = two_stages()
    with pytest.raises(ValueError, match="guided: pipe must be one pipeline, got a list of 2"):
        guided([first, second], NEGATIVE)
    with pytest.raises(ValueError, match="got an empty list"):
        guide([], NEGATIVE)
    with pytest.raises(RuntimeError, match="was not called"), guide([first, second], NEGATIVE):
        pass
    assert type(first) is StableDiffusionPipeline


@pytest.mark.parametrize("kind", ["sd15", "sd3", "flux", "wan", "qwen"])
def test_a_negative_with_rows_that_do_not_fit(kind):
    kind = next(name for name in MODELS if name.startswith(kind))
    model, arguments = seeded(MODELS[kind]), model_arguments(kind, 3, torch.float32)
    positive, _ = texts(3, 7, 7, text_width(kind), torch.float32)
    ids = arguments.get("img_ids")
    ids = {} if ids is None else {"txt_ids": ids.new_zeros(*ids.shape[:-2], 7, ids.shape[-1])}
    for rows in (2, 4, 6):
        negative = {"encoder_hidden_states": torch.randn(rows, 7, text_width(kind))}
        message = rf"must have one row, or one for each of the 3 rows .*, got {rows}"
        with pytest.raises(ValueError, match=message), guide(model, negative | ids, **FIRM):
            run(model, arguments, positive)


@pytest.mark.parametrize("key", ["sample", "timestep"])
def test_keys_that_are_no_text(key):
    model = seeded(MODELS["sd15"])
    with pytest.raises(ValueError, match=f"negative_prompt has the key {key}, which is no text"):
        guide(model, {"encoder_hidden_states": torch.zeros(1, 7, 32), key: torch.zeros(1)}).__enter__()


def test_a_plain_call_that_begins_while_a_block_is_entered(monkeypatch):
    """The block waits for its end: it must not meet our processors."""
    model, arguments = seeded(MODELS["sd15"]), model_arguments("sd15", 1, torch.float32)
    positive, negative = texts(1, 7, 7, text_width("sd15"), torch.float32)
    both = torch.cat([positive, negative], dim=1)  # as long as two packed texts
    begun, go, got = threading.Event(), threading.Event(), []

    def slow(module, args):
        if threading.current_thread() is thread:
            begun.set()
            go.wait(10)

    def plain():
        with torch.no_grad():
            got.append(run(model, arguments, both))

    wanted = run(model, arguments, both)
    with guide(model, {"encoder_hidden_states": negative}, **FIRM):
        guided_alone = run(model, arguments, positive)
    hook = model.conv_in.register_forward_pre_hook(slow)
    thread = threading.Thread(target=plain)
    stand_in = guided_run.GuidedRun.stand_in

    def begins_before(self, *call):
        thread.start()
        assert begun.wait(10)
        threading.Timer(0.2, go.set).start()
        return stand_in(self, *call)

    monkeypatch.setattr(guided_run.GuidedRun, "stand_in", begins_before)
    with guide(model, {"encoder_hidden_states": negative}, **FIRM):
        assert len(got) == 1
        assert torch.equal(run(model, arguments, positive), guided_alone)
    thread.join()
    hook.remove()
    assert torch.equal(got[0], wanted)


def test_a_block_that_was_never_made_whole_goes_quietly(monkeypatch):
    """As torch.compile makes one, when it traces a function with a block in it."""
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    for kind in (DenoiserBlock, Block, OneCall):
        object.__new__(kind)
    assert not said
