# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a picture on the page is drawn with, its place in the page's address, and the values of a sweep."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from urllib.parse import urlencode

import numpy as np

from ..checks import RULES
from ..user_errors import UserError

MOST_STEPS, MOST_PICTURES, MOST_VALUES = 100, 16, 12
WIDEST = {"nag": 15.0, "nasa": 2.0, "vsf": 6.0}  # where the slider of nag_scale ends, by rule
# What can be swept: where a sweep begins and ends (None: by rule).
SWEPT: dict[str, tuple[float, float] | None] = {
    "nag_scale": None,
    "nag_tau": (1.0, 8.0),
    "nag_alpha": (0.05, 0.5),
    "end": (0.25, 1.0),
    "start": (0.0, 0.75),
    "steps": (1, 8),
    "cfg_scale": (1.0, 3.0),
    "seed": (0, 7),
}
OF_NAG_ALONE = ("nag_tau", "nag_alpha")


@dataclass(frozen=True)
class Settings:
    """Everything that decides the pictures, but the model. The pictures' seeds count up from `seed`."""

    prompt: str
    negative: str
    rule: str
    nag_scale: float
    nag_tau: float
    nag_alpha: float
    start: float
    end: float
    steps: int
    cfg_scale: float
    seed: int
    pictures: int

    def with_(self, **changes: Any) -> "Settings":
        return replace(self, **changes)

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.pictures)

    def guidance(self) -> dict[str, Any]:
        """The named arguments of `guide`; what the rule does not use, and what changes nothing, is left out."""
        chosen: dict[str, Any] = {"nag_scale": self.nag_scale}
        if self.rule == "nag":
            chosen |= {name: getattr(self, name) for name in OF_NAG_ALONE}
        else:
            chosen["rule"] = self.rule
        window = {"start": (self.start, 0.0), "end": (self.end, 1.0)}
        return chosen | {name: value for name, (value, whole) in window.items() if value != whole}


NAMES = tuple(field.name for field in fields(Settings))
TEXTS, WHOLE = ("prompt", "negative", "rule"), ("steps", "seed", "pictures")


def checked(settings: Settings) -> Settings:
    """The settings, with whole numbers and others as such. Raises UserError for what `guide` itself does not look at."""
    for name, what in (("prompt", "what to draw"), ("negative", "what to keep out of the picture")):
        if not str(getattr(settings, name) or "").strip():
            raise UserError(f"{name} must be a text, got an empty one: type {what}")
    if settings.rule not in RULES:
        raise UserError(f"rule must be one of {', '.join(RULES)}, got {settings.rule!r}: choose one")
    for name in NAMES:
        value = getattr(settings, name)
        if name not in TEXTS and (value is None or not math.isfinite(value)):
            raise UserError(f"{name} must be a number, got {'nothing' if value is None else value}: type one")
    bounds = {
        "steps": (1, MOST_STEPS),
        "pictures": (1, MOST_PICTURES),
        "seed": (0, 2**53 - MOST_PICTURES),  # what a browser counts without rounding
    }
    for name, (least, most) in bounds.items():
        value = getattr(settings, name)
        if not least <= value <= most or value != int(value):
            raise UserError(f"{name} must be a whole number from {least} to {most}, got {value:g}: type another")
    kinds = {name: int if name in WHOLE else float for name in NAMES if name not in TEXTS}
    return settings.with_(**{name: kind(getattr(settings, name)) for name, kind in kinds.items()})


def query_of(settings: Settings) -> str:
    """The part of the page's address that `settings_of` reads again. Whole numbers are written as such, 5 for 5.0."""
    values = asdict(settings).items()
    return "?" + urlencode([(name, int(x) if isinstance(x, float) and x.is_integer() else x) for name, x in values])


def settings_of(query: Mapping[str, str], first: Settings) -> tuple[Settings, list[str]]:
    """The settings in an address, `first` where it names none, and a sentence for each value that is not taken."""
    found: dict[str, Any] = {}
    refused = []
    for name in NAMES:
        if name not in query:
            continue
        text = query[name]
        try:
            value: Any = text if name in TEXTS else int(text) if name in WHOLE else float(text)
            checked(first.with_(**{name: value}))
            found[name] = value
        except UserError as error:
            refused.append(f"In the page's address {error}")
        except ValueError:
            refused.append(f"In the page's address {name} must be a number, got {text[:40]!r}: type one")
    return first.with_(**found), refused


def sweep_values(settings: Settings, name: str, low: float, high: float, count: float) -> list[float]:
    """`count` values of a setting from low to high, evenly apart; fewer where whole numbers repeat. Raises UserError."""
    if name not in SWEPT:
        raise UserError(f"the setting to sweep must be one of {', '.join(SWEPT)}, got {name!r}: choose one")
    if name in OF_NAG_ALONE and settings.rule != "nag":
        raise UserError(
            f"{name} does nothing under rule {settings.rule!r}: sweep another setting, or choose rule 'nag'"
        )
    for what, value in (("from", low), ("to", high), ("pictures in the strip", count)):
        if value is None or not math.isfinite(value):
            raise UserError(f"{what} must be a number, got {'nothing' if value is None else value}: type one")
    if not 2 <= count <= MOST_VALUES:
        raise UserError(f"a sweep must have from 2 to {MOST_VALUES} values, got {count:g}: type another number")
    if low == high:
        raise UserError(f"a sweep must go from one value to another, got {low:g} twice: type another")
    values: list[float] = [float(f"{value:.4g}") for value in np.linspace(low, high, int(count))]
    if name in WHOLE:
        values = [int(x) for x in dict.fromkeys(round(value) for value in np.linspace(low, high, int(count)))]
    for value in values:
        checked(settings.with_(**{name: value}))
    return values


def sweep_range(rule: str, name: str) -> tuple[float, float]:
    """Where a sweep of a setting usefully begins and ends."""
    given = SWEPT[name]
    if given is not None:
        return given
    return (2.0, 10.0) if rule == "nag" else (WIDEST[rule] / 20, WIDEST[rule] / 2)
