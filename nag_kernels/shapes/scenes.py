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
SIZES = {"small": 4.6, "medium": 6.6, "large": 9.6}  # radius of the circle of equal reach, in pixels
BACKGROUNDS = {"white": (255, 255, 255), "black": (12, 12, 12), "gray": (128, 128, 128), "pink": (255, 190, 205)}
RELATIONS = ("left of", "right of", "above", "below")
COLOUR_NAMES, SIZE_NAMES, BACKGROUND_NAMES = tuple(COLOURS), tuple(SIZES), tuple(BACKGROUNDS)
WORDS = tuple(sorted({"a", "an", "on", *COLOURS, *SHAPES, *SIZES, *BACKGROUNDS, *" ".join(RELATIONS).split()}))
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
    radius: np.ndarray  # [N, 2] pixels
    centre: np.ndarray  # [N, 2, 2] pixels, x then y, y down
    background: np.ndarray  # [N] index into BACKGROUND_NAMES
    relation: np.ndarray  # [N] index into RELATIONS: where the first object lies, seen from the second

    def __len__(self) -> int:
        return len(self.two)

    def __getitem__(self, rows: slice | np.ndarray) -> "Scenes":
        return Scenes(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw_scenes(count: int, rng: np.random.Generator, two_share: float = TWO_SHARE) -> Scenes:
    """`count` random scenes. Objects lie inside the picture; two never touch, nor share both colour and shape."""
    two = rng.random(count) < two_share
    colour, shape = rng.integers(0, len(COLOURS), (count, 2)), rng.integers(0, len(SHAPES), (count, 2))
    same = (colour[:, 0] == colour[:, 1]) & (shape[:, 0] == shape[:, 1])
    colour[same, 1] = (colour[same, 1] + rng.integers(1, len(COLOURS), same.sum())) % len(COLOURS)
    # Two large objects do not fit side by side, so scenes of two use the two smaller sizes.
    size = rng.integers(0, np.where(two, len(SIZES) - 1, len(SIZES))[:, None], (count, 2))
    radius = np.array(list(SIZES.values()))[size] * rng.uniform(0.95, 1.05, (count, 2))
    margin = radius + 1.0
    free = rng.uniform(0, 1, (count, 2, 2))
    centre = margin[..., None] + free * (SIZE - 2 * margin[..., None])

    relation = rng.integers(0, len(RELATIONS), count)
    axis, low = relation // 2, relation % 2  # low: which object has the smaller coordinate along the axis
    rows, high, gap = np.arange(count), 1 - low, 1.5
    r_low, r_high = radius[rows, low], radius[rows, high]
    # Along the axis: a free gap between the two, the rest of the room shared at random before and after them.
    room = SIZE - 2.0 - 2 * r_low - 2 * r_high - gap
    cut = np.sort(rng.uniform(0, 1, (count, 2)), axis=1) * np.maximum(room, 0)[:, None]
    along = np.empty((count, 2))
    along[rows, low] = 1.0 + cut[:, 0] + r_low
    along[rows, high] = 1.0 + cut[:, 1] + 2 * r_low + gap + r_high
    # Across the axis the two stay closer together than along it, so that the named relation is the only true one.
    limit = 0.75 * np.abs(along[:, 0] - along[:, 1])
    across = np.take_along_axis(centre, (1 - axis)[:, None, None].repeat(2, 1), 2)[..., 0]
    across[:, 1] = np.clip(across[:, 1], across[:, 0] - limit, across[:, 0] + limit)
    across[:, 1] = np.clip(across[:, 1], margin[:, 1], SIZE - margin[:, 1])
    pair = np.where(axis[:, None, None] == 0, np.stack([along, across], -1), np.stack([across, along], -1))
    centre = np.where(two[:, None, None], pair, centre)
    background = rng.integers(0, len(BACKGROUNDS), count)
    return Scenes(two, colour, shape, size, radius, centre, background, relation)


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    angles = [math.pi * step / points for step in range(2 * points)]
    return [
        (math.sin(a) * (inner if i % 2 else 1), -math.cos(a) * (inner if i % 2 else 1)) for i, a in enumerate(angles)
    ]


# Outlines in units of the radius, y down, scaled so that all shapes of one size look equally large.
_A = 0.36  # half the width of an arm of the cross
OUTLINES = {
    "square": [(x * 0.86, y * 0.86) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))],
    "triangle": [(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)],
    "star": [(x * 1.12, y * 1.12 + 0.06) for x, y in _star(5, 0.45)],
    "cross": [
        (-_A, -1),
        (_A, -1),
        (_A, -_A),
        (1, -_A),
        (1, _A),
        (_A, _A),
        (_A, 1),
        (-_A, 1),
        (-_A, _A),
        (-1, _A),
        (-1, -_A),
        (-_A, -_A),
    ],
}


def _coverage(shape: str, points: Tensor, radius: Tensor) -> Tensor:
    """Anti-aliased coverage in [0, 1] of pixels `points` [N, P, 2] (relative to the centre) by a shape of `radius` [N].

    Half a pixel inside the outline minus the signed distance to it: a one-pixel ramp along the edge.
    """
    if shape == "circle":
        return (0.5 - (points.norm(dim=-1) - radius[:, None])).clamp(0, 1)
    corners = torch.tensor(OUTLINES[shape], dtype=points.dtype)
    distance = torch.full(points.shape[:2], torch.inf, dtype=points.dtype)
    crossings = torch.zeros(points.shape[:2], dtype=torch.bool)
    for start, end in zip(corners, corners.roll(-1, 0), strict=True):
        start, edge = start * radius[:, None], (end - start) * radius[:, None]
        offset = points - start[:, None]
        along = ((offset * edge[:, None]).sum(-1) / (edge * edge).sum(-1)[:, None]).clamp(0, 1)
        distance = torch.minimum(distance, (offset - along[..., None] * edge[:, None]).norm(dim=-1))
        above = (offset[..., 1] >= 0) ^ (offset[..., 1] - edge[:, None, 1] >= 0)
        turn = edge[:, None, 0] * offset[..., 1] - edge[:, None, 1] * offset[..., 0]
        crossings ^= above & ((turn > 0) == (edge[:, None, 1] < 0))
    return (0.5 - torch.where(crossings, -distance, distance)).clamp(0, 1)


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
            cover = _coverage(name, pixels[None] - centre[:, None], radius)[:, None]
            rows = torch.from_numpy(rows)
            pictures[rows] += cover * (paint[rows, slot][:, :, None] - pictures[rows])
    return pictures.reshape(-1, 3, SIZE, SIZE)


def caption(scenes: Scenes, rng: np.random.Generator, full: bool = False) -> list[str]:
    """One caption per scene, each naming a random subset of what is true of it (`full`: everything but sizes of pairs).

    "a large red circle on white", "a circle", "red", "on white", "a small red star left of a blue square", "".
    A sentence that starts with "a" names every object of the picture; only lone attributes leave objects out.
    """
    chance = rng.random((len(scenes), 6)).tolist()
    pick = rng.integers(0, 2, len(scenes))
    captions = []
    for i in range(len(scenes)):
        names = [
            (SIZE_NAMES[scenes.size[i, k]], COLOUR_NAMES[scenes.colour[i, k]], SHAPES[scenes.shape[i, k]])
            for k in (0, 1)
        ]
        place = f"on {BACKGROUND_NAMES[scenes.background[i]]}"
        two = bool(scenes.two[i])
        if not full and chance[i][0] < EMPTY_SHARE:
            captions.append("")
        elif not full and chance[i][0] < EMPTY_SHARE + SHORT_SHARE:
            captions.append((*names[pick[i] if two else 0], place, place)[int(chance[i][1] * 5)])
        else:
            words = []
            for k in range(2 if two else 1):
                size, colour, shape = names[k]
                sized = not two if full else chance[i][1 + 2 * k] < (0.25 if two else 0.5)
                coloured = full or chance[i][2 + 2 * k] < (0.85 if two else 0.6)
                words += [RELATIONS[scenes.relation[i]]] if k else []
                described = [*[size] * sized, *[colour] * coloured, shape]
                words += ["an" if described[0] == "orange" else "a", *described]
            captions.append(" ".join(words + [place] * (full or chance[i][5] < 0.5)))
    return captions
