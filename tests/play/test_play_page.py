# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The page's server, over HTTP: what is drawn, what is refused, the code, the link, and that nobody else is asked."""

import concurrent.futures
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
import uuid
from dataclasses import asdict, replace
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("gradio")

import nag_kernels_command
from nag_kernels.play.__main__ import main, parse
from nag_kernels.play.page import UNCHANGED
from nag_kernels.play.settings import NAMES, query_of

ROOT = Path(__file__).parents[2]


class Refused(Exception):
    """What the page says instead of drawing."""


def call(server, name, *inputs, query="", warnings=None):
    """The outputs of one event of the page, as its own script calls it; `warnings` is filled."""
    with urllib.request.urlopen(f"{server}/config") as answer:
        number = next(each["id"] for each in json.load(answer)["dependencies"] if each["api_name"] == name)
    visitor = uuid.uuid4().hex
    body = json.dumps({"data": inputs, "fn_index": number, "session_hash": visitor}).encode()
    join = urllib.request.Request(f"{server}/gradio_api/queue/join{query}", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(join).close()
    with urllib.request.urlopen(f"{server}/gradio_api/queue/data?session_hash={visitor}") as events:
        for line in events:
            message = json.loads(line[6:]) if line.startswith(b"data: ") else {}
            if message.get("msg") == "log" and warnings is not None:
                warnings.append(message["log"])
            if message.get("msg") == "process_completed":
                if not message["success"]:
                    raise Refused(message["output"]["error"])
                return message["output"]["data"]
    raise AssertionError("the page did not answer")


def draw(server, settings):
    """The HTML, what is said below it, the code and the query."""
    return call(server, "draw", *asdict(settings).values())


def opened(server, query):
    """What a browser gets that opens the page at this address: the values of all settings, and the warnings."""
    warnings = []
    values = call(server, "open", query=query, warnings=warnings)
    return dict(zip(NAMES, (x.get("value") if isinstance(x, dict) else x for x in values), strict=True)), warnings


def test_pictures_are_those_of_the_pipeline(server, model, direct, reading):
    pixels, pictures_in = reading
    settings = replace(model.first, prompt="a star", negative="on pink", nag_alpha=0.5, seed=5)
    html, said, code, _ = draw(server, settings)
    shown = pictures_in(html)
    assert (pixels(shown["without"]), pixels(shown["steered"])) == direct(settings)
    assert re.fullmatch(r"Drawn in \d+\.\d\d seconds\. The same seeds stand in the same places\.", said)
    names = {}
    exec(code, names)
    assert (pixels(names["without"]), pixels(names["steered"])) == (pixels(shown["without"]), pixels(shown["steered"]))


def test_two_visitors_get_their_own_pictures(server, model, direct, reading):
    pixels, pictures_in = reading
    asked = [replace(model.first, negative=text, pictures=1, seed=34) for text in ("red", "on pink")]
    wanted = [direct(each) for each in asked]
    assert wanted[0] != wanted[1]

    def visit(settings):
        return [pictures_in(draw(server, settings)[0]) for _ in range(2)]

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for drawn, (without, steered) in zip(pool.map(visit, asked), wanted, strict=True):
            assert [(pixels(each["without"]), pixels(each["steered"])) for each in drawn] == [(without, steered)] * 2


def test_a_link_restores_every_setting(server, model):
    settings = replace(
        model.first, prompt="a small star", negative="on white", rule="vsf", nag_scale=20.0, nag_tau=3.5, nag_alpha=0.35,
        start=0.25, end=0.75, steps=6, cfg_scale=1.5, seed=2**50, pictures=3,
    )  # fmt: skip
    assert draw(server, replace(settings, nag_scale=2.5))[3] == query_of(replace(settings, nag_scale=2.5))
    assert opened(server, query_of(settings)) == (asdict(settings), [])
    assert opened(server, "") == (asdict(model.first), [])
    values, warnings = opened(server, "?steps=many&seed=8")
    assert values == asdict(replace(model.first, seed=8))
    assert warnings == ["In the page's address steps must be a number, got 'many': type one"]


def test_a_rule_brings_its_usual_values(server, model):
    for rule in ("nag", "nasa", "vsf"):
        scale, tau, alpha = call(server, "usual", rule)
        usual = model.usual(rule)
        assert [x["value"] for x in (scale, tau, alpha)] == [usual[x] for x in ("nag_scale", "nag_tau", "nag_alpha")]
        assert scale["maximum"] >= 2 * usual["nag_scale"]
        assert tau["visible"] == alpha["visible"] == (rule == "nag")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "prompt must be a text, got an empty one: type what to draw"),
        ({"negative": " "}, "negative must be a text, got an empty one"),
        ({"prompt": "a fox"}, "words that shapes never learned: ['fox']"),
        ({"nag_scale": 0.5}, "nag_scale must be at least 1"),
        ({"seed": None}, "seed must be a number, got nothing: type one"),
        ({"steps": 1000}, "1000 is greater than maximum value 100"),
        ({"start": 0.5, "end": 0.25}, "guide: start and end must be 0 <= start < end <= 1, got 0.5 and 0.25"),
        ({"start": 0.9}, "guidance did not act"),
    ],
)
def test_refusals_are_one_sentence(server, model, changes, message, capfd):
    with pytest.raises(Refused) as refused:
        draw(server, replace(model.first, **changes))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    said = capfd.readouterr()
    if changes != {"steps": 1000}:  # Gradio's own refusal, which its log shows
        assert "Traceback" not in said.err + said.out


def test_guidance_that_changes_nothing_is_said(server, model):
    warnings = []
    settings = replace(model.first, nag_scale=1.0, pictures=1)
    html = call(server, "draw", *asdict(settings).values(), warnings=warnings)[0]
    assert "data-set" in html
    assert warnings == [UNCHANGED]


def test_a_sweep_is_a_strip_with_its_values(server, model, reading):
    pixels, pictures_in = reading
    settings = replace(model.first, pictures=1)
    (html,) = call(server, "sweep", "nag_alpha", 0.1, 0.5, 3, *asdict(settings).values())
    assert re.findall("<figcaption>(.+?)</figcaption>", html) == ["no negative", "0.1", "0.3", "0.5"]
    wanted = [model.without(settings)] + [model.steered(replace(settings, nag_alpha=x)) for x in (0.1, 0.3, 0.5)]
    assert pixels(pictures_in(html)[""]) == [pixels(each)[0] for each in wanted]
    (html,) = call(server, "sweep", "steps", 1, 2, 2, *asdict(settings).values())
    assert re.findall("<figcaption>(.+?)</figcaption>", html) == ["1", "2"]
    with pytest.raises(Refused, match="nag_tau does nothing under rule 'nasa'"):
        call(server, "sweep", "nag_tau", 1, 2, 3, *asdict(replace(settings, rule="nasa")).values())


def test_what_is_measured_is_shown(server, model):
    (html,) = call(server, "measure", *asdict(replace(model.first, pictures=1)).values())
    assert "data:image/png;base64," in html
    assert "mid_block.attentions.0" in html
    with pytest.raises(Refused, match="rule must be 'nag', got 'vsf'"):
        call(server, "measure", *asdict(replace(model.first, rule="vsf")).values())


def test_nobody_else_is_asked(server, model, asked):
    """Neither by the server nor by what the page loads."""
    draw(server, replace(model.first, pictures=1))
    assert asked() == set()
    with urllib.request.urlopen(server) as answer:
        page = answer.read().decode()
    fetched = re.findall(r"""<(?:script|link)[^>]+(?:src|href)=["']?(https?:[^"' >]+)""", page)
    assert [x for x in fetched if not x.startswith(server)] == []
    assert '"analytics_enabled": false' in page or '"analytics_enabled":false' in page


# --- the command --------------------------------------------------------------------------------------------------------


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse(["--help"])
    said = capsys.readouterr().out
    for option in ("--model", "--device", "--host", "--port", "--no-browser"):
        assert re.search(rf"^  {option}[ A-Z]*\s+\S", said, re.MULTILINE), option
    for example in re.findall(r"^  python -m nag_kernels.play(.*?)(?: {2,}|$)", said, re.MULTILINE):
        parse(example.split())
    assert said.count("  python -m nag_kernels.play") == 3


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--port", "70000"], 2, "--port must be between 1 and 65535, got 70000"),
        (["--device", "toaster"], 2, "--device must be cpu, cuda"),
        (["--model", "./no"], 1, "there is no folder ./no"),
    ],
)
def test_what_the_command_refuses(arguments, status, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--no-browser"])
    assert ended.value.code == status
    assert message in capsys.readouterr().err


def test_a_port_in_use(capsys, monkeypatch, model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr("nag_kernels.shapes.loading.load_model", lambda *_: model.pipe)
        with pytest.raises(SystemExit, match="1"):
            main(["--no-browser", "--port", str(port)])
    assert f"error: --port {port} is in use at --host 127.0.0.1" in capsys.readouterr().err


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "nag_kernels.play.page")
    with pytest.raises(SystemExit, match="1"):
        nag_kernels_command.main(["play"])
    assert "error: nag_kernels.play needs gradio: pip install '.[play]' in a checkout\n" in capsys.readouterr().err


def test_help_needs_no_gradio(monkeypatch, capsys):
    for name in [x for x in sys.modules if x.startswith(("gradio", "matplotlib", "nag_kernels.play"))]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("gradio", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match="0"):
        nag_kernels_command.main(["play", "--help"])
    assert "--no-browser" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_serves_until_it_is_stopped():
    arguments = [sys.executable, "-m", "nag_kernels.play", "--no-browser"]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as command:
        try:
            line = command.stdout.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/", line)
            assert address, line
            with urllib.request.urlopen(address[0]) as answer:
                assert "nag_kernels: play" in answer.read().decode()
            command.send_signal(signal.SIGINT)
            _, said = command.communicate(timeout=60)
        finally:
            command.kill()
    assert command.returncode == 130
    assert said.splitlines()[-1] == "nag_kernels.play: stopped"
    assert "Traceback" not in said
