# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Starts a process for each plan, waits for its lines, ends it where it is silent, and writes down what came of it.

This process never touches CUDA: a plan that crashes, hangs or spoils its context costs that plan alone.
"""

import contextlib
import dataclasses
import functools
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from . import verdicts
from .layers import USUAL, Layer
from .verdicts import AGAIN, Facts, Verdict

# The plans in the order of their risk. A process that dies leaves those before it known.
ORDER = (
    "triton guidance", "cuda guidance", "triton", "cuda branches", "cuda text", "triton finish flash",
    "triton finish cudnn", "triton finish flash-attn", "cuda cluster",
)  # fmt: skip
FIRST, EACH, WHOLE = 120.0, 60.0, 400.0  # seconds: silence before the first line, between two, and all together
Say = Callable[[str], None]


class NoDevice(RuntimeError):
    """There is no GPU to prove anything on; the message is one sentence."""


@dataclasses.dataclass
class Patience:
    """Seconds that a process may be silent before its first line and between two, and may take altogether."""

    first: float = FIRST
    each: float = EACH
    whole: float = WHOLE


def _read_lines(stream: IO[bytes], lines: "queue.Queue[bytes | None]") -> None:
    with contextlib.suppress(ValueError, OSError), stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """The process and all that it started. It may wait for the GPU and hear nothing: it is then left behind."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)


def _how_it_ended(code: int | None, errors: IO[bytes]) -> dict[str, str]:
    errors.seek(0)
    last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
    said = f": {last[0][:300]}" if last else ""
    if code == -9:  # SIGKILL
        return {"state": "busy", "why": f"it was killed from outside, as for want of memory{said}"}
    ended = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return {"state": "crashed", "why": f"{ended}{said}"}


def run_child(
    command: Sequence[str], environment: Mapping[str, str], patience: Patience, say: Say = lambda line: None
) -> dict[str, Any]:
    """What came of one process: {"state", "why", "cases", "times"}. It writes a line of JSON for each step:

    {"next": what it begins, "of": how many there are}, {"times": {layer: [plan, sdpa]}}, {"state": its verdict, "why": ...}
    """
    found: dict[str, Any] = {"state": "", "why": "", "cases": 0, "times": {}}
    doing = "its start"
    lines: queue.Queue[bytes | None] = queue.Queue()
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=dict(environment),
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return found | {"state": "busy", "why": f"no process could be started: {error}"}
        threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True).start()
        begun = last = time.monotonic()
        heard, over = False, False
        try:
            while not over and not found["state"]:
                now = time.monotonic()
                left = min(last + (patience.each if heard else patience.first), begun + patience.whole) - now
                if left <= 0:
                    found |= {"state": "hung", "why": f"nothing came of {doing}"}
                    break
                try:
                    line = lines.get(timeout=min(left, 0.2))
                except queue.Empty:
                    over = process.poll() is not None and lines.empty()  # what it started may hold the stream open
                    continue
                if line is None:
                    break
                try:
                    told = json.loads(line)
                    if not isinstance(told, dict):
                        continue
                except ValueError:
                    continue  # what a library prints
                heard, last = True, now
                found["cases"] = told.get("passed", found["cases"])
                found["times"].update(told.get("times", {}))
                if "next" in told:
                    doing = told["next"]
                    say(doing)
                if told.get("state") in verdicts.STATES:
                    found |= {"state": told["state"], "why": told.get("why", "")}
            if not found["state"]:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(min(5.0, patience.each))
                found |= _how_it_ended(process.poll(), errors)
                found["why"] = f"{found['why']}, at {doing}"
        finally:
            _end(process)
    return found


def child_environment(device: str | None = None) -> dict[str, str]:
    """Of a process that tries kernels: both families on, no verdict asked, one device."""
    kept = {name: x for name, x in os.environ.items() if name not in ("NAG_LOG", "TRITON_INTERPRET")}
    kept |= {"NAG_BACKEND": "gpu", "NAG_PROVE": "off", "PYTHONUNBUFFERED": "1"}
    return kept if device is None else kept | {"CUDA_VISIBLE_DEVICES": device}


def child_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nag_kernels.prove.child", *arguments]


def devices() -> list[tuple[str, Facts]]:
    """(what CUDA_VISIBLE_DEVICES calls it, facts) of each kind of GPU, asked in a process of its own.

    Raises: NoDevice.
    """
    environment = child_environment() | {"NAG_BACKEND": "sdpa"}
    try:
        done = subprocess.run(
            child_command("--facts"), env=environment, capture_output=True, text=True, timeout=FIRST,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoDevice(f"No device: CUDA did not answer in {FIRST:.0f} seconds.") from None
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = done.stderr.strip().splitlines()[-1:] or ["nothing was said"]
        raise NoDevice(f"No device: asking for one ended with code {done.returncode} ({last[0][:300]}).") from None
    if "none" in found:
        raise NoDevice(f"No device: {found['none']}.")
    kinds: dict[str, tuple[str, Facts]] = {}
    for name, facts in found["devices"]:
        kinds.setdefault(json.dumps(facts, sort_keys=True), (name, facts))
    return list(kinds.values())


def commands(plans: Sequence[str], layers: Sequence[Layer]) -> dict[str, list[str]]:
    given = json.dumps([x.facts() for x in layers])
    return {plan: child_command("--plan", plan, "--layers", given) for plan in plans}


def _tell(say: Say, head: str, line: str) -> None:
    say(f"{head}: {line}")


def prove(
    facts: Facts, commands: Mapping[str, Sequence[str]], layers: Sequence[Layer] = USUAL, *, device: str | None = None,
    again: bool = False, patience: Patience | None = None, wait: float = 600.0, say: Say = lambda line: None,
) -> Verdict:  # fmt: skip
    """The verdict on the plans of `commands`, in their order; what is known already is not tried again unless `again`.

    It is written after each plan. Where the folder cannot be written it holds for the caller alone, and `say` says so.
    """
    with verdicts.alone(facts, wait) as mine:
        known = verdicts.read(facts)  # another process may just have written it
        if not mine:
            say(f"another process has been at this GPU for {wait:.0f} seconds; what it knows so far is taken")
            return known
        names = {x.name(): x for x in layers}
        plans = dict(known.plans)
        whole = Verdict(facts, plans, known.layers | names)
        todo = [plan for plan in commands if again or plans.get(plan, {}).get("state") in (None, *AGAIN)]
        absent: dict[str, str] = {}  # a family that is not here, and why
        written = True
        for i, plan in enumerate(todo, 1):
            head = f"[{i}/{len(todo)}] {plan}"
            family = plan.split()[0]
            found: dict[str, Any] = {"state": "refused", "why": absent.get(family, ""), "cases": 0, "times": {}}
            if family not in absent:
                tell = functools.partial(_tell, say, head)
                found = run_child(commands[plan], child_environment(device), patience or Patience(), tell)
            if found["why"].startswith("not here: "):
                absent[family] = found["why"]
            plans[plan] = found
            say(f"{head}: {found['state']}{': ' + found['why'] if found['why'] else ''}")
            try:
                verdicts.write(whole)
            except OSError as error:
                if written:
                    say(f"the verdict cannot be kept ({error}); NAG_CACHE names another folder")
                written = False
        return whole
