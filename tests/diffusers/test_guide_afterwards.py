# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What `guide` leaves behind: nothing, whatever happens within it."""

import contextlib
import copy
import gc
import inspect
import io
import pickle
import random
import warnings
import weakref

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import PixArtAlphaPipeline
from drawing import denoisers, draw
from every_model import FULL_PIPELINES, pipeline
from pipeline_parts import NEGATIVE
from test_flux import _arguments as flux_arguments
from tiny import error

from nag_kernels.diffusers import disable_guidance, enable_guidance, guide, guided
from nag_kernels.diffusers.models import registry

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = {"num_inference_steps": 2}
KINDS = pytest.mark.parametrize("kind", FULL_PIPELINES)


def state(pipe):
    """All that guidance touches, and what a user would notice."""
    models = denoisers(pipe)
    return {
        "class": type(pipe),
        "pipeline": {k: v for k, v in pipe.__dict__.items() if not isinstance(v, torch.Tensor)},
        "denoiser": [dict(model.__dict__) for model in models],
        "processors": [
            module.processor for model in models for module in model.modules() if hasattr(module, "processor")
        ],
        "hooks": [(list(x._forward_hooks), list(x._forward_pre_hooks)) for model in models for x in model.modules()],
        "random": torch.random.get_rng_state().tolist(),
    }


@KINDS
def test_everything_is_as_it_was(kind):
    pipe = pipeline(kind)
    plain = draw(pipe, guidance_scale=3.0)
    before = state(pipe)
    with guide(pipe, NEGATIVE) as inside:
        assert inside is pipe
        assert error(draw(pipe, guidance_scale=3.0), plain) > 1e-4
    assert state(pipe) == before
    assert torch.equal(draw(pipe, guidance_scale=3.0), plain)


class Interruption(Exception):
    pass


@pytest.mark.parametrize("options", [{}, {"negative_pooled": True}], ids=["", "negative_pooled"])
@pytest.mark.parametrize("interruption", [Interruption, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["callback", "layer", "dry run", "block"])
def test_everything_is_as_it_was_after_an_exception(where, interruption, options):
    pipe = pipeline("sd3")
    plain = draw(pipe)
    before = state(pipe)
    calls = []

    def interrupt(*args, **kwargs):
        calls.append(1)
        raise interruption

    call = {"callback_on_step_end": interrupt} if where == "callback" else {}
    modules = {"layer": pipe.transformer.transformer_blocks[1].ff, "dry run": pipe.text_encoder_3}
    hook = modules[where].register_forward_pre_hook(interrupt) if where in modules else None
    with pytest.raises(interruption), guide(pipe, NEGATIVE, **options):
        interrupt() if where == "block" else draw(pipe, **call)
    assert calls == [1]
    if hook is not None:
        hook.remove()
    assert state(pipe) == before
    assert torch.equal(draw(pipe), plain)
    with guide(pipe, NEGATIVE):
        draw(pipe)


def test_the_random_numbers_of_python_and_numpy():
    """As a pipeline may draw them, which shuffles the words of a prompt, say."""
    pipe, drawn = pipeline("sd15"), []
    encode = pipe.encode_prompt

    def shuffled(*call, **more):
        drawn.append((random.random(), np.random.rand()))
        return encode(*call, **more)

    pipe.encode_prompt = shuffled
    random.seed(5)
    np.random.seed(5)
    draw(pipe)
    random.seed(5)
    np.random.seed(5)
    with guide(pipe, NEGATIVE):
        draw(pipe)
    assert drawn == [drawn[0]] * 3


def test_the_dry_run_leaves_nothing_behind():
    pipe = pipeline("sd15")
    calls, steps = [], []
    pipe.unet.register_forward_pre_hook(lambda module, args: calls.append(1))
    pipe.set_progress_bar_config(disable=False, desc="drawing")

    def draw_unseeded():
        torch.manual_seed(3)
        return draw(pipe, generator=None, callback_on_step_end=lambda pipe, i, t, values: steps.append(i) or values)

    plain = draw_unseeded()
    after = torch.random.get_rng_state()
    with guide(pipe, "a small red cat", nag_scale=8):
        assert error(draw_unseeded(), plain) < 2e-5  # so it started from the same noise
    assert torch.equal(torch.random.get_rng_state(), after)
    assert len(calls) == 8
    assert steps == [0, 1, 2, 3] * 2
    assert pipe._progress_bar_config == {"disable": False, "desc": "drawing"}
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    twins = [torch.Generator().manual_seed(i) for i in range(2)]
    draw(pipe, prompt=["a", "b"], generator=twins)
    with guide(pipe, NEGATIVE):
        draw(pipe, prompt=["a", "b"], generator=generators)
    assert [g.get_state().tolist() for g in generators] == [g.get_state().tolist() for g in twins]


def test_enabled_pipelines_look_the_same():
    pipe = pipeline("pixart")
    signature, cls = inspect.signature(pipe.__call__), type(pipe)
    enable_guidance(pipe, NEGATIVE)
    assert isinstance(pipe, PixArtAlphaPipeline)
    assert (type(pipe).__name__, type(pipe).__module__) == (cls.__name__, cls.__module__)
    assert inspect.signature(pipe.__call__) == signature
    assert set(pipe.components) == {"tokenizer", "text_encoder", "vae", "transformer", "scheduler"}
    first = draw(pipe)
    assert torch.equal(draw(pipe), first)  # and a second call
    disable_guidance(pipe)
    assert type(pipe) is cls
    assert error(draw(pipe), first) > 1e-4


@pytest.mark.parametrize(("name", "kind", "options"), [
    ("StableDiffusionImg2ImgPipeline", "sd15", {"strength": 0.6}),
    ("StableDiffusionXLInpaintPipeline", "sdxl", {"strength": 0.8, "mask_image": torch.ones(1, 1, 8, 8)}),
    ("StableDiffusion3Img2ImgPipeline", "sd3", {"strength": 0.8, "max_sequence_length": 12}),
    ("StableDiffusionControlNetPipeline", "sd15", {}),
    ("PixArtSigmaPipeline", "pixart", {"use_resolution_binning": False, "clean_caption": False}),
    # Classifier-free guidance in two calls, which these do not announce.
    ("FluxImg2ImgPipeline", "flux", {"strength": 0.8, "true_cfg_scale": 3.0, "negative_prompt": "a house"}),
    ("FluxKontextPipeline", "flux", {"true_cfg_scale": 3.0, "negative_prompt": "a house", "_auto_resize": False, "max_area": 64}),
])  # fmt: skip
def test_other_pipelines_over_the_same_denoisers(name, kind, options):
    parts = pipeline(kind).components
    if kind == "sd15":
        parts["requires_safety_checker"] = False
    if "ControlNet" in name:
        parts["controlnet"] = diffusers.ControlNetModel.from_unet(parts["unet"])
    pipe = getattr(diffusers, name)(**parts)
    pipe.set_progress_bar_config(disable=True)
    options = options | {"guidance_scale": 3.0, "num_inference_steps": 4, "output_type": "latent"}
    if kind == "flux":
        options = options | {"max_sequence_length": 12}
    if kind != "pixart":
        options["image"] = torch.linspace(0, 1, 192).view(1, 3, 8, 8)
    if "Img2Img" not in name or kind == "flux":  # elsewhere these take the size of the image; Flux would take 1024
        options |= {"height": 8, "width": 8}

    def draw_it():
        torch.manual_seed(1)  # the image is encoded with noise as well
        return pipe(prompt="a small red cat", **options).images

    plain = draw_it()
    with guide(pipe, "a small red cat", nag_scale=8):
        assert error(draw_it(), plain) < 2e-5
    with guide(pipe, NEGATIVE, nag_scale=8, end=0.5):
        assert error(draw_it(), plain) > 1e-3
    assert torch.equal(draw_it(), plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    "cloned", [("hidden_states",), ("hidden_states", "encoder_hidden_states")], ids=["sample", "both"]
)
def test_two_calls_with_samples_of_their_own(cloned):
    """Pipelines that do not announce the unconditional call and make a new sample for it (Cosmos from a video) or convert
    sample and text in each call (Kandinsky 5 in half precision): it is unconditional all the same."""
    pipe, guided = diffusers.FluxImg2ImgPipeline(**pipeline("flux").components), []
    pipe.set_progress_bar_config(disable=True)
    plain_class = type(pipe.transformer)

    def copying(self, **call):
        return plain_class.__call__(self, **call | {name: call[name].clone() for name in cloned})

    pipe.transformer.__class__ = type("Copying", (plain_class,), {"__call__": copying})
    layer = registry.guided_layers(pipe.transformer)[0]
    layer.register_forward_hook(lambda layer, *_: guided.append("NAG" in type(layer.processor).__name__))
    call = {"prompt": "a small red cat", "negative_prompt": "a house", "image": torch.linspace(0, 1, 192).view(1, 3, 8, 8),
            "height": 8, "width": 8, "num_inference_steps": 4, "strength": 1.0, "max_sequence_length": 12,
            "output_type": "latent"}  # fmt: skip
    for scale, each in ((3.0, [True, False]), (1.0, [True])):
        guided.clear()
        with guide(pipe, NEGATIVE):
            pipe(**call, true_cfg_scale=scale)
        assert guided == each * 4


def test_a_block_without_a_call_raises():
    pipe = pipeline("pixart")
    before = type(pipe)
    with pytest.raises(RuntimeError, match="PixArtAlphaPipeline was not called"), guide(pipe, NEGATIVE):
        pass
    assert type(pipe) is before
    with pytest.raises(KeyError), guide(pipe, NEGATIVE):  # an exception of the block's own passes as it is
        raise KeyError
    enable_guidance(pipe, NEGATIVE)
    with pytest.warns(UserWarning, match="PixArtAlphaPipeline was not called"):
        disable_guidance(pipe)
    assert type(pipe) is before


def test_a_block_that_is_never_entered_says_so():
    pipe = pipeline("pixart")
    with pytest.warns(UserWarning, match=r"guide\(PixArtAlphaPipeline, ...\) was never entered, so nothing was guided"):
        guide(pipe, NEGATIVE)  # gone at once
    with pytest.warns(UserWarning, match=r"guided\(PixArtAlphaPipeline, ...\) was never called"):
        guided(pipe, NEGATIVE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with guide(pipe, NEGATIVE):
            draw(pipe)

        @guide(pipe, NEGATIVE)
        def draw_guided():
            return draw(pipe)

        assert torch.equal(draw_guided(), draw_guided())
    block = guide(pipe, NEGATIVE)
    with block:
        draw(pipe)
    with pytest.raises(RuntimeError, match="has been entered before"), block:
        pass


def test_a_wrapper_that_somebody_puts_on_the_call_stays():
    pipe = pipeline("pixart")
    plain, calls, cls = draw(pipe), [], type(pipe)
    with guide(pipe, NEGATIVE):
        wanted = draw(pipe)
        inner = type(pipe).__call__

        def logged(self, *args, **kwargs):
            calls.append(1)
            return inner(self, *args, **kwargs)

        type(pipe).__call__ = logged
        assert torch.equal(draw(pipe), wanted)
    assert torch.equal(draw(pipe), plain)
    assert len(calls) == 2
    assert cls.__call__ is not logged
    with guide(pipe, NEGATIVE):
        assert torch.equal(draw(pipe), wanted)
    assert torch.equal(draw(pipe), plain)
    assert len(calls) == 4


def test_a_class_that_somebody_puts_there_stays():
    pipe = pipeline("pixart")
    plain, cls = draw(pipe), type(pipe)
    with guide(pipe, NEGATIVE):
        wanted = draw(pipe)
        Theirs = type("Theirs", (type(pipe),), {})
        pipe.__class__ = Theirs
        assert torch.equal(draw(pipe), wanted)
    assert type(pipe) is Theirs
    assert torch.equal(draw(pipe), plain)
    with guide(pipe, NEGATIVE):
        assert torch.equal(draw(pipe), wanted)
    assert type(pipe) is Theirs
    Unrelated = type("Unrelated", (cls,), {})
    with guide(pipe, NEGATIVE):
        draw(pipe)
        pipe.__class__ = Unrelated
        with pytest.raises(RuntimeError, match="the pipeline's class was replaced"):
            draw(pipe)
    assert type(pipe) is Unrelated
    assert torch.equal(draw(pipe), plain)


def test_copies_are_plain_or_say_that_they_are_not_guided():
    pipe = pipeline("pixart")
    plain, cls = draw(pipe), type(pipe)
    with guide(pipe, NEGATIVE):
        wanted = draw(pipe)
        copies = [copy.copy(pipe), copy.deepcopy(pipe), type(pipe)(**pipe.components)]
        for each in copies:
            each.set_progress_bar_config(disable=True)
            if each.transformer is pipe.transformer:
                with pytest.raises(
                    RuntimeError,
                    match=r"called by another PixArtAlphaPipeline .* write `with guide\(\[pipe, other\], ...\):`",
                ):
                    draw(each)
            else:
                assert torch.equal(draw(each), plain)
        assert [type(x) for x in copies[:2]] == [cls] * 2
        assert pipe.__reduce_ex__(pickle.HIGHEST_PROTOCOL)[1] == (cls,)
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            read = pickle.loads(pickle.dumps(pipe, protocol))
            assert type(read) is cls
            assert torch.equal(draw(read), plain)
        with guide(copies[2], NEGATIVE):  # a copy can be guided as anything else
            assert torch.equal(draw(copies[2]), wanted)
        assert torch.equal(draw(pipe), wanted)
    assert all(torch.equal(draw(x), plain) for x in (*copies, pipe))


@pytest.mark.parametrize("begin", [enable_guidance, guide, guided])
def test_a_pipeline_that_is_dropped_while_it_is_guided_is_freed(begin):
    def made():
        pipe = pipeline("pixart")
        begin(pipe, NEGATIVE)
        draw(pipe)
        return weakref.ref(pipe), weakref.ref(pipe.transformer)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a block that was never entered
        references = made()
        gc.collect()
    assert [x() for x in references] == [None, None]


def read_back(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("take", [copy.deepcopy, copy.copy, read_back])
def test_copies_and_files_of_a_guided_denoiser_are_plain(take):
    """Made in a block, and by a callback within a guided call."""
    pipe, taken = pipeline("flux"), []
    call = {"encoder_hidden_states": torch.ones(1, 7, 32), "txt_ids": torch.zeros(7, 3)}
    model = pipe.transformer
    arguments = flux_arguments(1, torch.float32) | call
    plain = model(**arguments).sample

    def keep(pipe, step, timestep, tensors):
        taken.append(take(model))
        return tensors

    with guide(pipe, NEGATIVE):
        draw(pipe, num_inference_steps=1, callback_on_step_end=keep)
    with guide(model, call | {"encoder_hidden_states": torch.ones(1, 7, 32) / 2}):
        model(**arguments)
        taken.append(take(model))
    for each in taken:
        with each.cache_context("of one's own"):
            assert torch.equal(each(**arguments).sample, plain)


def test_generators_under_any_name_are_as_they_were():
    """Those of a pipeline of one's own: an argument of another name, and one that the pipeline holds."""
    pipe = pipeline("sd15")

    class Noisy(type(pipe)):
        def __call__(self, prompt, noise_rng=None, **options):
            torch.rand(1, generator=noise_rng)
            torch.rand(1, generator=self.rng)
            return super().__call__(prompt, **options)

    mine = Noisy(**pipe.components, requires_safety_checker=False)
    mine.set_progress_bar_config(disable=True)
    drawn = []
    for scale in (None, 4.0):
        mine.rng, noise_rng = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
        with contextlib.nullcontext() if scale is None else guide(mine, NEGATIVE, nag_scale=scale):
            mine("a cat", noise_rng, num_inference_steps=1, height=8, width=8, output_type="latent")
        drawn.append((torch.rand(1, generator=mine.rng), torch.rand(1, generator=noise_rng)))
    assert drawn[0] == drawn[1]
