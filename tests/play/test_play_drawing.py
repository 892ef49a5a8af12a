# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the page shows, without the page: pictures, sweeps, measurements and code."""

import ast
import concurrent.futures
import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from diffusers import StableDiffusionPipeline

from nag_kernels import published
from nag_kernels.play import markup
from nag_kernels.play.drawing import Model, quoted
from nag_kernels.shapes.loading import load_model, shapes_judge
from nag_kernels.user_errors import UserError

OTHERS = (
    {},
    {"rule": "nasa", "nag_scale": 0.5, "end": 0.5, "pictures": 2, "seed": 7},
    {"rule": "vsf", "nag_scale": 1.7, "cfg_scale": 2.0, "start": 0.25, "steps": 6, "pictures": 1},
)


def test_the_page_opens_with_a_plain_difference(model):
    judge, first = shapes_judge(), model.first
    (without, _), (steered, clean) = (judge(x, first.prompt, first.negative) for x in model.pair(first))
    assert sum(without) >= 3
    assert not any(steered)
    assert sum(clean) >= 3


@pytest.mark.parametrize("changes", OTHERS)
def test_pictures_and_code_are_those_of_the_pipeline(model, direct, reading, changes):
    pixels, _ = reading
    settings = replace(model.first, **changes)
    wanted = direct(settings)
    assert tuple(map(pixels, model.pair(settings))) == wanted
    assert wanted[0] != wanted[1]
    names = {}
    exec(model.code(settings), names)
    assert (pixels(names["without"]), pixels(names["steered"])) == wanted


def test_texts_in_code_are_texts():
    for text in ('say "no"', "back\\slash", "two\nlines", "it's", "“é” \u2028", "{braces}", '"""; import os'):
        assert ast.literal_eval(quoted(text)) == text


def test_the_usual_settings_have_one_home(model):
    shapes = published.SHAPES
    assert model.usual("nag") == {
        "nag_scale": shapes.nag_scale,
        "nag_tau": shapes.nag_tau,
        "nag_alpha": shapes.nag_alpha,
    }
    assert model.usual("nasa")["nag_scale"] == shapes.nasa_scale
    assert model.usual("vsf")["nag_scale"] == published.VSF_SCALE
    other = Model("some/folder", model.pipe)  # the papers', for a UNet of this kind
    assert other.usual("nag")["nag_alpha"] == published.SD15.nag_alpha != shapes.nag_alpha
    assert other.usual("nasa")["nag_scale"] == published.SD15.nasa_scale
    other.papers = published.FLUX
    assert other.usual("nasa")["nag_scale"] == published.PIXART.nasa_scale
    assert (other.first.pictures, other.first.steps) == (1, 4)


def test_a_sweep_has_the_pictures_of_each_value(model, reading):
    pixels, _ = reading
    settings, done = replace(model.first, pictures=2), []
    strip = model.sweep(settings, "nag_scale", [2.0, 9.0], done.append)
    assert done == [0, 1]
    for value, images in zip((2.0, 9.0), strip, strict=True):
        assert pixels(images) == pixels(model.steered(replace(settings, nag_scale=value)))
    assert pixels(strip[0]) != pixels(strip[1])
    html = markup.strip([("2", strip[0]), ("9", strip[1])], settings)
    assert html.index("<img") < html.index("<figcaption>2<") < html.index("<figcaption>9<")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"negative": ""}, "negative must be a text"),
        ({"prompt": "a fox"}, "words that shapes never learned: ['fox']"),
        ({"negative": "fog"}, "words that shapes never learned: ['fog']"),
        ({"nag_scale": 0.5}, "nag_scale must be at least 1"),
        ({"nag_tau": 0.0}, "guide: nag_tau must be above 0"),
        ({"nag_alpha": 1.5}, "guide: nag_alpha must be between 0 and 1, got 1.5"),
        ({"start": 0.5, "end": 0.5}, "guide: start and end must be 0 <= start < end <= 1, got 0.5 and 0.5"),
        ({"start": 0.9}, "guide: no step fell between start 0.9 and end 1"),
    ],
)
def test_refusals_are_one_sentence(model, changes, message):
    with pytest.raises(UserError) as refused:
        model.pair(replace(model.first, **changes))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_refused_value_of_a_sweep_is_named(model):
    with pytest.raises(UserError, match=r"^at nag_alpha 1.5: guide: nag_alpha must be"):
        model.sweep(model.first, "nag_alpha", [1.0, 1.5])


def test_errors_of_other_kinds_are_named(model, monkeypatch):
    def broken(*arguments):
        raise KeyError("no such part")

    monkeypatch.setattr(model, "_draw", broken)
    with pytest.raises(UserError, match=r"^KeyError: 'no such part'$"):
        model.without(model.first)
    assert not model.lock.locked()


def test_a_pipeline_that_draws_no_pictures(model, monkeypatch):
    class Video(type(model.pipe)):
        def __call__(self, *arguments, **named):
            return SimpleNamespace(frames=[])

    other = Model("some/folder", model.pipe)
    other.pipe = Video.__new__(Video)
    with pytest.raises(UserError, match="the page shows pictures, and a Video draws none: give another --model"):
        other.without(model.first)


def test_threads_get_their_own_pictures(model, reading):
    pixels, _ = reading
    asked = [replace(model.first, negative=text, pictures=1, seed=34) for text in ("red", "on pink", "circle")]
    alone = [pixels(model.steered(each)) for each in asked]
    assert len({each[0] for each in alone}) == 3
    plain = pixels(model.without(asked[0]))
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        drawn = list(pool.map(model.pair, asked * 2))
    assert [pixels(steered) for _, steered in drawn] == alone * 2
    assert all(pixels(without) == plain for without, _ in drawn)


def test_what_is_measured(model):
    figure, text = model.measured(replace(model.first, pictures=2))
    assert figure.width > 1000
    for word in (
        "mid_block.attentions.0",
        "clipped",
        "moved",
        "step",
        "Suggested: nag_scale 5, nag_tau 2.5, nag_alpha 0.2",
    ):
        assert word in text
    assert max(map(len, text.splitlines())) <= 104
    with pytest.raises(UserError, match="diagnose: rule must be 'nag', got 'nasa'"):
        model.measured(replace(model.first, rule="nasa", nag_scale=0.5))
    _, text = model.measured(replace(model.first, pictures=1, nag_alpha=0.0))
    assert "No suggestion: diagnose: nag_scale must be above 1 and nag_alpha above 0" in text


def test_another_model_is_loaded_by_its_folder(model, tmp_path, reading):
    """The code for it, run, draws its pictures."""
    pixels, _ = reading
    from every_model import pipeline

    parts = pipeline("sd15").components | {"tokenizer": model.pipe.tokenizer}  # that of the tests cannot be saved
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(tmp_path)
    pipe = load_model(str(tmp_path), "cpu")
    other = Model(str(tmp_path), pipe)
    settings = replace(other.first, prompt="a circle", negative="red", steps=2, cfg_scale=2.0)
    wanted = [pixels(each) for each in other.pair(settings)]
    assert wanted[0] != wanted[1]
    names = {}
    exec(other.code(settings), names)
    assert [pixels(names["without"]), pixels(names["steered"])] == wanted


def test_the_scale_of_cfg_has_the_name_of_the_model(model):
    class Flux(type(model.pipe)):
        def __call__(self, prompt, num_inference_steps=28, true_cfg_scale=1.0, negative_prompt=None, generator=None):
            raise NotImplementedError

    with contextlib.ExitStack() as back:
        back.callback(setattr, model.pipe, "__class__", type(model.pipe))
        model.pipe.__class__ = Flux
        other = Model("some/flux", model.pipe)
    assert other.first.steps == 28
    assert other.call(other.first) == {"num_inference_steps": 28, "true_cfg_scale": 1.0}
    assert other.call(replace(other.first, cfg_scale=2.0))["negative_prompt"] == [""]


def test_html_escapes_what_was_typed(model):
    settings = replace(model.first, negative='<script>"x"', pictures=1)
    image = [model.without(model.first)[0]]
    for html in (markup.pair(image, image, settings), markup.strip([("<b>", image)], settings)):
        assert "<script>" not in html
        assert "<b>" not in html


def test_devices_and_dtypes_are_in_the_code(model):
    other = Model('a "folder"', model.pipe)
    other.pipe = SimpleNamespace(device=torch.device("cuda:1"), dtype=torch.bfloat16)
    assert 'from_pretrained("a \\"folder\\"", torch_dtype=torch.bfloat16).to("cuda:1")' in other.code(model.first)
    own = Model("shapes", model.pipe)
    own.pipe = other.pipe
    assert 'pipe = load(device="cuda:1")' in own.code(model.first)
