# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Which layers of a model are guided, as a user says it: the argument `layers` of `guide`, and the input of ComfyUI's node."""

import numbers
import re
from collections.abc import Collection, Iterable, Sequence

LayerChoice = str | Collection[float | str]  # "0-9, 12", numbers, names, or a share of the depth as two floats


def chosen_layers(where: str, layers: LayerChoice | None, names: Sequence[str]) -> frozenset[int] | None:
    """The indices that `layers` picks from the layers of these names, which stand in the model's order; None for all of them.

    layers: None or "all"; a string of numbers, ranges and names, "0-9, 12" or "down_blocks"; a list of these; or two floats
        (start, end): layer i of n is chosen if start <= i / n < end. A name is that of a layer or of a module around layers.
    Raises: TypeError for something else, ValueError for what is not there; `where` begins the message.
    """
    if layers is None or (isinstance(layers, str) and layers.strip().lower() == "all"):
        return None
    if not isinstance(layers, (str, list, tuple, range, set, frozenset)):
        raise TypeError(
            f"{where}: layers must be None, a string such as '0-3, 5', a list of numbers or names, or two floats, got "
            f"{layers!r:.60} ({type(layers).__name__}); for one layer write layers=[0]"
        )
    items: Sequence[object] = layers.split(",") if isinstance(layers, str) else list(layers)
    chosen: set[int] = set()
    if any(_is_number(x) and not isinstance(x, numbers.Integral) for x in items):
        chosen.update(_share(where, items, len(names)))
    else:
        for item in items:
            chosen.update(_picked(where, item, names))
    if not chosen:
        raise ValueError(f"{where}: layers picks no layer, got {layers!r:.60}; {_there_are(names)}")
    return frozenset(chosen)


def _is_number(x: object) -> bool:
    return isinstance(x, numbers.Real) and not isinstance(x, bool)


def _share(where: str, items: Sequence[object], count: int) -> Iterable[int]:
    """The layers of a share of the depth."""
    if len(items) != 2 or not all(map(_is_number, items)):
        raise ValueError(
            f"{where}: layers must be two floats for a share of the depth, (0.0, 0.5) say, or whole numbers, got {items!r:.60}"
        )
    start, end = (float(x) for x in items if isinstance(x, numbers.Real))
    if not 0 <= start < end <= 1:
        raise ValueError(
            f"{where}: layers as a share of the depth must be 0 <= start < end <= 1, got ({start:g}, {end:g}); layers by number "
            "are whole numbers"
        )
    return [i for i in range(count) if in_share(i, count, start, end)]


def in_share(i: int, count: int, start: float, end: float) -> bool:
    """Whether start <= i / count < end, for a layer or a step of so many.

    Rounded by less than one of them: 0.07 * 100 is a little above 7.
    """
    return start * count - 1e-6 <= i < end * count - 1e-6


def _picked(where: str, item: object, names: Sequence[str]) -> Iterable[int]:
    """The layers of one number, range or name."""
    count = len(names)
    text = str(item).strip()
    match = re.fullmatch(r"(\d+)\s*(?:-\s*(\d+))?", text)
    found: Iterable[int]
    if match is not None:
        first, last = int(match[1]), int(match[2] or match[1])
        found = range(first, last + 1) if last < count else ()
    else:
        found = [i for i, name in enumerate(names) if f"{name}.".startswith(f"{text}.")]
    if not found:
        raise ValueError(
            f"{where}: layers must be all, numbers and ranges from 0 to {count - 1} such as 0-{count - 1}, or names, got "
            f"{text!r:.60}; {_there_are(names)}"
        )
    return found


def _there_are(names: Sequence[str]) -> str:
    """What there is to choose from, some of it by name."""
    some = [*names[:2], "...", names[-1]] if len(names) > 4 else names
    return f"this model has {len(names)} layers that can be guided, from number 0 on: {', '.join(some)}"
