# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""How a command ends where what it was given does not do: with one sentence, not with a traceback (NAG_LOG=debug shows it)."""

import argparse
import contextlib
import functools
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

LOG = logging.getLogger("nag_kernels")
DRAWING = (ValueError, TypeError, RuntimeError, NotImplementedError)  # what pipelines raise where a call does not fit
DRAWS = ("diffusers", "transformers", "safetensors", "numpy", "pillow", "tqdm", "rich")
# What each command imports, by the names that pip knows.
NEEDS = {
    "nag_kernels.demo": DRAWS,
    "nag_kernels.diagnose": (*DRAWS, "matplotlib"),
    "nag_kernels.play": (*DRAWS, "matplotlib", "gradio"),
    "nag_kernels.evaluate": DRAWS,
    "nag_kernels.distill": (*DRAWS, "accelerate", "peft"),
}
# Commands whose packages must fit each other: their extra is named in place of the packages.
EXTRAS = {"nag_kernels.play": "play"}
Main = TypeVar("Main", bound=Callable[..., Any])


class UserError(ValueError):
    """What a person typed, or a file that was named, does not do. The message is for that person."""


def missing(command: str, module: str, error: ImportError) -> BaseException:
    """What to raise where a command cannot import all: names the packages to install.

    module: the importing module's `__name__`; where it was started itself, the message alone is printed.
    """
    absent = [x for x in NEEDS[command] if importlib.util.find_spec("PIL" if x == "pillow" else x) is None]
    install = f"'.[{EXTRAS[command]}]' in a checkout" if command in EXTRAS else " ".join(absent)
    how = f"needs {', '.join(absent)}: pip install {install}" if absent else f"cannot be imported: {error}"
    return SystemExit(f"{command} {how}") if module == "__main__" else ImportError(f"{command} {how}")


@contextlib.contextmanager
def named(what: str, *errors: type[Exception]) -> Iterator[None]:
    """Errors of these kinds within the block become a `UserError` that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except errors as error:
        first = next((x.strip() for x in str(error).splitlines() if x.strip()), "")
        raise UserError(
            f"{what}: {type(error).__name__}{': ' * bool(first)}{first} (NAG_LOG=debug shows where)"
        ) from error


def in_one_sentence(command: str) -> Callable[[Main], Main]:
    """For the `main` of a command: a `UserError` or `OSError` ends it with that sentence and status 1, Ctrl-C with status 130."""

    def wrap(main: Main) -> Main:
        @functools.wraps(main)
        def run(*arguments: Any, **named: Any) -> Any:
            try:
                return main(*arguments, **named)
            except (UserError, OSError) as error:  # OSError: a disk that is full, a folder that nobody may write into
                LOG.debug("%s", command, exc_info=True)
                print(f"{command}: error: {error}", file=sys.stderr)
                raise SystemExit(1) from error
            except KeyboardInterrupt as stop:
                print(f"{command}: stopped", file=sys.stderr)
                raise SystemExit(130) from stop

        return run  # type: ignore[return-value]

    return wrap


# --- arguments that several commands take -------------------------------------------------------------------------------


def check_at_least(parser: argparse.ArgumentParser, options: argparse.Namespace, least: int, *names: str) -> None:
    for name in names:
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}")


def check_finite(parser: argparse.ArgumentParser, options: argparse.Namespace, *names: str) -> None:
    """Those that are given."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not -float("inf") < value < float("inf"):
            parser.error(f"--{name.replace('_', '-')} must be a finite number, got {value}")


def check_device(parser: argparse.ArgumentParser, name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        parser.error(f"--device must be cpu, cuda, cuda:1 or another device of torch, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        parser.error(
            f"--device {name}: this torch sees {torch.cuda.device_count()} CUDA devices; --device cpu runs without"
        )


def check_seed(parser: argparse.ArgumentParser, seed: int, pictures: int) -> None:
    """torch takes 64 bits."""
    if not 0 <= seed <= 2**63 - pictures:
        parser.error(f"--seed must be between 0 and 2^63, got {seed}")


def check_folder(parser: argparse.ArgumentParser, path: Path, option: str = "--out") -> None:
    """A folder to write into, which need not be there."""
    for each in (path, *path.parents):
        if each.exists():
            if not each.is_dir():
                parser.error(f"{option} {path}: {each} is a file, not a folder")
            return
