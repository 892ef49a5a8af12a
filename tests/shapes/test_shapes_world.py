# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The small model's world: its scenes, captions and words, and where noise puts objects."""

import pytest
import torch

pytest.importorskip("diffusers")

import numpy as np

from nag_kernels.shapes import scenes as world
from nag_kernels.shapes.classifier import facts
from nag_kernels.shapes.generator import place_by_noise
from nag_kernels.shapes.text_encoder import WORD_FACTS, word_facts


def draw(count: int, two: float, seed: int = 0) -> world.Scenes:
    return world.draw_scenes(count, np.random.default_rng(seed), two_share=two)


def noise(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 8, 8, 8, generator=torch.Generator().manual_seed(seed))


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


def shape_words(text):
    return [place for place, word in enumerate(text.split()) if word in world.SHAPES]


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
