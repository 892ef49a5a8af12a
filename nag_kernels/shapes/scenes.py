# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The world that shapes draws: flat coloured shapes on a plain background, and captions whose facts are known.

A scene has one object, or (a quarter of them) two objects in a named relation. Scenes are held as columns of integers
and floats (`Scenes`), so that drawing, rendering and captioning a million of them stays cheap.
"""

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

SIZE = 32  # pixels, width and height of a picture
COLOURS = {
    "red": (220, 30, 35),
    "green": (30, 160, 60),
    "blue": (35, 70, 215),
    "yellow": (250, 215, 40),
    "orange": (245, 130, 20),
    "purple": (140, 45, 170),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
SIZES = {"small": 5.0, "medium": 7.0, "large": 10.0}  # radius of the circle of equal reach, in pixels
RADII = np.array(list(SIZES.values()))
BACKGROUNDS = {"white": (255, 255, 255), "black": (12, 12, 12), "gray": (128, 128, 128), "pink": (255, 190, 205)}
RELATIONS = ("left of", "right of", "above", "below")
COLOUR_NAMES, SIZE_NAMES, BACKGROUND_NAMES = tuple(COLOURS), tuple(SIZES), tuple(BACKGROUNDS)
WORDS = tuple(sorted({"a", "an", "on", *COLOURS, *SHAPES, *SIZES, *BACKGROUNDS, *" ".join(RELATIONS).split()}))
MARGIN = 1.0  # pixels between an object and the picture's edge, at least
GAP = 2.0  # pixels between two objects along their relation, at least
ACROSS = 0.75  # two objects lie at most so far apart across their relation, in units of their distance along it
TWO_SHARE = 0.25  # share of scenes with two objects
EMPTY_SHARE = 0.10  # share of captions dropped to "", the unconditional case of CFG
SHORT_SHARE = 0.15  # share of captions that are one lone attribute, as people write negatives: "red", "on white"


@dataclass
class Scenes:
    """N scenes as columns; for the second object of a one-object scene the columns are there but not used."""

    two: np.ndarray  # [N] bool
    colour: np.ndarray  # [N, 2] index into COLOUR_NAMES
    shape: np.ndarray  # [N, 2] index into SHAPES
    size: np.ndarray  # [N, 2] index into SIZE_NAMES
    centre: np.ndarray  # [N, 2, 2] whole pixels, x then y, y down
    background: np.ndarray  # [N] index into BACKGROUND_NAMES
    relation: np.ndarray  # [N] index into RELATIONS: where the first object lies, seen from the second

    def __len__(self) -> int:
        return len(self.two)

    @property
    def radius(self) -> np.ndarray:
        """[N, 2] pixels."""
        return RADII[self.size]

    def __getitem__(self, rows: slice | np.ndarray) -> "Scenes":
        return Scenes(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw_scenes(
    count: int, rng: np.random.Generator, two_share: float = TWO_SHARE, attributes: Scenes | None = None
) -> Scenes:
    """`count` random scenes. Objects lie inside the picture; two never touch, nor share both colour and shape.

    With `attributes`, scenes of `count`, only the places are random: everything else is theirs.
    """
    if attributes is None:
        two = rng.random(count) < two_share
        colour, shape = rng.integers(0, len(COLOURS), (count, 2)), rng.integers(0, len(SHAPES), (count, 2))
        same = (colour[:, 0] == colour[:, 1]) & (shape[:, 0] == shape[:, 1])
        colour[same, 1] = (colour[same, 1] + rng.integers(1, len(COLOURS), same.sum())) % len(COLOURS)
        # Two large objects do not fit side by side, so scenes of two use the two smaller sizes.
        size = rng.integers(0, np.where(two, len(SIZES) - 1, len(SIZES))[:, None], (count, 2))
        background, relation = rng.integers(0, len(BACKGROUNDS), count), rng.integers(0, len(RELATIONS), count)
    else:
        two, colour, shape, size = attributes.two, attributes.colour, attributes.shape, attributes.size
        background, relation = attributes.background, attributes.relation
    radius = RADII[size]
    margin = radius + MARGIN
    free = rng.uniform(0, 1, (count, 2, 2))
    centre = margin[..., None] + free * (SIZE - 2 * margin[..., None])

    axis, low = relation // 2, relation % 2  # low: which object has the smaller coordinate along the axis
    rows, high = np.arange(count), 1 - low
    r_low, r_high = radius[rows, low], radius[rows, high]
    # Along the axis: a free gap between the two, the rest of the room shared at random before and after them.
    room = SIZE - 2 * MARGIN - 2 * r_low - 2 * r_high - GAP
    cut = np.sort(rng.uniform(0, 1, (count, 2)), axis=1) * np.maximum(room, 0)[:, None]
    along = np.empty((count, 2))
    along[rows, low] = MARGIN + cut[:, 0] + r_low
    along[rows, high] = MARGIN + cut[:, 1] + 2 * r_low + GAP + r_high
    # Across the axis the two stay closer together than along it, so that the named relation is the only true one.
    limit = ACROSS * np.abs(along[:, 0] - along[:, 1])
    across = np.take_along_axis(centre, (1 - axis)[:, None, None].repeat(2, 1), 2)[..., 0]
    across[:, 1] = np.clip(across[:, 1], across[:, 0] - limit, across[:, 0] + limit)
    across[:, 1] = np.clip(across[:, 1], margin[:, 1], SIZE - margin[:, 1])
    pair = np.where(axis[:, None, None] == 0, np.stack([along, across], -1), np.stack([across, along], -1))
    centre = np.where(two[:, None, None], pair, centre).round()
    return Scenes(two, colour, shape, size, centre, background, relation)


def _fold(x: Tensor, y: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    """The points mirrored to one side of the line through 0 that makes `angle` with the upward axis."""
    normal = math.cos(angle), math.sin(angle)
    beyond = 2 * (x * normal[0] + y * normal[1]).clamp(min=0)
    return x - beyond * normal[0], y - beyond * normal[1]


def _outside(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """How many pixels points (x, y), relative to the centre, y down, lie outside a shape of `radius`; negative inside.

    Shapes are scaled so that all of one size look equally large. Straight outlines are half planes: the largest of
    their distances for "inside all", the smallest for "inside one".
    """
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.86 * radius
    if shape == "triangle":
        sides = (1.8 * x.abs() - y - 0.95 * radius) / math.hypot(1.8, 1)
        return torch.maximum(sides, y - 0.85 * radius)
    if shape == "cross":
        long, short = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
        return torch.maximum(long - radius, short - 0.36 * radius)
    # A star of five points: folded onto half a point, it has one edge, from the tip down to the inner corner.
    turn, tip = math.pi / 5, 1.12 * radius
    x, y = _fold(x.abs(), y - 0.06 * radius, 3 * turn)
    x, y = _fold(x, y, turn)
    x = x.abs()
    corner = 0.45 * math.sin(turn), 1 - 0.45 * math.cos(turn)  # of the edge, seen from the tip, in units of `tip`
    return (x * corner[1] - (y + tip) * corner[0]) / math.hypot(*corner)


def render(scenes: Scenes, colours: np.ndarray | None = None) -> Tensor:
    """Pictures [N, 3, 32, 32], float32 in [-1, 1]. `colours` [N, 2, 3] in [0, 255] replaces the named colours."""
    grid = torch.arange(SIZE, dtype=torch.float32) + 0.5
    pixels = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1).reshape(-1, 2)
    named = np.array(list(COLOURS.values()), dtype=np.float32)[scenes.colour] if colours is None else colours
    paint = torch.from_numpy(np.asarray(named, dtype=np.float32) / 127.5 - 1)
    plain = np.array(list(BACKGROUNDS.values()), dtype=np.float32)[scenes.background] / 127.5 - 1
    pictures = torch.from_numpy(plain)[:, :, None].repeat(1, 1, SIZE * SIZE)
    for slot in (0, 1):
        drawn = np.ones(len(scenes), dtype=bool) if slot == 0 else scenes.two
        for index, name in enumerate(SHAPES):
            rows = np.flatnonzero(drawn & (scenes.shape[:, slot] == index))
            if len(rows) == 0:
                continue
            centre = torch.from_numpy(scenes.centre[rows, slot].astype(np.float32))
            radius = torch.from_numpy(scenes.radius[rows, slot].astype(np.float32))
            x, y = (pixels - centre[:, None]).unbind(-1)
            cover = (0.5 - _outside(name, x, y, radius[:, None])).clamp(0, 1)[:, None]  # a ramp of one pixel
            drawn_in = torch.from_numpy(rows)
            pictures[drawn_in] += cover * (paint[drawn_in, slot][:, :, None] - pictures[drawn_in])
    return pictures.reshape(-1, 3, SIZE, SIZE)


def caption(scenes: Scenes, rng: np.random.Generator, full_share: float = 0.0) -> list[str]:
    """One caption per scene, each naming a random subset of what is true of it.

    A random `full_share` of the captions names everything but sizes of pairs.

    "a large red circle on white", "a circle", "red", "on white", "a small red star left of a blue square", "".
    A sentence that starts with "a" names every object of the picture; only lone attributes leave objects out.
    """
    chance = rng.random((len(scenes), 6)).tolist()
    pick = rng.integers(0, 2, len(scenes))
    full, captions = (rng.random(len(scenes)) < full_share).tolist(), []
    for i in range(len(scenes)):
        names = [
            (SIZE_NAMES[scenes.size[i, k]], COLOUR_NAMES[scenes.colour[i, k]], SHAPES[scenes.shape[i, k]])
            for k in (0, 1)
        ]
        place = f"on {BACKGROUND_NAMES[scenes.background[i]]}"
        two = bool(scenes.two[i])
        if not full[i] and chance[i][0] < EMPTY_SHARE:
            captions.append("")
        elif not full[i] and chance[i][0] < EMPTY_SHARE + SHORT_SHARE:
            captions.append((*names[pick[i] if two else 0], place, place)[int(chance[i][1] * 5)])
        else:
            words = []
            for k in range(2 if two else 1):
                size, colour, shape = names[k]
                sized = not two if full[i] else chance[i][1 + 2 * k] < (0.25 if two else 0.5)
                coloured = full[i] or chance[i][2 + 2 * k] < (0.85 if two else 0.6)
                words += [RELATIONS[scenes.relation[i]]] if k else []
                described = [*[size] * sized, *[colour] * coloured, shape]
                words += ["an" if described[0] == "orange" else "a", *described]
            captions.append(" ".join(words + [place] * (full[i] or chance[i][5] < 0.5)))
    return captions
