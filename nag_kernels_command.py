# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The command `nag-kernels`. It lies beside the package, whose import takes seconds (torch), so that help comes at once."""

import difflib
import importlib
import importlib.metadata
import os
import sys
from typing import NamedTuple


class Command(NamedTuple):
    """module: its `main(arguments)` is the command, and `python -m` of it the other form.  example: arguments."""

    module: str
    does: str
    example: str


COMMANDS = {
    "info": Command("nag_kernels.info", "say what is installed, what is missing and why", ""),
    "demo": Command("nag_kernels.demo", "draw by CFG, NASA and NAG, and count what each did",
                    "--prompt 'a star' --negative 'on black'"),
    "diagnose": Command("nag_kernels.diagnose", "show what scale, tau and alpha do in a model, and suggest some",
                        "--prompt 'a large circle' --negative red"),
    "play": Command("nag_kernels.play.__main__", "open a page to try prompts and settings on (needs gradio)", "--port 7860"),
    "evaluate": Command("nag_kernels.evaluate", "draw a file of prompts by several methods and score the pictures",
                        "--prompts prompts.csv --methods none nag"),
    "distill": Command("nag_kernels.distill.__main__", "train a student that draws in one step, from prompts alone", "cross"),
    "prove": Command("nag_kernels.prove.__main__", "try the GPU kernels here, turn on those that are right and faster",
                     "--report report.json"),
    "evidence": Command("nag_kernels.evidence", "measure the papers' claims on the small model (needs a checkout)",
                        "--quick"),
    "bench": Command("nag_kernels.bench", "measure speed on this machine (needs a checkout)", "attention"),
}  # fmt: skip


def help_text() -> str:
    lines = [
        "usage: nag-kernels COMMAND [ARGUMENTS]",
        "",
        "Negative prompts inside attention (NAG, NASA, VSF), for diffusion models.",
        "",
        "commands, each with an example:",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<9} {command.does}")
        lines.append(f"            $ nag-kernels {name} {command.example}".rstrip())
    lines += [
        "",
        "nag-kernels COMMAND --help lists the arguments of a command.",
        "nag-kernels --version says which version this is.",
        "python -m nag_kernels.COMMAND is the same as nag-kernels COMMAND.",
    ]
    return "\n".join(lines)


def version() -> str:
    try:
        return importlib.metadata.version("nag-kernels")
    except importlib.metadata.PackageNotFoundError:
        return "not installed: run from a checkout"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("nag-kernels: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # what reads this has ended; nothing more is to be written, nor at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: list[str]) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help", "help"):
        print(help_text(), flush=True)
        return 0
    if name == "--version":
        print(f"nag_kernels {version()}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        known = ", ".join(COMMANDS)
        print(f"nag-kernels: error: the command must be one of {known}, got {name!r}{meant}", file=sys.stderr)
        return 2
    if sys.stderr.isatty() and not {"-h", "--help"} & set(rest):
        print(f"nag-kernels {name}: loading torch and what else it needs", file=sys.stderr)
    try:
        module = importlib.import_module(COMMANDS[name].module)
    except ImportError as error:
        needs = "; it is no dependency that pip may choose: pip install torch" if error.name == "torch" else ""
        print(f"nag-kernels {name}: error: {error}{needs}", file=sys.stderr)
        return 1
    return module.main(rest) or 0


if __name__ == "__main__":
    sys.exit(main())
