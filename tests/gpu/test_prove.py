# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m nag_kernels.prove` without a GPU: the processes that it starts are small fakes, which are right, wrong, crash, hang,
refuse to end, or have no memory; files that are torn or cannot be written; several of it at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from nag_kernels import gpu_table
from nag_kernels.prove import __main__ as command
from nag_kernels.prove import run, verdicts
from nag_kernels.prove.layers import USUAL, Layer

FACTS = {"gpu": "NVIDIA of a test", "capability": "9.0", "driver": "1", "torch": "x", "kernels": "abc"}
QUICK = run.Patience(first=60.0, each=30.0, whole=90.0)
HASTY = run.Patience(first=60.0, each=1.0, whole=90.0)  # for those that hang
START = """
import json, os, signal, subprocess, sys, time
say = lambda **what: print(json.dumps(what), flush=True)
say(next="case 1")
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NAG_CACHE", str(tmp_path / "cache"))
    verdicts.proven.cache_clear()
    yield tmp_path / "cache"
    verdicts.proven.cache_clear()


def fake(body: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", START + body]


def tried(body: str, patience: run.Patience = QUICK) -> dict:
    return run.run_child(fake(body), os.environ, patience)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A process that has ended may wait for its parent to notice.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


# --- one process --------------------------------------------------------------------------------------------------------

RIGHT = (
    'say(next="case 2", passed=1); say(times={"a layer": [2.0, 3.0]}, passed=2); say(state="right", why="", passed=2)'
)


@pytest.mark.parametrize(("body", "state", "why"), [
    (RIGHT, "right", ""),
    ('say(state="wrong", why="error 0.1 against float64, allowed 0.003, at case 1")', "wrong", "error 0.1"),
    ('say(next="case 7"); os.kill(os.getpid(), signal.SIGSEGV)', "crashed", "signal 11, at case 7"),
    ('raise RuntimeError("CUDA error: an illegal memory access was encountered")', "crashed",
     "exit code 1: RuntimeError: CUDA error: an illegal memory access was encountered, at case 1"),
    ("sys.exit(0)", "crashed", "exit code 0, at case 1"),
    ('say(next="clusters of 8"); time.sleep(1000)', "hung", "nothing came of clusters of 8"),
    ('say(state="busy", why="OutOfMemoryError: CUDA out of memory")', "busy", "out of memory"),
    ("os.kill(os.getpid(), signal.SIGKILL)", "busy", "killed from outside, as for want of memory, at case 1"),
    ('print("a library talks"); print(3); print("[]"); say(state="no state"); ' + RIGHT, "right", ""),
    ('say(state="refused", why="head size 264")', "refused", "head size 264"),
], ids=str)  # fmt: skip
def test_what_comes_of_a_process(body, state, why):
    found = tried(body, HASTY if state == "hung" else QUICK)
    assert found["state"] == state
    assert why in found["why"]
    if body == RIGHT:
        assert found == {"state": "right", "why": "", "cases": 2, "times": {"a layer": [2.0, 3.0]}}


def test_a_process_that_talks_on_and_on_is_ended():
    found = tried("while True: say(next='more'); time.sleep(0.02)", run.Patience(60.0, 30.0, 2.0))
    assert found["state"] == "hung"


@pytest.mark.parametrize("last", ["time.sleep(1000)", 'say(state="right", why="")', "os._exit(3)"])
def test_what_a_process_started_ends_with_it(tmp_path, last):
    """One that ignores SIGTERM, and whose child holds its output open, whether it hangs, is right or dies."""
    note = tmp_path / "pids"
    body = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "other = os.fork()\n"
        "if other == 0: time.sleep(1000)\n"
        f"open({str(note)!r}, 'w').write(f'{{os.getpid()}} {{other}}'); {last}"
    )
    found = tried(body, HASTY if last.startswith("time") else QUICK)
    assert found["state"] == {"time": "hung", "say(": "right", "os._": "crashed"}[last[:4]]
    end = time.monotonic() + 10
    pids = [int(x) for x in note.read_text().split()]
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_a_command_that_cannot_be_started():
    found = run.run_child(["/no/such/python"], os.environ, QUICK)
    assert (found["state"], "no process could be started" in found["why"]) == ("busy", True)


def test_the_environment_of_a_process(monkeypatch):
    monkeypatch.setenv("NAG_BACKEND", "reference")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    found = run.child_environment("GPU-1")
    assert (found["NAG_BACKEND"], found["NAG_PROVE"], found["CUDA_VISIBLE_DEVICES"]) == ("gpu", "off", "GPU-1")
    assert "TRITON_INTERPRET" not in found


# --- all plans, and the file ----------------------------------------------------------------------------------------------


def counting(log: Path, body: str = RIGHT) -> list[str]:
    """A fake that also writes a line to `log`: how often it was started."""
    return fake(f"open({str(log)!r}, 'a').write('started\\n'); {body}")


def prove(plans: dict, **options) -> tuple[verdicts.Verdict, list[str]]:
    said: list[str] = []
    return run.prove(FACTS, plans, USUAL, patience=QUICK, say=said.append, **options), said


def test_plan_by_plan_into_the_file(tmp_path, cache):
    log = tmp_path / "log"
    seen = tmp_path / "seen"
    look = f"import pathlib; file, = pathlib.Path({str(cache)!r}).glob('*.json'); "
    look += f"pathlib.Path({str(seen)!r}).write_text(file.read_text()); "
    plans = {
        "triton guidance": counting(log),
        "cuda text": counting(log, look + 'say(state="wrong", why="error 1")'),
        "triton": counting(log, 'say(state="busy", why="out of memory")'),
    }
    found, said = prove(plans)
    assert {plan: x["state"] for plan, x in found.plans.items()} == {
        "triton guidance": "right", "cuda text": "wrong", "triton": "busy",
    }  # fmt: skip
    assert verdicts.read(FACTS).plans == found.plans
    during = json.loads(seen.read_text())
    assert list(during["plans"]) == ["triton guidance"]  # a machine that dies keeps what is known
    assert any(line.startswith("[2/3] cuda text: wrong: error 1") for line in said)
    assert "[1/3] triton guidance: case 2" in said
    # Once more: only what was busy is asked again; then, when told so, all.
    assert log.read_text().count("started") == 3
    again, _ = prove(plans | {"triton": counting(log)})
    assert log.read_text().count("started") == 4
    assert again.plans["triton"]["state"] == "right"
    prove(plans, again=True)
    assert log.read_text().count("started") == 7
    assert not [x for x in cache.iterdir() if x.name.startswith(".verdict")]


def test_another_driver_or_other_kernels_are_not_known(cache):
    prove({"triton": fake(RIGHT)})
    for change in ({"driver": "2"}, {"kernels": "abd"}, {"gpu": "NVIDIA of a test MIG 1g"}):
        assert verdicts.read(FACTS | change).plans == {}
    # Not even where a file of that name says so.
    os.rename(verdicts.path_of(FACTS), verdicts.path_of(FACTS | {"driver": "2"}))
    assert verdicts.read(FACTS | {"driver": "2"}).plans == {}


@pytest.mark.parametrize("text", [
    "", "{torn", "[]", "{}", "\x00", '{"facts": {}, "plans": {"triton": {}}, "layers": {}}',
    '{"facts": %s, "layers": {}, "plans": {"triton": {"state": "fine"}}}',
    '{"facts": %s, "layers": {}, "plans": {"triton": {"state": "right", "times": {"x": [0, 1]}}}}',
    '{"facts": %s, "layers": {"x": {"depth": 1}}, "plans": {"triton": {"state": "right"}}}',
])  # fmt: skip
def test_a_torn_file_is_as_none(cache, text):
    cache.mkdir()
    path = verdicts.path_of(FACTS)
    path.write_text(text.replace("%s", json.dumps(FACTS)))
    assert verdicts.read(FACTS).plans == {}
    assert verdicts.proven() == frozenset()
    found, _ = prove({"triton": fake(RIGHT)})
    assert verdicts.read(FACTS).plans == found.plans != {}


def test_a_cache_that_cannot_be_written(monkeypatch):
    monkeypatch.setenv("NAG_CACHE", "/proc/none/here")
    found, said = prove({"triton": fake(RIGHT), "cuda text": fake(RIGHT)})
    assert [x["state"] for x in found.plans.values()] == ["right", "right"]
    assert sum("the verdict cannot be kept" in line and "NAG_CACHE names another folder" in line for line in said) == 1
    assert verdicts.read(FACTS).plans == {}


def test_a_family_that_is_not_here_is_asked_once(tmp_path):
    log = tmp_path / "log"
    absent = counting(log, 'say(state="refused", why="not here: it was not built")')
    found, _ = prove({"cuda text": absent, "cuda branches": absent, "triton": counting(log)})
    assert [x["state"] for x in found.plans.values()] == ["refused", "refused", "right"]
    assert found.plans["cuda branches"]["why"] == "not here: it was not built"
    assert log.read_text().count("started") == 2


AT_ONCE = """
import json, sys
from nag_kernels.prove import run
facts, argv = json.loads(sys.argv[1]), json.loads(sys.argv[2])
found = run.prove(facts, {"triton": argv}, patience=run.Patience(60, 60, 60), wait=60)
print(found.plans["triton"]["state"])
"""


@pytest.mark.slow
def test_three_processes_at_once(tmp_path):
    """One tries, the others wait for it and take what it found."""
    log = tmp_path / "log"
    argv = json.dumps(counting(log, "time.sleep(1.5); " + RIGHT))
    started = [
        subprocess.Popen([sys.executable, "-c", AT_ONCE, json.dumps(FACTS), argv], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [x.communicate(timeout=120)[0].strip() for x in started] == ["right"] * 3
    assert log.read_text().count("started") == 1


def test_who_waits_in_vain_goes_on_with_what_is_known():
    with verdicts.alone(FACTS, 0) as mine:
        assert mine
        found, said = prove({"triton": fake(RIGHT)}, wait=0)
    assert found.plans == {}
    assert "another process has been at this GPU" in said[0]


REAL = """
import torch
from nag_kernels.prove import cases, child
small = {"positive": 7, "negative": 9, "length": 66, "heads": 2, "size": 16, "dtype": torch.float32}
cases.CASES = {"texts": small, "vsf": {**small, "rule": "vsf"}, "nasa": {**small, "rule": "nasa"}}
child.main(["--plan", "triton guidance", "--device", "cpu"])
"""


@pytest.mark.slow
def test_a_real_process(monkeypatch):
    """All of it but the GPU: the process of a plan, here under Triton's interpreter, its lines, the file."""
    pytest.importorskip("triton", reason="triton is not here: not installed")
    monkeypatch.setattr(
        run, "child_environment", lambda device: {**os.environ, "NAG_BACKEND": "gpu", "TRITON_INTERPRET": "1"}
    )
    said: list[str] = []
    plan = "triton guidance"
    found = run.prove(FACTS, {plan: [sys.executable, "-c", REAL]}, say=said.append)
    assert found.plans[plan] == {"state": "right", "why": "", "cases": 3, "times": {}}  # "vsf" it refuses
    assert said[:2] == [f"[1/1] {plan}: the import of its kernels", f"[1/1] {plan}: texts"]
    assert verdicts.read(FACTS).plans == found.plans


# --- the command ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_no_device_in_one_sentence():
    done = subprocess.run([sys.executable, "-m", "nag_kernels.prove"], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stdout.startswith("No device: ")
    assert done.stdout.count("\n") == 1
    assert done.stdout.endswith(
        " So there is nothing to prove, and nothing to do: what runs without a GPU needs no verdict.\n"
    )
    assert done.stderr == ""


def test_the_command(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(run, "devices", lambda: [("GPU-1", FACTS)])
    layer = {"length": 64, "heads": 2, "size": 16, "positive": 7, "negative": 9}
    (tmp_path / "layers.json").write_text(json.dumps([layer]))
    asked = []

    def commands(plans, layers):
        asked.append((plans, layers))
        return {plan: fake(RIGHT.replace("a layer", layers[0].name())) for plan in plans}

    monkeypatch.setattr(run, "commands", commands)
    report = tmp_path / "report.json"
    arguments = ["--plans", "triton, cuda text", "--layers", str(tmp_path / "layers.json"), "--report", str(report)]
    assert command.main(arguments) == 0
    assert asked == [(["triton", "cuda text"], [Layer(**layer)])]
    said = capsys.readouterr().out
    assert "triton                     right, 2 cases, at best 1.50 times as fast as sdpa" in said
    assert "cuda branches              unknown" in said
    written = json.loads(report.read_text())
    assert written["verdicts"][0]["plans"]["triton"]["times"] == {Layer(**layer).name(): [2.0, 3.0]}
    assert str(Path.home()) not in report.read_text()
    monkeypatch.setattr(
        run, "commands", lambda plans, layers: {x: fake('say(state="busy", why="no memory")') for x in plans}
    )
    assert command.main(["--again"]) == 1


@pytest.mark.parametrize("arguments", [["--plans", "cuda txt"], ["--layers", "/no/such/file"]])
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_every_plan_is_tried():
    assert sorted(run.ORDER) == sorted(gpu_table.PLANS)
    assert signal.SIGKILL == 9
