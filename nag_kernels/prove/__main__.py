# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The command `python -m nag_kernels.prove`."""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

from .. import __version__
from ..whole_file import write_text
from . import run, verdicts
from .layers import USUAL, layer_of


def report(found: list[verdicts.Verdict]) -> dict[str, Any]:
    """All that a reader of an issue needs: facts, times and reasons, and no name of a user or a machine."""
    return {
        "nag_kernels": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "verdicts": [
            {"facts": x.facts, "layers": {name: y.facts() for name, y in x.layers.items()}, "plans": x.plans}
            for x in found
        ],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m nag_kernels.prove",
        description="Try each plan for a GPU on the GPUs of this machine, each in a process of its own: some dozen cases "
        "against float64, then times. Plans that are right and faster than torch's own attention and the plain formula serve "
        f"from then on. The verdict is a file in {_folder()} (NAG_CACHE names another folder). Ends with 0 when each "
        "plan has a verdict, 1 when some could not be tried (no memory, a busy GPU), 2 for bad arguments, 3 without a GPU.",
    )
    parser.add_argument("--again", action="store_true", help="also try plans that have a verdict")
    parser.add_argument("--plans", help=f"only these, separated by commas: {', '.join(run.ORDER)}")
    parser.add_argument("--layers", help="a JSON file with the layers to time in place of the usual ones: a list of "
                        '{"length": 4096, "heads": 10, "size": 64, "positive": 77, "negative": 77, "shared": 0}')  # fmt: skip
    parser.add_argument("--report", metavar="FILE", help="write a report to attach to an issue, as JSON")
    options = parser.parse_args(arguments)
    plans = [x.strip() for x in options.plans.split(",")] if options.plans else list(run.ORDER)
    unknown = [x for x in plans if x not in run.ORDER]
    if unknown:
        parser.error(f"--plans must be of {', '.join(run.ORDER)}, got {', '.join(unknown)}")
    try:
        layers = [layer_of(x) for x in json.loads(Path(options.layers).read_text())] if options.layers else list(USUAL)
    except (OSError, ValueError, TypeError) as error:
        parser.error(f"--layers must be a JSON file with a list of layers: {error}")
    try:
        devices = run.devices()
    except run.NoDevice as error:
        print(f"{error} So there is nothing to prove, and nothing to do: what runs without a GPU needs no verdict.")
        return 3
    found = []
    for device, facts in devices:
        print(f"{facts['gpu']}, capability {facts['capability']}, driver {facts['driver']}, torch {facts['torch']}")
        verdict = run.prove(facts, run.commands(plans, layers), layers, device=device, again=options.again,
                            say=lambda line: print(line, flush=True))  # fmt: skip
        found.append(verdict)
        print("\n".join(verdict.lines()))
    if options.report:
        write_text(options.report, json.dumps(report(found), indent=1) + "\n")
        print(f"the report is {options.report}")
    states = [x.plans.get(plan, {}).get("state", "busy") for x in found for plan in plans]
    return 1 if "busy" in states else 0


def _folder() -> str:
    try:
        return str(verdicts.folder()).replace("%", "%%")
    except OSError as error:
        return str(error).replace("%", "%%")


if __name__ == "__main__":
    sys.exit(main())
