# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""A small network that reads a picture's attributes, and says whether the picture is clean.

It is the judge of the generator, so it learns from renders alone and never sees a generated picture.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .scenes import BACKGROUND_NAMES, COLOUR_NAMES, COLOURS, RELATIONS, SHAPES, SIZE_NAMES

CELLS = len(COLOURS) * len(SHAPES)
HEADS = {
    "cells": CELLS,  # is an object of this colour and shape there? index colour * len(SHAPES) + shape
    "colours": len(COLOURS),  # is anything of this colour there?
    "shapes": len(SHAPES),
    "two": 1,  # two objects
    "clean": 1,
    "size": len(SIZE_NAMES),  # of a lone object
    "background": len(BACKGROUND_NAMES),
    "relation": len(RELATIONS),  # of two objects: where the one of lower cell index lies, seen from the other
}
PLACED = ("cells", "colours", "shapes")  # first in HEADS
YES_NO = ("cells", "colours", "shapes", "two", "clean")  # the other heads choose one of their classes


class Classifier(nn.Module):
    """Pictures [N, 3, 32, 32] in [-1, 1] to a dict of logits [N, HEADS[name]].

    What is there is decided at each place of an 8x8 map and read off the best place, so that one place teaches all and
    a colour is never joined to another object's shape; the rest is read off the whole map. One spoiled place is enough
    for a picture not to be clean.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, size, stride in ((3, 48, 5, 2), (48, 96, 3, 2), *[(96, 96, 3, 1)] * 3):
            conv = nn.Conv2d(before, after, size, stride, size // 2, bias=False)
            layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.there = nn.Conv2d(96, sum(HEADS[name] for name in PLACED), 1)
        self.spoiled = nn.Conv2d(96, 8, 1)
        self.places = nn.Sequential(nn.Conv2d(96, 12, 1), nn.ReLU(), nn.Flatten())
        rest = sum(size for name, size in HEADS.items() if name not in PLACED)
        self.head = nn.Sequential(nn.Linear(96 + 96 + 12 * 64, 160), nn.ReLU(), nn.Linear(160, rest))

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        found = self.body(pictures)
        seen = torch.cat([found.amax((2, 3)), found.mean((2, 3)), self.places(found)], -1)
        whole = torch.cat([self.there(found).amax((2, 3)), self.head(seen)], -1)
        logits: dict[str, Tensor] = dict(zip(HEADS, whole.split(list(HEADS.values()), -1), strict=True))
        spoiled = torch.cat([self.spoiled(found).amax((2, 3)), -logits["clean"]], -1)
        return logits | {"clean": -spoiled.logsumexp(-1, keepdim=True)}


@dataclass
class Reading:
    """What the classifier reads off N pictures; all tensors on the CPU."""

    two: Tensor  # [N] bool
    clean: Tensor  # [N] bool
    cells: Tensor  # [N, 2] colour * len(SHAPES) + shape, ascending; the second is -1 for one object
    colours: Tensor  # [N, 6] bool: this colour is there
    shapes: Tensor  # [N, 5] bool
    size: Tensor  # [N] index, of a lone object
    background: Tensor  # [N] index
    relation: Tensor  # [N] index, of two objects


def load_classifier(path: str | Path | None = None) -> Classifier:
    """The shipped classifier in float32, ready to read."""
    from .pipeline import WEIGHTS

    model = Classifier()
    state = load_file(str(path or WEIGHTS / "classifier.safetensors"))
    model.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    )
    return model.eval()


@torch.inference_mode()
def read(model: Classifier, pictures: Tensor, batch: int = 256) -> Reading:
    """Read pictures [N, 3, 32, 32] in [-1, 1]."""
    logits = [model(part.float()) for part in pictures.cpu().split(batch)]
    joined = {name: torch.cat([part[name] for part in logits]) for name in HEADS}
    two = joined["two"][:, 0] > 0
    best = joined["cells"].topk(2).indices
    cells = torch.where(
        two[:, None], best.sort(-1).values, torch.stack([best[:, 0], torch.full_like(best[:, 0], -1)], -1)
    )
    choice = {name: joined[name].argmax(-1) for name in ("size", "background", "relation")}
    return Reading(two, joined["clean"][:, 0] > 0, cells, joined["colours"] > 0, joined["shapes"] > 0, **choice)


_OBJECT = rf"(?:(an?) )?(?:({'|'.join(SIZE_NAMES)}) ?)?(?:({'|'.join(COLOUR_NAMES)}) ?)?({'|'.join(SHAPES)})?"
_SENTENCE = re.compile(rf"^{_OBJECT}(?: ({'|'.join(RELATIONS)}) {_OBJECT})?(?: ?on ({'|'.join(BACKGROUND_NAMES)}))?$")


@dataclass(frozen=True)
class Facts:
    """What a caption says. `objects` holds (size, colour, shape) names or None; empty for a lone background."""

    objects: tuple[tuple[str | None, str | None, str | None], ...]
    relation: str | None
    background: str | None
    whole: bool  # names every object of the picture ("a circle"), rather than one attribute of it ("circle")


def facts(text: str) -> Facts:
    """Parse a caption as `scenes.caption` writes it; ValueError for any other sentence."""
    text = " ".join(text.lower().replace(",", " ").split())
    found = _SENTENCE.match(text)
    if not text or found is None or ((found[1] or found[5]) and not found[4]) or (found[5] and not found[9]):
        raise ValueError(
            f"text must be a caption of the world of shapes, such as 'a red circle on white', got {text!r}"
        )
    objects = ((found[2], found[3], found[4]), (found[7], found[8], found[9]))
    return Facts(tuple(each for each in objects if any(each)), found[5], found[10], found[1] is not None)


def _has(reading: Reading, wanted: tuple[str | None, str | None, str | None]) -> Tensor:
    """[N] bool: an object of the wanted size, colour and shape is there (None = any)."""
    size, colour, shape = wanted
    if colour and shape:
        cell = COLOUR_NAMES.index(colour) * len(SHAPES) + SHAPES.index(shape)
        there = (reading.cells == cell).any(-1)
    elif colour:
        there = reading.colours[:, COLOUR_NAMES.index(colour)]
    elif shape:
        there = reading.shapes[:, SHAPES.index(shape)]
    else:
        there = torch.ones_like(reading.two)
    return there & ~reading.two & (reading.size == SIZE_NAMES.index(size)) if size else there


def shows(reading: Reading, text: str) -> Tensor:
    """[N] bool: everything that `text` names is in the picture, whatever else is; clean or not."""
    said = facts(text)
    there = torch.ones_like(reading.two)
    for wanted in said.objects:
        if wanted[0] and len(said.objects) > 1:
            raise ValueError(f"text must not name sizes of two objects, which are not read, got {text!r}")
        there = there & _has(reading, wanted)
    if said.background:
        there = there & (reading.background == BACKGROUND_NAMES.index(said.background))
    return there


def matches(reading: Reading, text: str) -> Tensor:
    """[N] bool: the picture is what `text` says, with the right number of objects and relation; clean or not."""
    said = facts(text)
    there = shows(reading, text)
    if not said.whole:
        return there
    there = there & (reading.two == (len(said.objects) > 1))
    if len(said.objects) < 2:
        return there
    first, second = (
        torch.from_numpy(np.stack([_fits(cell, wanted) for cell in range(CELLS)])) for wanted in said.objects
    )
    low, high = reading.cells[:, 0].clamp(min=0), reading.cells[:, 1].clamp(min=0)
    wanted = RELATIONS.index(said.relation)
    straight = first[low] & second[high] & (reading.relation == wanted)
    turned = (
        first[high] & second[low] & (reading.relation == (wanted ^ 1))
    )  # "left of" and "right of" differ in one bit
    return there & (straight | turned)


def _fits(cell: int, wanted: tuple[str | None, str | None, str | None]) -> bool:
    colour, shape = COLOUR_NAMES[cell // len(SHAPES)], SHAPES[cell % len(SHAPES)]
    return wanted[1] in (None, colour) and wanted[2] in (None, shape)
