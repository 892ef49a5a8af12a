# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What is known of each plan on each kind of GPU: one file a kind in the user's cache folder, and what it says of a call.

A file holds for a GPU's name, multiprocessors, shared memory and capability, the driver, torch, its CUDA, Triton, and a hash
of the kernels. Whatever of these changes, the old file is not asked. Files are replaced whole, so a reader takes no lock.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..gpu_table import PLANS, Call
from .layers import Layer, nearest

Facts = dict[str, Any]
COMMAND = "python -m nag_kernels.prove"
RIGHT = "right"
SLOWER = "slower"  # right, and at no layer faster than torch's attention and the plain formula
KEPT_OFF = ("wrong", "crashed", "hung")  # for as long as the facts are the same
AGAIN = ("busy", "refused")  # no memory or no device; does not apply here: asked again by the next run
STATES = (RIGHT, SLOWER, *KEPT_OFF, *AGAIN)


# --- what a verdict says ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Verdict:
    """Of one kind of GPU. plans: {plan: {"state", "why", "cases", "times": {layer: [microseconds, of sdpa]}}}."""

    facts: Facts = field(default_factory=dict)
    plans: dict[str, dict[str, Any]] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)

    def _times(self, plan: str, call: Call | None) -> tuple[str, float] | None:
        """(the layer nearest to the call, the plan's time there as a share of sdpa's), where it was timed."""
        layer = None if call is None else nearest(list(self.layers.values()), call)
        times = None if layer is None else self.plans.get(plan, {}).get("times", {}).get(layer.name())
        return None if layer is None or times is None else (layer.name(), times[0] / times[1])

    def refusal(self, plan: str, call: Call | None = None) -> str | None:
        """Why the plan is off, or off for this call; None where it may serve."""
        found = self.plans.get(plan)
        if found is None:
            return f"nothing is known of it on this GPU: {COMMAND}"
        if found["state"] != RIGHT:
            why = found.get("why")
            return f"its verdict on this GPU is {found['state']}{f' ({why})' if why else ''}"
        timed = self._times(plan, call)
        if timed is not None and timed[1] >= 1:
            return f"it took {timed[1]:.2f} times as long as sdpa at {timed[0]}"
        return None

    def ranked(self, plans: list[str], call: Call) -> list[str]:
        """By measured time at the nearest layer; those without one after the others, in the order given."""
        timed = {plan: self._times(plan, call) for plan in plans}
        share = {plan: 1.0 if x is None else x[1] for plan, x in timed.items()}
        return sorted(plans, key=share.__getitem__)

    def lines(self) -> list[str]:
        """A line for each plan."""
        said = []
        for plan in PLANS:
            found = self.plans.get(plan)
            if found is None:
                said.append(f"{plan:<26} unknown")
                continue
            best = max((b / a for a, b in found.get("times", {}).values()), default=None)
            gain = "" if best is None else f", at best {best:.2f} times as fast as sdpa"
            why = f": {found['why']}" if found.get("why") else ""
            said.append(f"{plan:<26} {found['state']}, {found.get('cases', 0)} cases{gain}{why}")
        return said


# --- what it holds for ------------------------------------------------------------------------------------------------


@functools.cache
def kernels_hash() -> str:
    """Of all that can change what a plan computes: the libraries, the Triton kernels, the tables, the code that runs plans."""
    here = Path(__file__).parents[1]
    triton = importlib.util.find_spec("nag_kernels.triton_kernels")
    folders = [Path(x) for x in (triton.submodule_search_locations or [] if triton else [])]
    files = [*here.glob("_C_cuda*"), here / "gpu.py", here / "gpu_table.py", here / "gpu_choices.csv", here / "sdpa.py"]
    files += [path for folder in folders for path in (*folder.glob("*.py"), *folder.glob("*.csv"))]
    whole = hashlib.sha256()
    for path in sorted(files, key=lambda x: x.name):
        whole.update(path.name.encode() + path.read_bytes())
    return whole.hexdigest()[:20]


@functools.cache
def installation() -> Facts:
    """The part of the facts that needs no GPU."""
    triton = None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        triton = importlib.metadata.version("triton")
    return {"torch": str(torch.__version__), "cuda": torch.version.cuda, "triton": triton, "kernels": kernels_hash()}


def _driver() -> str:
    """The driver's own version where the system tells it, and the CUDA that it is for."""
    said = ""
    with contextlib.suppress(OSError):
        found = re.search(r"\d+\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text())
        said = found[0] if found else ""
    asked = getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)  # a torch without CUDA lacks it
    return f"{said} for CUDA {asked()}".strip()


@functools.cache
def facts_of(device: torch.device) -> Facts:
    found = torch.cuda.get_device_properties(device)
    return {
        "gpu": found.name,
        "multiprocessors": found.multi_processor_count,
        "shared_memory": getattr(found, "shared_memory_per_block_optin", 0),
        "capability": f"{found.major}.{found.minor}",
        "driver": _driver(),
        **installation(),
    }


def visible_name(device: torch.device) -> str:
    """What CUDA_VISIBLE_DEVICES calls a device: its UUID where torch tells it, so that the order of devices does not matter."""
    found = torch.cuda.get_device_properties(device)
    index = torch.cuda.current_device() if device.index is None else device.index
    uuid = str(getattr(found, "uuid", ""))
    if uuid and "MIG" not in found.name:
        return uuid if uuid.startswith("GPU-") else f"GPU-{uuid}"
    visible = [x.strip() for x in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if x.strip()]
    return visible[index] if index < len(visible) else str(index)


# --- the file -----------------------------------------------------------------------------------------------------------


def folder() -> Path:
    """NAG_CACHE, or nag_kernels in the folder of this user's caches. It need not be there.

    Raises: OSError where the user has no home.
    """
    given = os.environ.get("NAG_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else None)
    try:
        return Path(given).expanduser() if given else Path(caches or "~/.cache").expanduser() / "nag_kernels"
    except RuntimeError as error:
        raise OSError(f"{error}; NAG_CACHE names a folder for verdicts") from error


def path_of(facts: Facts) -> Path:
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]
    return folder() / f"verdict-{key}.json"


def _parse(text: str) -> Verdict:
    """Raises: ValueError, KeyError, TypeError or AttributeError for what `write` did not write."""
    found = json.loads(text)
    plans = {str(plan): dict(x) for plan, x in found["plans"].items()}
    for x in plans.values():
        if x["state"] not in STATES:
            raise ValueError(x["state"])
        for time_of_plan, time_of_sdpa in x.get("times", {}).values():
            if not (time_of_plan > 0 and time_of_sdpa > 0):
                raise ValueError("a time is above 0")
    return Verdict(dict(found["facts"]), plans, {name: Layer(**x) for name, x in found["layers"].items()})


def _read(path: Path) -> Verdict:
    """What a file says; nothing, where it is not there, torn or of another version of this module."""
    try:
        return _parse(path.read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Verdict()


def read(facts: Facts) -> Verdict:
    try:
        found = _read(path_of(facts))
    except OSError:
        found = Verdict()
    return found if found.facts == facts else Verdict(facts)


def write(verdict: Verdict) -> None:
    """Replace the file of these facts. Raises: OSError where the folder cannot be written."""
    path = path_of(verdict.facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {
        "facts": verdict.facts,
        "layers": {name: x.facts() for name, x in verdict.layers.items()},
        "plans": verdict.plans,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".verdict-")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(whole, file, indent=1)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    proven.cache_clear()


@functools.cache
def proven() -> frozenset[str]:
    """The families ("cuda", "triton") of which this installation has a right plan on some GPU; asks no GPU."""
    try:
        files = list(folder().glob("verdict-*.json"))
    except OSError:
        files = []
    right = set()
    for verdict in map(_read, files):
        if all(verdict.facts.get(name) == x for name, x in installation().items()):
            right |= {plan.split()[0] for plan, x in verdict.plans.items() if x["state"] == RIGHT}
    return frozenset(right)


@contextlib.contextmanager
def alone(facts: Facts, seconds: float) -> Iterator[bool]:
    """Whether this process has the lock of these facts; who does not get it in that time goes on without.

    Where there are no locks (Windows, a folder that cannot be written) all go on as if they had it.
    """
    with contextlib.ExitStack() as stack:
        try:
            import fcntl

            path = path_of(facts).with_suffix(".lock")
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(path.open("w"))
        except (ImportError, OSError):
            yield True
            return
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > end:
                    yield False
                    return
                time.sleep(0.1)
        yield True
