# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The process of one plan: `python -m nag_kernels.prove.child --plan "cuda text" --layers "[...]"`; run.py starts it and reads
its lines. With --facts it says which GPUs there are."""

import argparse
import json
from typing import Any

import torch

from .. import availability
from . import verdicts
from .layers import layer_of


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def facts() -> dict[str, Any]:
    if torch.version.cuda is None:
        return {"none": f"this torch ({torch.__version__}) is built without CUDA"}
    if not torch.cuda.is_available():
        return {"none": f"torch {torch.__version__} sees no NVIDIA GPU"}
    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        found.append((verdicts.visible_name(device), verdicts.facts_of(device)))
    return {"devices": found}


def state_of(error: BaseException) -> tuple[str, str]:
    """What an exception says of a plan."""
    text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in text.lower():
        return "busy", text
    if "busy or unavailable" in text:
        return "busy", text
    if "no kernel image" in text:
        return "refused", text
    return "crashed", text


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m nag_kernels.prove.child", description=__doc__)
    parser.add_argument("--facts", action="store_true", help="say which GPUs there are, and end")
    parser.add_argument("--plan", help="the plan to try")
    parser.add_argument("--layers", default="[]", help="the layers to time, as JSON")
    parser.add_argument("--device", default="cuda", help="where to")
    options = parser.parse_args(arguments)
    if options.facts:
        print(json.dumps(facts()), flush=True)
        return
    say(next="the import of its kernels")
    why = availability.refusal(options.plan.split()[0], "cuda")
    if why is not None:
        say(state="refused", why=f"not here: {why}")
        return
    try:
        from .cases import try_plan

        layers = [layer_of(x) for x in json.loads(options.layers)]
        say(**try_plan(options.plan, torch.device(options.device), layers, say))
    except Exception as error:
        state, why = state_of(error)
        say(state=state, why=why)


if __name__ == "__main__":
    main()
