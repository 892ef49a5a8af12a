# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The small model: its world, its judge, its pipeline, and what the shipped weights reach."""

import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from nag_kernels.shapes import scenes as world
from nag_kernels.shapes.classifier import facts, load_classifier, matches, read, shows
from nag_kernels.shapes.classifier_training import SPOILS, accuracy, spoil
from nag_kernels.shapes.evaluate import evaluate, sample
from nag_kernels.shapes.generator import place_by_noise
from nag_kernels.shapes.pipeline import VARIANTS, WEIGHTS, ShapesPipeline, folder_of, load
from nag_kernels.shapes.text_encoder import WORD_FACTS, embed, word_facts


@pytest.fixture(scope="module")
def pipe() -> ShapesPipeline:
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def classifier():
    return load_classifier()


def draw(count: int, two: float, seed: int = 0) -> world.Scenes:
    return world.draw_scenes(count, np.random.default_rng(seed), two_share=two)


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 8, 8, 8, generator=torch.Generator().manual_seed(seed))


# The world


def test_a_quarter_of_scenes_has_two_objects():
    assert draw(20_000, world.TWO_SHARE).two.mean() == pytest.approx(0.25, abs=0.01)


def test_every_attribute_comes_up_evenly():
    scenes = draw(20_000, 0.0)
    columns = ((scenes.colour[:, 0], 6), (scenes.shape[:, 0], 5), (scenes.size[:, 0], 3), (scenes.background, 4))
    for column, classes in columns:
        shares = np.bincount(column, minlength=classes) / len(scenes)
        assert len(shares) == classes
        assert np.abs(shares - 1 / classes).max() < 0.02


def test_two_objects_lie_as_their_relation_says_and_do_not_touch():
    scenes = draw(20_000, 1.0)
    away = scenes.centre[:, 0] - scenes.centre[:, 1]  # x to the right, y down
    towards = np.stack([-away[:, 0], away[:, 0], -away[:, 1], away[:, 1]], 1)
    assert (towards.argmax(1) == scenes.relation).all()
    assert (np.linalg.norm(away, axis=1) - scenes.radius.sum(1)).min() > 1
    assert ((scenes.colour[:, 0] != scenes.colour[:, 1]) | (scenes.shape[:, 0] != scenes.shape[:, 1])).all()


@pytest.mark.parametrize("two", [0.0, 1.0])
def test_objects_stay_inside_the_picture(two):
    """Only the tips of a star or a triangle may reach into the outermost pixels."""
    scenes = draw(2_000, two)
    pictures = world.render(scenes)
    edge = torch.cat([pictures[:, :, 0], pictures[:, :, -1], pictures[:, :, :, 0], pictures[:, :, :, -1]], -1)
    touched = (edge != edge[:, :, :1]).any(1).sum(-1)
    tipped = np.isin(scenes.shape, [world.SHAPES.index("star"), world.SHAPES.index("triangle")])
    tipped = torch.from_numpy(tipped[:, : 1 + int(two)].any(1))
    assert not touched[~tipped].any()
    assert touched[tipped].max() <= 8


def test_the_centre_pixel_has_the_named_colour_and_a_corner_the_background():
    scenes = draw(500, 1.0)
    pictures = (world.render(scenes) + 1) * 127.5
    rows = torch.arange(len(scenes))
    paint, plain = np.array(list(world.COLOURS.values())), np.array(list(world.BACKGROUNDS.values()))
    for slot in (0, 1):
        x, y = torch.from_numpy(scenes.centre[:, slot]).long().unbind(1)
        assert np.allclose(pictures[rows, :, y, x], paint[scenes.colour[:, slot]], atol=0.01)
    assert np.allclose(pictures[:, :, 0, 0], plain[scenes.background], atol=0.01)


def test_edges_are_anti_aliased_and_areas_exact():
    scenes = draw(400, 0.0)
    scenes.colour[:], scenes.background[:] = 0, 1
    red = ((world.render(scenes)[:, 0] + 1) * 127.5 - 12) / (220 - 12)
    assert ((red > 0.05) & (red < 0.95)).flatten(1).any(1).float().mean() > 0.9  # but medium squares
    areas = {"circle": np.pi, "square": 4 * 0.86**2, "triangle": 0.5 * 2 * 1.8, "cross": 4 * 0.36 * (2 - 0.36)}
    for shape, area in areas.items():
        rows = np.flatnonzero(scenes.shape[:, 0] == world.SHAPES.index(shape))
        wanted = area * scenes.radius[rows, 0] ** 2
        assert np.abs(red[rows].sum((1, 2)).numpy() / wanted - 1).max() < 0.04, shape


def test_moving_an_object_by_whole_pixels_moves_its_picture():
    scenes = draw(60, 0.0)
    scenes.size[:], scenes.centre[:] = 0, 11.3
    before = world.render(scenes)
    scenes.centre[:, :, 0] += 7
    assert torch.allclose(world.render(scenes)[..., 7:], before[..., :-7], atol=1e-5)


@pytest.mark.parametrize("full", [False, True])
def test_captions_say_only_what_is_true(full):
    rng = np.random.default_rng(1)
    scenes = draw(4_000, 0.4)
    texts = world.caption(scenes, rng, full_share=float(full))
    for i, text in enumerate(texts):
        if not text:
            assert not full
            continue
        said = facts(text)
        columns = ((world.SIZE_NAMES, scenes.size), (world.COLOUR_NAMES, scenes.colour), (world.SHAPES, scenes.shape))
        true = [tuple(names[column[i, k]] for names, column in columns) for k in range(2 if scenes.two[i] else 1)]
        if said.whole:
            assert len(said.objects) == len(true)
            for named, there in zip(said.objects, true, strict=True):
                assert all(a in (None, b) for a, b in zip(named, there, strict=True))
            assert said.relation == (world.RELATIONS[scenes.relation[i]] if scenes.two[i] else None)
        elif said.objects:
            named = [a for a in said.objects[0] if a]
            assert len(named) == 1
            assert any(named[0] in other for other in true)
        assert said.background in (None, world.BACKGROUND_NAMES[scenes.background[i]])


def test_a_share_of_captions_names_everything():
    scenes = draw(4_000, 0.0)
    texts = world.caption(scenes, np.random.default_rng(2), full_share=0.3)
    whole = [len(text.split()) == 6 for text in texts]
    # By chance, too: 0.75 of the rest are sentences, and each names size, colour and background with 0.5, 0.6 and 0.5.
    assert np.mean(whole) == pytest.approx(0.3 + 0.7 * 0.75 * 0.5 * 0.6 * 0.5, abs=0.02)


def test_short_and_empty_captions_come_as_often_as_stated():
    texts = world.caption(draw(20_000, 0.25), np.random.default_rng(2))
    assert np.mean([text == "" for text in texts]) == pytest.approx(world.EMPTY_SHARE, abs=0.01)
    lone = [text for text in texts if text and not text.startswith("a")]
    assert len(lone) / len(texts) == pytest.approx(world.SHORT_SHARE, abs=0.01)
    assert {"red", "on white", "large", "circle"} <= set(lone)


@pytest.mark.parametrize("text", ["", "a dog", "a red", "left of a circle", "a circle left of", "circle red"])
def test_facts_refuses_what_is_no_caption(text):
    with pytest.raises(ValueError, match="caption of the world"):
        facts(text)


# The text encoder


def say(**facts):
    return [1 + names.index(facts[name]) if name in facts else 0 for name, names in WORD_FACTS.items()]


def test_each_word_tells_of_its_own_phrase():
    first = say(phrase="first object", size="small", colour="red", shape="circle", lies="left of")
    second = say(phrase="second object", shape="square", lies="right of")
    relation, place = say(phrase="relation"), say(phrase="background", background="pink")
    found = word_facts("a small red circle left of a square on pink")
    assert found == [first] * 4 + [relation] * 2 + [second] * 2 + [place] * 2
    assert word_facts("an orange star") == [say(phrase="first object", colour="orange", shape="star")] * 3
    assert word_facts("red") == [say(phrase="lone attribute", colour="red")]
    assert word_facts("on pink") == [place] * 2


def test_word_facts_agree_with_the_facts_of_the_sentence():
    texts = [text for text in world.caption(draw(500, 0.5), np.random.default_rng(3)) if text]
    for text in texts:
        rows, said = word_facts(text), facts(text)
        assert len(rows) == len(text.split())
        for phrase, named in zip((1, 2) if said.whole else (), said.objects, strict=False):
            (row,) = {tuple(row) for row in rows if row[0] == phrase}
            names = [choices[at - 1] if at else None for at, choices in zip(row, WORD_FACTS.values(), strict=True)]
            assert tuple(names[1:4]) == tuple(named)


def test_text_encoder_knows_which_word_belongs_to_which_object(pipe):
    """A linear reading, fitted on 800 captions of pairs, tested on 200: a bag of words reads half of the phrases."""
    scenes = draw(1000, 1.0)
    texts = world.caption(scenes, np.random.default_rng(4), full_share=1.0)
    with torch.no_grad():
        found = embed(pipe.tokenizer, pipe.text_encoder, texts)[0]
    at = [(i, place, k) for i, text in enumerate(texts) for k, place in enumerate(shape_words(text))]
    told = torch.stack([found[i, place] for i, place, _ in at]).double()
    told = torch.cat([told, torch.ones(len(told), 1)], 1)
    for choices, right in ((2, [k for _, _, k in at]), (6, [scenes.colour[i, k] for i, _, k in at])):
        right = torch.tensor(np.array(right))
        wanted = torch.nn.functional.one_hot(right, choices).double()
        reading = torch.linalg.lstsq(told[:1600], wanted[:1600]).solution
        assert ((told[1600:] @ reading).argmax(1) == right[1600:]).double().mean() > 0.98


def shape_words(text):
    return [place for place, word in enumerate(text.split()) if word in world.SHAPES]


# What the generator learns from


@pytest.mark.parametrize("two", [0.0, 1.0])
def test_noise_places_objects_and_changes_nothing_else(two):
    scenes, start = draw(300, two), noise(300, seed=1)
    moved = place_by_noise(scenes, start)
    for name in ("two", "colour", "shape", "size", "radius", "background", "relation"):
        assert (getattr(moved, name) == getattr(scenes, name)).all()
    assert (moved.centre != scenes.centre).any((1, 2)).mean() > 0.9

    def height(placed: world.Scenes, slot: int) -> float:
        """Mean of the noise in the cell that holds the object's centre."""
        x, y = torch.from_numpy(placed.centre[:, slot] // 4).long().clamp(max=7).unbind(-1)
        return float(start[torch.arange(300), slot, y, x].mean())

    for slot in range(1 + int(two)):
        assert height(moved, slot) > 0.5
        assert abs(height(scenes, slot)) < 0.25
    if not two:
        assert abs(height(moved, 1)) < 0.25


@pytest.mark.parametrize("two", [0.0, 1.0])
def test_noise_finds_the_best_of_all_placements(two):
    scenes, start = draw(200, two), noise(200, seed=1)
    near = torch.exp(-0.5 * ((torch.arange(8)[:, None] * 4 + 2 - torch.arange(33)) / 4) ** 2)
    near = near / near.norm(dim=0)
    around = torch.einsum("nkyx,ya,xb->nkab", start[:, :2], near, near)

    def total(placed: world.Scenes) -> torch.Tensor:
        x, y = torch.from_numpy(placed.centre).long().unbind(-1)
        return around[torch.arange(200)[:, None], torch.arange(2), y, x][:, : 1 + int(two)].sum(1)

    best, rng = total(place_by_noise(scenes, start)), np.random.default_rng(4)
    for _ in range(100):
        placed = world.draw_scenes(200, rng, attributes=scenes)
        apart = np.abs(placed.centre[:, 0] - placed.centre[:, 1])
        along, across = apart.max(1), apart.min(1)  # rounding to whole pixels can take a little from both
        kept = (along >= placed.radius.sum(1) + world.GAP) & (across <= world.ACROSS * along) if two else along >= 0
        assert (total(placed) <= best + 1e-4)[torch.from_numpy(kept)].all()


def test_noise_keeps_the_rules_of_the_world():
    scenes = place_by_noise(draw(2_000, 1.0), noise(2_000))
    room = scenes.radius[..., None] + world.MARGIN
    assert ((scenes.centre >= room) & (scenes.centre <= world.SIZE - room)).all()
    rows, axis = np.arange(2_000), scenes.relation // 2
    apart = scenes.centre[:, 1] - scenes.centre[:, 0]
    along = np.where(scenes.relation % 2 == 0, 1, -1) * apart[rows, axis]
    assert (along >= scenes.radius.sum(1) + world.GAP).all()
    assert (np.abs(apart[rows, 1 - axis]) <= world.ACROSS * along).all()


# The judge

RECORD = json.loads((WEIGHTS / "training.json").read_text())["evaluation"]


def test_classifier_reads_fresh_renders(classifier):
    """Above 98 % over the 10 000 renders of training.json; over fewer, three standard deviations of a share less."""
    assert min(RECORD["classifier"].values()) > 0.98
    shares = accuracy(classifier, 3_000, seed=4242)
    assert min(shares.values()) > 0.98 - 3 * math.sqrt(0.98 * 0.02 / 3_000), shares


@pytest.mark.parametrize("kind", SPOILS)
def test_classifier_sees_each_kind_of_spoil(classifier, kind):
    pictures, kinds, told = spoil(draw(2_700, 0.5), np.random.default_rng(3))
    rows = (kinds == SPOILS.index(kind)) & told
    assert read(classifier, pictures[rows]).clean.float().mean() < 0.1


def test_reading_answers_to_captions(classifier):
    rng = np.random.default_rng(5)
    for two in (0.0, 1.0):
        scenes = draw(300, two, seed=6)
        texts = world.caption(scenes, rng, full_share=1.0)
        reading = read(classifier, world.render(scenes))
        own = torch.stack([matches(reading, text)[i] for i, text in enumerate(texts)])
        other = torch.stack([matches(reading, text)[i - 1] for i, text in enumerate(texts)])
        assert own.float().mean() > 0.98
        assert other.float().mean() < 0.05
        red = torch.from_numpy((scenes.colour == 0)[:, : 1 + int(two)].any(1))
        assert (shows(reading, "red") == red).float().mean() > 0.98


def test_a_turned_relation_does_not_match(classifier):
    scenes = draw(200, 1.0, seed=7)
    texts = world.caption(scenes, np.random.default_rng(8), full_share=1.0)
    scenes.relation ^= 1
    turned = world.caption(scenes, np.random.default_rng(8), full_share=1.0)
    assert texts != turned
    reading = read(classifier, world.render(scenes))
    assert torch.stack([matches(reading, text)[i] for i, text in enumerate(turned)]).float().mean() < 0.03


# The pipeline


def test_save_and_load_gives_the_same_bits(pipe, tmp_path):
    pipe.save_pretrained(str(tmp_path))
    again = ShapesPipeline.from_pretrained(str(tmp_path))
    again.set_progress_bar_config(disable=True)
    for name in ("text_encoder", "unet", "vae"):
        ours, theirs = getattr(pipe, name).state_dict(), getattr(again, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    first, second = (each("a red circle", latents=noise(1), output_type="pt").images for each in (pipe, again))
    assert torch.equal(first, second)


def test_components_are_stock_classes(pipe):
    index = json.loads((WEIGHTS / "model_index.json").read_text())
    assert {name: value[0] for name, value in index.items() if not name.startswith("_")} == {
        "scheduler": "diffusers", "text_encoder": "transformers", "tokenizer": "transformers",
        "unet": "diffusers", "vae": "diffusers",
    }  # fmt: skip


def test_the_seed_decides_the_picture(pipe):
    def pictures(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return pipe("a star", generator=generator, num_images_per_prompt=3, output_type="pt").images

    assert torch.equal(pictures(1), pictures(1))
    assert not torch.equal(pictures(1), pictures(2))


def test_a_list_of_generators_seeds_each_picture(pipe):
    seeds = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    both = pipe(["a star", "a cross"], generator=seeds, output_type="pt").images
    alone = pipe("a cross", generator=torch.Generator().manual_seed(6), output_type="pt").images
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-4)


def test_prompts_of_unequal_length_draw_what_each_draws_alone(pipe):
    prompts = ["a cross", "a small red circle left of a medium blue square on white", ""]
    together = pipe(prompts, latents=noise(3), output_type="pt").images
    for i, prompt in enumerate(prompts):
        alone = pipe(prompt, latents=noise(3)[i : i + 1], output_type="pt").images
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)


def test_padding_is_masked(pipe):
    call = {"latents": noise(1), "output_type": "pt"}
    short, long = (pipe("a red circle", max_sequence_length=length, **call).images for length in (5, 16))
    torch.testing.assert_close(short, long, rtol=0, atol=1e-4)


def test_several_images_per_prompt_equal_single_ones(pipe):
    many = pipe(["a star", "a cross"], num_images_per_prompt=2, latents=noise(4), output_type="pt").images
    for i, prompt in enumerate(["a star", "a star", "a cross", "a cross"]):
        alone = pipe(prompt, latents=noise(4)[i : i + 1], output_type="pt").images
        torch.testing.assert_close(many[i : i + 1], alone, rtol=0, atol=1e-4)


def test_guidance_is_the_formula(pipe):
    """One step of CFG equals the two velocities combined by hand."""
    call = {"latents": noise(1), "num_inference_steps": 1, "output_type": "latent"}
    with_prompt = pipe("a circle", **call).images
    without = pipe("red", **call).images
    guided = pipe("a circle", negative_prompt="red", guidance_scale=3.0, **call).images
    torch.testing.assert_close(guided, without + 3.0 * (with_prompt - without), rtol=0, atol=1e-4)
    assert pipe.do_classifier_free_guidance
    assert pipe.num_timesteps == 1


def test_ready_made_embeddings_do_the_same(pipe):
    embeds, mask, negative, negative_mask = pipe.encode_prompt(["a circle", "a red star"], True, ["red", "on white"])
    call = {"latents": noise(4), "num_images_per_prompt": 2, "guidance_scale": 2.0, "output_type": "pt"}
    ready = pipe(
        prompt_embeds=embeds, prompt_attention_mask=mask, negative_prompt_embeds=negative,
        negative_prompt_attention_mask=negative_mask, **call,
    ).images  # fmt: skip
    again = pipe(["a circle", "a red star"], ["red", "on white"], **call).images
    torch.testing.assert_close(ready, again, rtol=0, atol=1e-5)


def test_the_callback_sees_and_changes_every_step(pipe):
    steps = []

    def stop(pipeline, step, timestep, tensors):
        steps.append((step, float(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    images = pipe("a circle", latents=noise(1), callback_on_step_end=stop, output_type="latent").images
    assert [step for step, _ in steps] == [0, 1, 2, 3]
    assert steps[0][1] == 1000.0
    assert not images.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a dog"}, "never learned"),
        ({"prompt": "a " * 16 + "circle"}, "at most 15 words"),
        ({}, "exactly one of prompt"),
        ({"prompt": 3}, "must be a str"),
        ({"prompt": "a star", "height": 64}, "must be 32"),
        ({"prompt": "a star", "latents": torch.zeros(2, 8, 8, 8)}, "latents must have shape"),
        ({"prompt": "a star", "generator": [torch.Generator()] * 2}, "generator must be"),
        ({"prompt": "a star", "negative_prompt": ["red"] * 3, "guidance_scale": 2.0}, "negative_prompt must be"),
        ({"prompt_embeds": torch.zeros(1, 4, 128)}, "must be given together"),
        ({"prompt": "a star", "callback_on_step_end_tensor_inputs": ["x"]}, "callback_on_step_end_tensor_inputs"),
    ],
)
def test_what_does_not_fit_is_refused(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(**arguments)


def test_a_folder_without_weights_says_how_to_make_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="make shapes"):
        load(tmp_path)


# The weights


def test_weights_are_small():
    """What the wheel holds, each denoiser of the evidence, and the teachers with their one-step students."""

    def size(folder):
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    evidence = {name: size(folder_of(name)) for name in VARIANTS if name != "few"}
    assert size(WEIGHTS) <= 7_000_000
    assert max(evidence.values()) <= 8_000_000
    assert sum(n for name, n in evidence.items() if name != "joint_few") <= 24_000_000


def test_shipped_weights_reach_what_the_documents_say(pipe, classifier):
    """Fewer samples than in training.json: the slack is three standard deviations of a share over 300."""
    shares = evaluate(pipe, classifier, 300, seed=77)
    for name in ("one: objects", "one: objects and clean", "two: objects", "a large circle: red"):
        assert abs(shares[name] - RECORD["samples"][name]) < 0.087, name


def test_one_object_is_drawn_right_and_clean():
    assert RECORD["samples"]["one: objects and clean"] >= 0.90


def test_two_objects_are_drawn_right():
    assert RECORD["samples"]["two: objects"] >= 0.60


def test_samples_do_not_depend_on_the_batch(pipe):
    prompts = ["a circle", "a red star", "a cross on white", "a blue square"]
    torch.testing.assert_close(sample(pipe, prompts, 3, batch=1), sample(pipe, prompts, 3, batch=4), rtol=0, atol=1e-4)


def test_a_quick_training_runs_through(tmp_path, capsys):
    from nag_kernels.shapes.train import main

    main(["--quick", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")])
    assert "one: objects and clean" in capsys.readouterr().out
    assert load(tmp_path / "out")("a circle", num_inference_steps=1).images[0].size == (32, 32)
    assert json.loads((tmp_path / "out" / "training.json").read_text())["settings"]["seed"] == 20260
