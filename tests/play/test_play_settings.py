# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the page is drawn with: refusals by name, the page's address, and the values of a sweep."""

from dataclasses import replace
from urllib.parse import parse_qsl

import pytest

from nag_kernels.play.settings import Settings, checked, query_of, settings_of, sweep_range, sweep_values
from nag_kernels.user_errors import UserError

FIRST = Settings("a circle", "red", "nag", 5.0, 2.5, 0.2, 0.0, 1.0, 4, 1.0, 31, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": " "}, "prompt must be a text, got an empty one: type what to draw"),
        ({"negative": ""}, "negative must be a text, got an empty one: type what to keep out of the picture"),
        ({"negative": None}, "negative must be a text"),
        ({"rule": "cfg"}, "rule must be one of nag, nasa, vsf, got 'cfg': choose one"),
        ({"nag_scale": None}, "nag_scale must be a number, got nothing: type one"),
        ({"end": float("nan")}, "end must be a number, got nan: type one"),
        ({"steps": 0}, "steps must be a whole number from 1 to 100, got 0: type another"),
        ({"steps": 2.5}, "steps must be a whole number from 1 to 100, got 2.5"),
        ({"pictures": 17}, "pictures must be a whole number from 1 to 16, got 17"),
        ({"seed": -1}, "seed must be a whole number from 0 to"),
        ({"seed": None}, "seed must be a number, got nothing"),
    ],
)
def test_refusals_name_the_setting(changes, message):
    with pytest.raises(UserError) as refused:
        checked(replace(FIRST, **changes))
    assert str(refused.value).startswith(message)


def test_numbers_have_their_kinds():
    """A browser sends 5 for 5.0, and 4.0 for 4 may come from a program."""
    found = checked(replace(FIRST, nag_scale=5, steps=4.0, seed=31.0))
    assert found == FIRST
    assert [type(x) for x in (found.nag_scale, found.steps, found.seed)] == [float, int, int]


def test_guidance_leaves_out_what_does_nothing():
    assert FIRST.guidance() == {"nag_scale": 5.0, "nag_tau": 2.5, "nag_alpha": 0.2}
    other = replace(FIRST, rule="nasa", nag_scale=0.5, end=0.5)
    assert other.guidance() == {"nag_scale": 0.5, "rule": "nasa", "end": 0.5}
    assert replace(FIRST, start=0.25).guidance()["start"] == 0.25


@pytest.mark.parametrize("prompt", ["a large circle", "50 % & more? a=b #1 + “é”\n<b>"])
def test_an_address_has_every_setting(prompt):
    there = replace(
        FIRST, prompt=prompt, rule="vsf", nag_scale=1.7, start=0.1, end=0.9, steps=7, cfg_scale=2.5, seed=2**50
    )
    query = query_of(there)
    assert query.startswith("?prompt=")
    assert settings_of(dict(parse_qsl(query[1:])), FIRST) == (there, [])


def test_an_address_with_mistakes():
    """What is right is taken; what is wrong is said, one sentence each."""
    query = {
        "prompt": "a star",
        "steps": "many",
        "end": "inf",
        "seed": "-3",
        "rule": "cfg",
        "__theme": "dark",
        "negative": "",
    }
    found, refused = settings_of(query, FIRST)
    assert found == replace(FIRST, prompt="a star")
    assert sorted(sentence.removeprefix("In the page's address ")[:25] for sentence in refused) == [
        "end must be a number, got", "negative must be a text, ", "rule must be one of nag, ", "seed must be a whole numb",
        "steps must be a number, g",
    ]  # fmt: skip
    assert settings_of({}, FIRST) == (FIRST, [])


def test_values_of_a_sweep():
    assert sweep_values(FIRST, "nag_scale", 2, 10, 5) == [2, 4, 6, 8, 10]
    assert sweep_values(FIRST, "nag_alpha", 0.1, 0.4, 4) == [0.1, 0.2, 0.3, 0.4]
    assert sweep_values(FIRST, "end", 1, 0.25, 4) == [1, 0.75, 0.5, 0.25]
    steps = sweep_values(FIRST, "steps", 1, 4, 12)
    assert steps == [1, 2, 3, 4]
    assert {type(x) for x in steps} == {int}
    assert sweep_values(FIRST, "seed", 2**40, 2**40 + 3, 4)[-1] == 2**40 + 3


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ("prompt", 0, 1, 3), "the setting to sweep must be one of nag_scale, nag_tau, "),
        ({"rule": "vsf"}, ("nag_tau", 1, 2, 3), "nag_tau does nothing under rule 'vsf'"),
        ({}, ("nag_scale", None, 1, 3), "from must be a number, got nothing"),
        ({}, ("nag_scale", 1, float("inf"), 3), "to must be a number, got inf"),
        ({}, ("nag_scale", 1, 2, 13), "a sweep must have from 2 to 12 values, got 13"),
        ({}, ("nag_scale", 3, 3, 5), "a sweep must go from one value to another, got 3 twice"),
        ({}, ("steps", 0, 8, 5), "steps must be a whole number from 1 to 100, got 0"),
        ({"prompt": ""}, ("nag_scale", 2, 8, 5), "prompt must be a text"),
    ],
)
def test_sweeps_that_are_refused(changes, arguments, message):
    with pytest.raises(UserError) as refused:
        sweep_values(replace(FIRST, **changes), *arguments)
    assert str(refused.value).startswith(message)


def test_a_sweep_begins_where_it_is_useful():
    for rule in ("nag", "nasa", "vsf"):
        low, high = sweep_range(rule, "nag_scale")
        assert 0 < low < high
        assert (low > 1) == (rule == "nag")  # 1 does nothing there
    assert sweep_range("nasa", "end") == sweep_range("nag", "end") == (0.25, 1.0)
