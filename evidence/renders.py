# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Real renders of what a pair asks for: scenes that satisfy its prompt and do not show its negative.

The truth is that of the scene itself; no classifier is asked.
"""

import numpy as np
from torch import Tensor

from nag_kernels.shapes.classifier import facts
from nag_kernels.shapes.scenes import (
    BACKGROUND_NAMES,
    COLOUR_NAMES,
    RELATIONS,
    SHAPES,
    SIZE_NAMES,
    TWO_SHARE,
    Scenes,
    draw_scenes,
    render,
)

from .cells import Pair

NAMES = {"size": SIZE_NAMES, "colour": COLOUR_NAMES, "shape": SHAPES}


def there(scenes: Scenes, text: str) -> np.ndarray:
    """[N] bool: everything that `text` names is in the scene, whatever else is. Raises ValueError for other sentences."""
    said = facts(text)
    found = np.ones(len(scenes), dtype=bool)
    for wanted in said.objects:
        fits = np.ones((len(scenes), 2), dtype=bool)
        fits[:, 1] = scenes.two
        for (name, names), value in zip(NAMES.items(), wanted, strict=True):
            if value is not None:
                fits &= getattr(scenes, name) == names.index(value)
        found &= fits.any(1)
    if said.background:
        found &= scenes.background == BACKGROUND_NAMES.index(said.background)
    return found


def wanted_scenes(pair: Pair, count: int, rng: np.random.Generator) -> Scenes:
    """`count` scenes as the world draws them, given that the prompt of `pair` is true and its negative is not.

    What the prompt states is set, the rest is drawn and rejected where the scene would show the negative or repeat an object.
    Raises ValueError where no scene is like that.
    """
    said = facts(pair.prompt)
    two_share = float(len(said.objects) > 1) if said.whole else TWO_SHARE
    kept: list[Scenes] = []
    while sum(map(len, kept)) < count:
        drawn = draw_scenes(4 * max(count, 64), rng, two_share)
        if said.whole:
            for slot, wanted in enumerate(said.objects):
                for (name, names), value in zip(NAMES.items(), wanted, strict=True):
                    if value is not None:
                        getattr(drawn, name)[:, slot] = names.index(value)
        if said.relation:
            drawn.relation[:] = RELATIONS.index(said.relation)
        if said.background:
            drawn.background[:] = BACKGROUND_NAMES.index(said.background)
        repeated = drawn.two & (drawn.colour[:, 0] == drawn.colour[:, 1]) & (drawn.shape[:, 0] == drawn.shape[:, 1])
        drawn = drawn[there(drawn, pair.prompt) & ~there(drawn, pair.negative) & ~repeated]
        if len(drawn) == 0:
            raise ValueError(f"pair must be possible, got {pair.prompt!r} without {pair.negative!r}")
        kept.append(draw_scenes(len(drawn), rng, attributes=drawn))  # places anew: sizes may have changed
    fields = zip(*(vars(each).values() for each in kept), strict=True)
    return Scenes(*(np.concatenate(each) for each in fields))[:count]


def real(pair: Pair, count: int, seed: tuple[int, ...]) -> Tensor:
    """`count` renders [N, 3, 32, 32] in [-1, 1] of `wanted_scenes`."""
    return render(wanted_scenes(pair, count, np.random.default_rng(seed)))
